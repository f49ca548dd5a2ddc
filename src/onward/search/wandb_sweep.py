"""A search by a W&B sweep.

W&B's server holds the sweep and hands out hyperparameters; `wandb.agent` asks it for them and calls `run_trial` for
each, inside a run of W&B. `hp_space` returns the configuration of the sweep.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from onward.arguments import option
from onward.errors import TrainingFailed, UsageError, did_you_mean
from onward.search import log
from onward.search.applying import check_names
from onward.search.best import checkpoint_of, relative
from onward.search.tidying import tidy
from onward.search.trials import CallbackStates, apply_trial, folder_of, numbers, release, train_trial
from onward.types import BestRun

if TYPE_CHECKING:
    from onward.hooks.searching import SearchHooks
    from onward.search.request import Request

logger = logging.getLogger(__name__)

OPTIONS = ("sweep_id", "project", "entity", "name", "metric")


def run(host: SearchHooks, request: Request) -> BestRun:
    """Search with a W&B sweep: a new one, or that of the option ``sweep_id``.

    Raises:
        UsageError: an option cannot work.
        TrainingFailed: no trial ended well.
    """
    import wandb

    for name in request.options:
        if name not in OPTIONS:
            raise UsageError(
                f"hyperparameter_search got the unknown option {name!r}; expected for W&B one of {', '.join(OPTIONS)}."
                f"{did_you_mean(name, OPTIONS)}"
            )
    if request.is_multi_objective or host.args.world_size > 1:
        raise UsageError("A W&B sweep optimises one objective in one process; use backend='optuna' for more.")
    where: dict[str, Any] = {name: request.options.get(name) for name in ("project", "entity")}
    sweep_id = request.options.get("sweep_id")
    if sweep_id is None:
        sweep_id = wandb.sweep(sweep_configuration(host, request), **where)
    trials = Trials(host, request, str(sweep_id))
    wandb.agent(sweep_id, function=trials.run_one, count=request.n_trials, **where)
    return trials.finish()


def sweep_configuration(host: SearchHooks, request: Request) -> dict[str, Any]:
    """What ``hp_space`` returns, with the metric and direction of the search."""
    assert host.hp_space is not None
    space = dict(host.hp_space(None))
    check_names(host.args, space.get("parameters", {}), host.model_init)
    metric = {**space.get("metric", {}), "goal": request.directions[0]}
    metric["name"] = request.options.get("metric", metric.get("name", "objective"))
    named = {"name": request.options["name"]} if "name" in request.options else {}
    return {**space, "metric": metric, **named}


class Trials:
    """The trials of one sweep that this process trains."""

    def __init__(self, host: SearchHooks, request: Request, sweep_id: str) -> None:
        self.host = host
        self.sweep_id = sweep_id
        self.states = CallbackStates(host)
        self.output_dir = str(host.args.output_dir)
        self.log = log.SearchLog(sweep_id, "wandb", request.directions, {})
        log.begin(self.output_dir, self.log, request.n_trials)
        host._reporter = self

    def run_one(self) -> None:
        """Train with the configuration of the current run of W&B, which is begun if there is none."""
        import wandb

        run = wandb.init() if wandb.run is None else wandb.run
        config = dict(run.config)
        row = log.TrialRow(run.id, f"run-{run.id}", "failed", params=config, hyperparameters=config)
        self.row = row
        self.states.restore()
        try:
            (objective,) = numbers(train_trial(self.host, config, None), 1)
            row.state, row.values = "complete", [objective]
            row.name = folder_of(self.host, config).name
            row.checkpoint = relative(self.output_dir, checkpoint_of(self.host, folder_of(self.host, config)))
            run.log({"objective": objective})
        except Exception as error:
            row.error = f"{type(error).__name__}: {error}"
            logger.warning("Trial %s failed: %s", run.id, row.error)
        release(self.host)
        self.log.rows[run.id] = row
        log.append(self.output_dir, self.sweep_id, row)
        ended, best = self.log.rows.values(), self.log.best()
        keep_trials = option(self.host.args, "keep_trials")
        tidy(self.output_dir, [each.name for each in ended], [each.name for each in best], keep_trials)

    def opened(self, host: SearchHooks, trial: Any) -> None:
        """Note the name of the trial, which is that of its folder."""
        self.row.name = folder_of(host, trial).name

    def report(self, host: SearchHooks, trial: Any, step: int, metrics: dict[str, float]) -> None:
        """Log the objective, by which the server may end the run early."""
        import wandb

        assert wandb.run is not None
        self.row.intermediate[str(step)] = float(host.objective)
        wandb.run.log({"objective": host.objective})

    def finish(self) -> BestRun:
        """Give the trainer the arguments of the best trial."""
        best = self.log.best()
        if not best:
            errors = [row.error for row in self.log.rows.values() if row.error]
            first = f" The first failed of: {errors[0]}" if errors else ""
            raise TrainingFailed(f"None of {len(self.log.rows)} trials ended well.{first}")
        apply_trial(self.host, best[0].hyperparameters)
        assert best[0].values is not None
        return BestRun(best[0].trial, best[0].values[0], best[0].params, self.sweep_id)
