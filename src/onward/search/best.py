"""The best trial: its arguments in the trainer, and its model from its checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.checkpoint import get_last_checkpoint, ranks
from onward.errors import NoCheckpoint, UsageError
from onward.search import log
from onward.search.trials import apply_trial

if TYPE_CHECKING:
    from torch import nn

    from onward.hooks.searching import SearchHooks


def checkpoint_of(host: SearchHooks, folder: Path) -> str | None:
    """The checkpoint that stands for the trial that was just trained: its best one, else its last."""
    best = host.state.best_model_checkpoint
    if best is not None and Path(best).is_dir():
        return best
    return get_last_checkpoint(folder) if folder.is_dir() else None


def relative(output_dir: str, path: str | None) -> str | None:
    """`path` relative to the output folder, which may be moved, if it is in there."""
    if path is None:
        return None
    within = os.path.relpath(path, output_dir)
    return os.path.abspath(path) if within.startswith("..") else within


def load_best_trial(host: SearchHooks, run_id: str | None) -> nn.Module:
    """Make the model of the best trial (or of `run_id`) and load its weights.

    Raises:
        UsageError: there was no search in the output folder, or no such trial.
        NoCheckpoint: the trial left no checkpoint.
    """
    output_dir = str(host.args.output_dir)
    found = log.read(output_dir)
    best = found.best()
    row = found.rows.get(str(run_id)) if run_id is not None else (best[0] if best else None)
    if row is None:
        there = ", ".join(found.rows) or "none"
        raise UsageError(f"Found no trial {run_id or 'that ended well'} in {output_dir}; there is {there}.")
    path = None if row.checkpoint is None else os.path.join(output_dir, row.checkpoint)
    if not ranks.from_first(path is not None and Path(path).is_dir()):
        raise NoCheckpoint(
            f"Trial {row.trial} has no checkpoint (its record names {row.checkpoint}). Train with save_strategy="
            "'epoch' or 'steps' and keep_trials='best'; or call train(), which uses the best trial's arguments."
        )
    assert path is not None
    apply_trial(host, row.hyperparameters)
    host.model = host.call_model_init(_stand_in(found.backend, row))
    if host.place_model_on_device:
        host._move_model_to_device(host.model, host.args.device)
    host.model_wrapped = host.model
    host.callback_handler.model = host.model
    host._load_from_checkpoint(path)
    return host.model


def _stand_in(backend: str, row: log.TrialRow) -> Any:
    """What ``model_init`` gets: a trial with the recorded parameters."""
    if backend != "optuna":
        return dict(row.params)
    from onward.search.optuna_study import stand_in

    return stand_in(row.params, int(row.trial))
