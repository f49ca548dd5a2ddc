"""Samples read from the data when a run continues at 90 % of an epoch and takes five more steps of four samples.

The floor is the samples that are trained on. Both runs of a library see the same losses as an undisturbed one.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from benchmarks.result import HAND, ONWARD, TRANSFORMERS, Figure, Result, Settings, check_losses

DEVICES = ("cpu",)
BATCH, MORE = 4, 5
TARGET = 24


class Model(nn.Module):
    """One layer that keeps its losses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 1)
        self.losses: list[float] = []

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        loss = nn.functional.mse_loss(self.layer(x), labels)
        self.losses.append(loss.item())
        return {"loss": loss}


def sample(at: int) -> dict[str, torch.Tensor]:
    """Sample number `at`, always the same."""
    x = torch.sin(torch.arange(8) * (at + 1.0))
    return {"x": x, "labels": x.sum(-1, keepdim=True)}


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Map-style data that counts what is read."""

    def __init__(self, count: int) -> None:
        self.count, self.pulled = count, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        self.pulled += 1
        return sample(at)


class Stream(IterableDataset[dict[str, torch.Tensor]]):
    """A stream that counts what is read and can say and take up where it stands."""

    def __init__(self, count: int) -> None:
        self.count, self.pulled, self.at = count, 0, 0

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        while self.at < self.count:
            self.at += 1
            self.pulled += 1
            yield sample(self.at - 1)
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


class CrashError(Exception):
    """The end of a run that is to be resumed: a crash, right behind a save."""


def run(
    library: Any, data: Any, folder: str, stop: int, *, checkpoint: str | None = None, crash: bool = False
) -> list[float]:
    """Train one epoch up to step `stop`, or save there and crash; the losses of the steps taken."""
    from transformers import TrainerCallback

    class Stop(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            control.should_training_stop = state.global_step >= stop and not crash
            control.should_save = state.global_step == stop and crash
            return control

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if crash and state.global_step == stop:
                raise CrashError

    args = library.TrainingArguments(
        output_dir=folder,
        max_steps=data.count // BATCH,
        per_device_train_batch_size=BATCH,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        use_cpu=True,
    )
    model = Model()
    trainer = library.Trainer(model=model, args=args, train_dataset=data, callbacks=[Stop()])
    trainer.remove_callback(library.PrinterCallback)
    with contextlib.suppress(CrashError):
        trainer.train(resume_from_checkpoint=checkpoint)
    return model.losses


def pulled(library: Any, kind: type[Rows] | type[Stream], count: int) -> tuple[int, list[float], list[float]]:
    """Samples read by the second run, its losses, and those of a run that was never interrupted."""
    steps = count * 9 // 10 // BATCH
    with tempfile.TemporaryDirectory() as folder:
        whole = run(library, kind(count), f"{folder}/whole", steps + MORE)
        run(library, kind(count), f"{folder}/parts", steps, crash=True)
        data = kind(count)
        losses = run(library, data, f"{folder}/parts", steps + MORE, checkpoint=f"{folder}/parts/checkpoint-{steps}")
        return data.pulled, losses, whole[-MORE:]


def measure(settings: Settings) -> list[Result]:
    """One result for map-style data and one for a stream."""
    import transformers

    import onward

    count = settings.pick(full=4000, quick=4000, smoke=200)
    results = []
    for kind, name in ((Rows, "map-style"), (Stream, "stream with state_dict")):
        figures = {HAND: Figure((float(BATCH * MORE),))}
        checks = []
        for peer, library in ((TRANSFORMERS, transformers), (ONWARD, onward)):
            samples, losses, whole = pulled(library, kind, count)
            checks.append(
                check_losses({f"{peer} resumed": losses, f"{peer} undisturbed": whole}, f"{peer} undisturbed", 0)
            )
            figures[peer] = Figure((float(samples),))
        title = f"samples read on resume at 90 % of an epoch, {name}"
        results.append(Result("resume", title, "samples", figures, target=TARGET, checked="; ".join(checks)))
    return results
