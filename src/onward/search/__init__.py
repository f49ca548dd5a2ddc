"""Hyperparameter search: `Trainer.hyperparameter_search` over Optuna, Ray Tune or W&B sweeps.

    spaces      what is searched and optimised by default
    applying    from hyperparameters to arguments, checked
    trials      one trial: open, train, score, let go
    log         ``trials.jsonl``: every trial of a search, whatever the backend
    tidying     which checkpoints may go
    best        the best trial, and its model
    retuning    new hyperparameters in an optimizer that was loaded from another trial
    optuna_*    Optuna: the study, the loop over trials, several ranks and threads
    ray_*       Ray Tune: the search, and the trainer that is rebuilt in a worker
    wandb_sweep W&B sweeps
    report      one HTML page of plots

A leaf: the backends are imported when they are used, and nothing here is imported before somebody searches.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from onward.errors import MissingDependency, UsageError
from onward.search.spaces import default_objective, default_space
from onward.types import BestRun, HPSearchBackend

if TYPE_CHECKING:
    from onward.hooks.searching import SearchHooks
    from onward.search.request import Request

_PACKAGES = {
    HPSearchBackend.OPTUNA: "optuna",
    HPSearchBackend.RAY: "ray.tune",
    HPSearchBackend.WANDB: "wandb",
}
"""Module to look for; the extra to install is named like the backend."""


def run_search(host: SearchHooks, backend: str | HPSearchBackend | None, request: Request) -> BestRun | list[BestRun]:
    """Search, and leave the trainer with the arguments of the best trial.

    Raises:
        UsageError: there is no ``model_init``, or the request cannot work.
        MissingDependency: the backend is not installed.
        TrainingFailed: no trial ended well.
    """
    chosen = choose_backend(backend)
    if host.model_init is None:
        raise UsageError(
            "To use hyperparameter search, you need to pass your model through a model_init function, so that every "
            "trial can have a new one: Trainer(model_init=..., ...) instead of model=..."
        )
    request.check()
    host.hp_space = default_space(chosen) if request.hp_space is None else request.hp_space
    host.compute_objective = default_objective if request.compute_objective is None else request.compute_objective
    host.hp_name = request.hp_name
    host.hp_search_backend = chosen
    try:
        if chosen == HPSearchBackend.OPTUNA:
            from onward.search import optuna_search

            return optuna_search.run(host, request)
        if chosen == HPSearchBackend.RAY:
            from onward.search import ray_search

            return ray_search.run(host, request)
        from onward.search import wandb_sweep

        return wandb_sweep.run(host, request)
    finally:
        host.hp_search_backend = host._trial = host._reporter = None


def choose_backend(backend: str | HPSearchBackend | None) -> HPSearchBackend:
    """Return the backend of this name, or the first one that is installed.

    Raises:
        UsageError: there is no backend of this name.
        MissingDependency: it is not installed.
    """
    if backend is None:
        for each in _PACKAGES:
            if _is_installed(each):
                return each
        raise MissingDependency("No backend for a hyperparameter search is installed: pip install 'onward[optuna]'.")
    chosen = HPSearchBackend(backend)
    if not _is_installed(chosen):
        raise MissingDependency(f"backend={chosen.value!r} is not installed: pip install 'onward[{chosen.value}]'.")
    return chosen


def _is_installed(backend: HPSearchBackend) -> bool:

    try:
        return find_spec(_PACKAGES[backend]) is not None
    except ModuleNotFoundError:
        return False
