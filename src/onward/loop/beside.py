"""The asynchronous half of saving: copy the state, let the writer put the copy on disk while training goes on."""

from __future__ import annotations

import copy
import logging
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward import sharding
from onward.arguments import option
from onward.checkpoint import layout, parts, ranks, store, weights
from onward.checkpoint.failures import is_storage_failure
from onward.checkpoint.record import RunRecord, new_run_id
from onward.checkpoint.sink import Create, Sinks
from onward.checkpoint.snapshot import NotCopyableError, Snapshot
from onward.checkpoint.staging import Staging
from onward.checkpoint.writer import Writer

if TYPE_CHECKING:
    from onward.hooks.checkpointing import CheckpointHooks

logger = logging.getLogger(__name__)


@dataclass
class SaveDesk:
    """What a trainer remembers between saves."""

    writer: Writer = field(default_factory=Writer)
    failures_in_a_row: int = 0
    run: str = field(default_factory=new_run_id)
    failed: list[tuple[str, Exception]] = field(default_factory=list)
    committed: deque[Path] = field(default_factory=partial(deque, maxlen=64))
    """Not yet taken by `_committed_saves`; bounded, because nobody has to take them."""
    origin: Path | None = None
    """The checkpoint that this run went on from; of another run where it started a branch."""
    newest: Path | None = None
    """The newest checkpoint of this very run, if there is one; it is whole."""
    unsettled: int = 0
    """Saves that were committed and that `settle_saves` has not heard of yet."""
    best_before: dict[str, str | None] = field(default_factory=dict)
    told_why: str | None = None
    just_failed: bool = False


@dataclass(frozen=True)
class SaveJob:
    """One save: where to, and what is not in the hooks' files."""

    target: Path
    record: RunRecord
    rng: list[dict[str, Any]]
    limit: int | None
    best: Path | None


@dataclass(frozen=True)
class _Copies:
    """Everything that the writer puts into files; nothing in it changes when training goes on."""

    snapshot: Snapshot
    write_model: Callable[[Path, Any, Create], None]
    scheduler: Any
    scaler: Any
    state: Any
    training_args: bytes
    tokenizer: Any


def hand_over(host: CheckpointHooks, job: SaveJob) -> bool:
    """Copy the state and let the writer save it; False where that cannot be (then nothing has happened)."""
    accepted, desk = True, host._desk()
    if host.args.should_save or host.is_fsdp_enabled:  # all processes hand in their parts of a sharded model
        try:
            copies = _copy_state(host)
        except (NotCopyableError, MemoryError) as reason:
            if str(reason) != desk.told_why:
                desk.told_why = str(reason)
                level = logging.WARNING if isinstance(reason, MemoryError) else logging.INFO
                logger.log(level, "This checkpoint is saved synchronously: %s.", reason)
            accepted = False
    if not all(ranks.everyone(accepted)):
        return False
    if host.args.should_save:
        desk.writer.submit(job.target, partial(_save_beside, job, copies))
    return True


def _copy_state(host: CheckpointHooks) -> _Copies:
    args = host.args
    model = host._model_to_save()
    write_model = _writer_of(host, model)
    scaler = None if args.save_only_model else getattr(host.accelerator, "scaler", None)
    state = copy.copy(host.state)
    state.log_history = list(state.log_history)
    state.stateful_callbacks = copy.deepcopy(state.stateful_callbacks)
    return _Copies(
        snapshot=_snapshot(host, model),
        write_model=write_model,
        scheduler=None if args.save_only_model else copy.deepcopy(host.lr_scheduler.state_dict()),
        scaler=None if scaler is None else scaler.state_dict(),
        state=state,
        training_args=parts.training_args(args),
        tokenizer=tokenizer_of(host),
    )


def _snapshot(host: CheckpointHooks, model: Any) -> Snapshot:
    """Copy weights and optimizer state; what is put together of a sharded model is a copy already."""
    optimizer = None if host.args.save_only_model else host.optimizer
    if host.is_fsdp_enabled:
        keep = host.args.should_save
        state = None if optimizer is None else sharding.whole_state(optimizer, keep)
        return Snapshot((sharding.whole_weights(model, keep), state))
    state = None if optimizer is None else optimizer.state_dict()
    return host._desk().writer.buffers.copy((model.state_dict(), state))


def _writer_of(host: CheckpointHooks, model: Any) -> Callable[[Path, Any, Create], None]:
    """Return what writes a copy of the model's weights.

    Raises:
        NotCopyableError: the model's own way of saving may look at the live weights.
    """
    if not weights.can_save_a_copy(model):
        raise NotCopyableError(f"a {sharding.class_of(model).__name__} decides itself what to save")
    limit = option(host.args, "max_shard_size")

    def write(folder: Path, copied: Any, create: Create) -> None:
        weights.save_weights(model, folder, copied, limit, create=create)

    return write


def _save_beside(job: SaveJob, copies: _Copies) -> None:
    """Runs in the writer's thread."""
    try:
        copies.snapshot.wait()
        staging = Staging.create(job.target)
        try:
            sinks = Sinks()
            _write_copies(job, copies, staging.path, sinks.create)
            staging.commit(job.record.run, job.record.step, sinks.records)
        except BaseException:
            staging.discard()
            raise
    except Exception as error:
        if is_storage_failure(error):
            logger.error("The checkpoint %s could not be saved: %s", job.target, error)
        raise
    rotate(job.record.run, job.target, job.limit, job.best)


def _write_copies(job: SaveJob, copies: _Copies, folder: Path, create: Create) -> None:
    model_state, optimizer = copies.snapshot.tree
    copies.write_model(folder, model_state, create)
    if copies.tokenizer is not None:
        copies.tokenizer.save_pretrained(os.fspath(folder))
    (folder / layout.TRAINING_ARGS).write_bytes(copies.training_args)
    if optimizer is not None:
        parts.write_torch(optimizer, folder / layout.OPTIMIZER, create)
        parts.write_torch(copies.scheduler, folder / layout.SCHEDULER)
        if copies.scaler is not None:
            parts.write_torch(copies.scaler, folder / layout.SCALER)
        for rank, states in enumerate(job.rng):
            parts.write_torch(states, folder / layout.rng_name(rank, len(job.rng)))
    copies.state.save_to_json(os.fspath(folder / layout.TRAINER_STATE))
    job.record.write(folder)


def rotate(run: str, newest: Path, limit: int | None, best: Path | None) -> None:
    """Delete old checkpoints beside `newest`, which is whole; that this fails does not make a save a failed one."""
    try:
        store.rotate(newest.parent, limit, run, keep=newest, best=best)
    except OSError as error:
        logger.error("Old checkpoints in %s could not be deleted: %s", newest.parent, error)


def tokenizer_of(host: CheckpointHooks) -> Any:
    """Return what is saved beside the model: the processing class, or else the collator's tokenizer."""
    if host.processing_class is not None:
        return host.processing_class
    return getattr(host.data_collator, "tokenizer", None)
