"""A search with Ray Tune.

    put the data sets into the object store, write down how to make the trainer
    tune.run: Ray samples, starts workers, stops and perturbs trials
    write all trials down, delete the checkpoints that are not needed
    give the trainer the arguments of the best trial

Results and checkpoints are in ``output_dir/ray``, and stay there when the driver ends.
"""

from __future__ import annotations

import inspect
import logging
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.arguments import option
from onward.errors import TrainingFailed, UsageError, did_you_mean
from onward.search import log
from onward.search.applying import check_names
from onward.search.best import relative
from onward.search.ray_worker import DATA, check_can_be_sent, recipe_of, run_trial
from onward.search.tidying import tidy
from onward.search.trials import apply_trial, release
from onward.types import BestRun, IntervalStrategy

if TYPE_CHECKING:
    from onward.hooks.searching import SearchHooks
    from onward.search.request import Request

logger = logging.getLogger(__name__)

SCOPES = ("last", "all", "avg", "last-5-avg", "last-10-avg")
"""What of a trial counts, by the environment variable ``RAY_SCOPE``: its last objective, its best, or a mean."""
OURS = ("run_or_experiment", "config", "num_samples")
"""Parameters of `tune.run` that follow from the search."""


def run(host: SearchHooks, request: Request) -> BestRun:
    """Search with Ray Tune.

    Raises:
        UsageError: an option cannot work.
        TrainingFailed: no trial ended well.
    """
    if request.is_multi_objective:
        raise UsageError("Ray Tune optimises one objective; pass one direction, or search with backend='optuna'.")
    if _scope() not in SCOPES:
        raise UsageError(f"RAY_SCOPE got {_scope()!r}; expected one of {', '.join(SCOPES)}.")
    if host.args.world_size > 1:
        raise UsageError("Ray starts its own processes: call the search from one process, or use backend='optuna'.")
    from ray import tune

    assert host.hp_space is not None
    space = host.hp_space(None)
    check_names(host.args, space, host.model_init)
    output_dir = os.path.abspath(str(host.args.output_dir))
    options = _options(host, request, output_dir)
    recipe = recipe_of(host)
    data = {name: getattr(host, name) for name in DATA}
    check_can_be_sent(recipe)
    release(host)  # the workers make models of their own
    analysis = tune.run(
        tune.with_parameters(run_trial, recipe=recipe, **data),
        config=space,
        num_samples=request.n_trials,
        **options,
    )
    return _finish(host, request, analysis)


def _options(host: SearchHooks, request: Request, output_dir: str) -> dict[str, Any]:
    """The options of `tune.run`, with what follows from the trainer."""
    from ray import tune

    options = dict(request.options)
    known = [name for name in inspect.signature(tune.run).parameters if name not in OURS]
    for name in options:
        if name not in known:
            raise UsageError(
                f"hyperparameter_search got the unknown option {name!r}; expected for Ray one of those of "
                f"ray.tune.run.{did_you_mean(name, known)}"
            )
    gpus = {"gpu": 1} if host.args.n_gpu > 0 else {}
    options.setdefault("resources_per_trial", {"cpu": 1, **gpus})
    options.setdefault("storage_path", os.path.join(output_dir, "ray"))
    options.setdefault("raise_on_failed_trial", False)  # a trial that raises does not end the search
    options.setdefault("verbose", 1)
    options.setdefault("reuse_actors", True)  # starting a process and importing torch takes longer than a small trial
    if "keep_checkpoints_num" not in options:
        # A trial that was told to take over another one's checkpoint finds it gone if that one hurries ahead, so a
        # population keeps all of them until the search ends.
        scheduler = options.get("scheduler")
        population = "Population" in type(scheduler).__name__ or scheduler in ("pbt", "pb2")
        options.setdefault("checkpoint_config", tune.CheckpointConfig(num_to_keep=None if population else 1))
    if "name" in options and _has_begun(options["storage_path"], options["name"]):
        options.setdefault("resume", "AUTO")  # the same call again finishes what is there
    scheduler = options.get("scheduler")
    if scheduler is not None:
        if host.args.eval_strategy == IntervalStrategy.NO:
            name = scheduler if isinstance(scheduler, str) else type(scheduler).__name__
            raise UsageError(
                f"The scheduler {name} decides by evaluations during training, but got eval_strategy='no'; expected "
                "'steps' or 'epoch'."
            )
        if isinstance(scheduler, str) or getattr(scheduler, "metric", getattr(scheduler, "_metric", None)) is None:
            options.setdefault("metric", "objective")
            options.setdefault("mode", request.directions[0][:3])
    return options


