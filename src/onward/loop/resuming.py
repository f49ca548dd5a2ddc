"""How a checkpoint comes back: which one, into what, and what is said about it."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.checkpoint import layout, parts, ranks, staging, store, structure, weights
from onward.checkpoint.record import read_record
from onward.errors import CheckpointError, NoCheckpoint

if TYPE_CHECKING:
    from onward.hooks.checkpointing import CheckpointHooks

logger = logging.getLogger(__name__)


def find_checkpoint(resume_from_checkpoint: str | os.PathLike[str] | bool | None, output_dir: str) -> Path | None:
    """Return the checkpoint to resume from, verified on rank 0 and the same on every rank; None to start afresh.

    Raises:
        CheckpointError: see `onward.checkpoint.resolve_checkpoint`.
    """
    found: tuple[str | None, CheckpointError | None] = (None, None)
    if ranks.rank() == 0:
        try:
            path = store.resolve_checkpoint(resume_from_checkpoint, output_dir)
            found = (None if path is None else str(path), None)
        except CheckpointError as error:
            found = (None, error)
    name, failure = ranks.from_first(found)
    if failure is not None:
        raise failure
    return None if name is None else Path(name)


def open_run(host: CheckpointHooks, checkpoint: Path | None, output_dir: str) -> None:
    """Begin a run's saving: its id (kept from `checkpoint`), stale staging folders swept, failures forgotten.

    Resuming from a checkpoint that is not the newest of its run starts a branch with an id of its own, so that the
    abandoned later checkpoints are neither taken for the newest nor kept by rotation.
    """
    host._desk_or_none = None
    desk = host._desk()
    desk.origin = checkpoint
    record = None if checkpoint is None else read_record(checkpoint)
    if checkpoint is not None and record is not None and not _abandons_later(checkpoint, record.run):
        desk.run, desk.newest = record.run, checkpoint
    desk.run = ranks.from_first(desk.run)
    if host.args.should_save and Path(output_dir).is_dir():
        for swept in staging.sweep(Path(output_dir)):
            logger.info("Deleted %s, left by a process that ended while saving.", swept)


def _abandons_later(checkpoint: Path, run: str) -> bool:
    step = layout.step_of(checkpoint)
    if step is None:
        return False
    later = [each for each in store.list_checkpoints(checkpoint.parent) if each.run == run and each.step > step]
    return any(not store.problems(each.path, deep=False) for each in later)


def load_model(host: CheckpointHooks, checkpoint: str, model: Any) -> None:
    """Load a checkpoint's weights into `model` (the trainer's own where it is None)."""
    folder = Path(checkpoint)
    if not structure.has_weights(folder):
        raise NoCheckpoint(f"Can't find a valid checkpoint at {checkpoint}: it holds no weights.")
    logger.info("Loading the weights of %s.", checkpoint)
    target = host._model_to_save() if model is None else host._unwrapped(model)
    host._issue_warnings_after_load(weights.load_weights(target, folder))


def load_best_model(host: CheckpointHooks) -> None:
    """Load the best checkpoint's weights; leave the model as it is, with a loud message, where that cannot be."""
    state = host.state
    recorded = state.best_model_checkpoint
    best = None if recorded is None else locate_best(recorded, host._get_output_dir(trial=host._trial))
    if best is None:
        logger.error(
            "Could not locate the best model at %s: the model keeps its last weights. With several machines and no "
            "shared folder, set save_on_each_node=True.", recorded,
        )  # fmt: skip
        return
    wrong = ranks.from_first(store.problems(best) if ranks.rank() == 0 else None)
    if wrong:
        what = "; ".join(wrong)
        logger.error("The best checkpoint %s is not whole (%s): the model keeps its last weights.", best, what)
        return
    logger.info("Loading the best model from %s (score: %s).", best, state.best_metric)
    host._issue_warnings_after_load(weights.load_weights(host._model_to_save(), best))


def locate_best(recorded: str, run_dir: str) -> Path | None:
    """Return where the best checkpoint is now: as recorded, or in the run folder when that was moved or renamed."""
    for candidate in (Path(recorded), Path(run_dir) / Path(recorded).name):
        if candidate.is_dir() and structure.has_weights(candidate):
            return candidate
    return None


def restore_callbacks(host: CheckpointHooks) -> None:
    """Give callbacks back the states that a checkpoint holds.

    Attributes (patience used up, say) are always restored, in place; constructor arguments only when
    `restore_callback_states_from_checkpoint` asks for it, since the user may have changed them on purpose.
    """
    stored = dict(host.state.stateful_callbacks or {})
    restore_arguments = bool(host.args.restore_callback_states_from_checkpoint)
    control = type(host.control).__name__
    unknown = []
    for name, states in stored.items():
        present = [each for each in [*host.callback_handler.callbacks, host.control] if type(each).__name__ == name]
        if not present:
            unknown.append(name)
        for callback, state in zip(present, states if isinstance(states, list) else [states], strict=False):
            settings = dict(state.get("args", {})) if restore_arguments else {}
            if name != control or restore_arguments:
                _set_attributes(callback, {**settings, **state.get("attributes", {})})
    if unknown and restore_arguments:
        logger.warning("The checkpoint has states of callbacks that are not there now: %s.", ", ".join(sorted(unknown)))


def _set_attributes(callback: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(callback, name, value)


def load_rng(checkpoint: str, rank: int, world_size: int) -> None:
    """Set this process's random-number generators as they stood at the checkpoint."""
    states = parts.load_rng_file(Path(checkpoint), rank, world_size)
    if states is not None:
        parts.restore_rng_states(states)


def warn_of_names(model: Any, result: Any) -> None:
    """Say which weights a checkpoint lacked or had too many; tie weights again where the lacking ones are tied."""
    ignorable = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    tied = set(getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or ())
    if result.missing_keys and set(result.missing_keys) <= ignorable | tied and hasattr(model, "tie_weights"):
        model.tie_weights()
    elif result.missing_keys:
        logger.warning("There were missing keys in the checkpoint model loaded: %s.", result.missing_keys)
    if result.unexpected_keys:
        logger.warning("There were unexpected keys in the checkpoint model loaded: %s.", result.unexpected_keys)
