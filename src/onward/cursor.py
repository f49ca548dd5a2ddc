"""Where in the data a run stands."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from onward.errors import CheckpointMismatch

_MUST_MATCH = {
    "global_batch_size": "per_device_train_batch_size * gradient_accumulation_steps * processes",
    "seed": "data_seed or seed",
    "strategy": "train_sampling_strategy",
    "num_samples": "length of the training data set",
    "fingerprint": "content of the training data set",
    "drop_last": "dataloader_drop_last",
}


@dataclass(frozen=True)
class Cursor:
    """The place of a run in its data, counted in *consumed* optimizer steps (what was only prefetched is not consumed).

    The order of samples is a function of `(seed, epoch)`, and step *s* of an epoch takes the samples
    ``[s * global_batch_size, (s + 1) * global_batch_size)`` of it. So this is all that it takes to go on, also with
    another number of processes or another split of the same global batch.
    """

    epoch: int = 0
    """Epoch that the run is in, from 0."""
    step: int = 0
    """Optimizer steps consumed in this epoch."""
    epoch_ended: bool = False
    """Whether the events at the end of this epoch are already behind."""
    seed: int = 0
    """Seed of the data order."""
    strategy: str = "random"
    """`train_sampling_strategy`."""
    num_samples: int | None = None
    """Samples per epoch; `None` for data without a length."""
    fingerprint: str | None = None
    """Fingerprint of the data set, where it has one."""
    drop_last: bool = False
    """Whether an incomplete last batch is dropped."""
    micro_batch_size: int = 1
    """Samples per micro-batch and process, when the cursor was written."""
    accumulation: int = 1
    """Micro-batches per step, when the cursor was written."""
    world_size: int = 1
    """Processes, when the cursor was written."""

    @property
    def global_batch_size(self) -> int:
        """Samples per optimizer step over all processes."""
        return self.micro_batch_size * self.accumulation * self.world_size

    def advance(self, epoch: int, step: int) -> Cursor:
        """The cursor after `step` optimizer steps of `epoch`."""
        # Once per step: `dataclasses.replace` takes four times as long.
        there = object.__new__(Cursor)
        there.__dict__.update(self.__dict__, epoch=epoch, step=step, epoch_ended=False)
        return there

    def end_epoch(self) -> Cursor:
        """The cursor once the epoch's last events are behind."""
        return replace(self, epoch_ended=True)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Cursor:
        """Read `to_dict`'s form; keys of later versions are ignored."""
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in data.items() if k in known})

    def differences(self, now: Cursor) -> list[str]:
        """What makes it impossible to go on from this cursor with the data of `now`, in words."""
        return [
            f"{meaning}: {getattr(self, name)!r} in the checkpoint, {getattr(now, name)!r} now"
            for name, meaning in _MUST_MATCH.items()
            if getattr(self, name) != getattr(now, name)
            and not (name in ("fingerprint", "num_samples") and None in (getattr(self, name), getattr(now, name)))
        ]

    def resume(self, now: Cursor, *, allow_mismatch: bool = False) -> Cursor:
        """Place the run described by `now` where this cursor stands.

        Raises:
            CheckpointMismatch: the data order would differ, and `allow_mismatch` is false.
        """
        differences = self.differences(now)
        if differences and not allow_mismatch:
            listing = "\n".join(f"  - {line}" for line in differences)
            raise CheckpointMismatch(
                f"This checkpoint cannot be resumed exactly, because the run that wrote it saw other data:\n{listing}\n"
                "Restore these settings, or pass allow_resume_mismatch=True to go on from the same place in the new "
                "order, "
                "or ignore_data_skip=True to start the data from the beginning of the epoch."
            )
        return replace(now, epoch=self.epoch, step=self.step, epoch_ended=self.epoch_ended)