def _has_begun(storage_path: Any, name: str) -> bool:
    """Whether there is something to go on with. Of storage elsewhere Ray finds out itself, and says so at length."""
    return "://" in str(storage_path) or any(Path(storage_path, name).glob("experiment_state-*"))


def _finish(host: SearchHooks, request: Request, analysis: Any) -> BestRun:
    """Write the trials down, keep the checkpoints that are asked for, and give the trainer the best arguments."""
    output_dir = str(host.args.output_dir)
    header = log.SearchLog(Path(analysis.experiment_path).name, "ray", request.directions, {})
    log.begin(output_dir, header, request.n_trials)
    for trial in analysis.trials:
        header.rows[trial.trial_id] = row = _row(host, analysis, trial, request.directions[0] == "minimize")
        log.append(output_dir, header.study, row)
    winners = [row.trial for row in header.best()]
    names = [row.name for row in header.rows.values()]
    tidy(output_dir, names, [], "none")  # what workers that Ray ended left; Ray has its own copies
    _tidy_storage(analysis.trials, winners, option(host.args, "keep_trials"))
    if not winners:
        errors = [row.error for row in header.rows.values() if row.error]
        first = f" The first failed of: {errors[0]}" if errors else ""
        raise TrainingFailed(f"None of {len(names)} trials ended well: {len(errors)} failed.{first}")
    best = next(trial for trial in analysis.trials if trial.trial_id == winners[0])
    apply_trial(host, best.config)
    return BestRun(best.trial_id, best.last_result["objective"], best.config, analysis)


def _scope() -> str:
    return os.environ.get("RAY_SCOPE", "last")


def _value(trial: Any, last: float, mode: str) -> float:
    """What the trial is judged by."""
    scope = _scope()
    return float(last if scope == "last" else trial.metric_analysis["objective"][mode if scope == "all" else scope])


def _row(host: SearchHooks, analysis: Any, trial: Any, minimises: bool) -> log.TrialRow:
    error = trial.get_error()
    objective = (trial.last_result or {}).get("objective")
    ended_well = trial.status == "TERMINATED" and objective is not None and math.isfinite(objective)
    reports = analysis.trial_dataframes.get(trial.trial_id)
    steps = {} if reports is None or "step" not in reports else dict(zip(reports.step, reports.objective, strict=True))
    checkpoint = trial.checkpoint
    config = log.jsonable(trial.config)
    return log.TrialRow(
        trial=trial.trial_id,
        name=f"run-{trial.trial_id}" if host.hp_name is None else host.hp_name(trial.config),
        state="complete" if ended_well else "failed",
        values=None if objective is None else [_value(trial, objective, "min" if minimises else "max")],
        params=config,
        hyperparameters=config,
        intermediate={str(int(step)): float(value) for step, value in steps.items() if math.isfinite(step)},
        error=_reason(error),
        checkpoint=None if checkpoint is None else relative(str(host.args.output_dir), checkpoint.path),
    )


def _reason(error: Any) -> str | None:
    """What a trial failed of, in one line: Ray gives the traceback of the worker as text."""
    if error is None:
        return None
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if isinstance(error, str) and lines else f"{type(error).__name__}: {error}"


def _tidy_storage(trials: list[Any], winners: list[str], keep_trials: str) -> None:
    """Delete the checkpoints of trials in Ray's storage, where that is a folder of this machine."""
    for trial in trials:
        if keep_trials == "all" or (keep_trials == "best" and trial.trial_id in winners):
            continue
        for checkpoint in Path(trial.path).glob("checkpoint_*") if trial.path else []:
            shutil.rmtree(checkpoint, ignore_errors=True)
