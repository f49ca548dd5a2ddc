"""A search with Optuna.

    open or continue the study
    for each trial, on as many threads as `n_jobs`, or on all ranks together:
        take one                 from a dead process, else a new one
        train                    → evaluations are reported; the pruner may end it
        tell                     complete, pruned or failed with its error
        let go, write it down, delete the checkpoints that are not needed
    give the trainer the arguments of the best trial

In several processes of one run rank 0 samples, reports and tells; the others are told what to train and when it is
pruned.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, Any

from onward.arguments import option
from onward.checkpoint import ranks
from onward.errors import MissingDependency, TrainingFailed, UnknownArgument, UsageError
from onward.search import log
from onward.search.best import checkpoint_of, relative
from onward.search.optuna_study import (
    CHECKPOINT,
    ERROR,
    FOLDER,
    HYPERPARAMETERS,
    Job,
    Trials,
    check_options,
    heartbeat,
    log_name,
    open_study,
    stand_in,
)
from onward.search.tidying import tidy
from onward.search.trials import (
    CallbackStates,
    apply_trial,
    folder_of,
    hyperparameters_of,
    numbers,
    release,
    train_trial,
    twin_of,
)
from onward.types import BestRun

if TYPE_CHECKING:
    import optuna

    from onward.hooks.searching import SearchHooks
    from onward.search.request import Request

logger = logging.getLogger(__name__)

HOPELESS = (UnknownArgument, MissingDependency)
"""Errors that every other trial would end with, too."""


def run(host: SearchHooks, request: Request) -> BestRun | list[BestRun]:
    """Search with Optuna.

    Raises:
        UsageError: an option cannot work.
        TrainingFailed: no trial ended well.
    """
    check_options(request.options)
    n_jobs = int(request.options.get("n_jobs") or 1)
    if n_jobs != 1 and host.args.world_size > 1:
        raise UsageError(f"n_jobs got {n_jobs} in {host.args.world_size} processes; expected 1, they share each trial.")
    search = _Search(host, request)
    host._reporter = search
    if ranks.rank() > 0:
        search.follow(host)
        return search.finish(host)
    with search.trials.heed_stop():
        if n_jobs == 1:
            search.lead(host)
        else:
            search.share(host, os.cpu_count() or 1 if n_jobs < 0 else n_jobs)
    return search.finish(host)


class _Search:
    """One call of `hyperparameter_search`."""

    def __init__(self, host: SearchHooks, request: Request) -> None:
        import optuna

        self.request = request
        self.output_dir = str(host.args.output_dir)
        self.keep_trials = option(host.args, "keep_trials")
        catch = request.options.get("catch", Exception)
        self.catch: tuple[type[BaseException], ...] = catch if isinstance(catch, tuple) else (catch,)
        self.callbacks = list(request.options.get("callbacks") or ())
        self.pruned = optuna.TrialPruned
        self.states = CallbackStates(host)
        self.leads = ranks.rank() == 0
        self._failure: BaseException | None = None
        if self.leads:
            self.study = open_study(request, self.output_dir)
            self.trials = Trials(self.study, self.output_dir, request.n_trials, request.options.get("timeout"))
            self.log_name = log_name(self.study, request)
            log.begin(self.output_dir, log.SearchLog(self.log_name, "optuna", request.directions, {}), request.n_trials)

    # -- who runs trials

    def lead(self, host: SearchHooks) -> None:
        """Run trials until there are none left, and take the other ranks along."""
        try:
            while (job := self.trials.next()) is not None:
                self._run(host, job)
        except Exception as error:  # not for an interrupt or a signal to end: the other ranks leave by themselves
            ranks.from_first(f"{type(error).__name__}: {error}")
            raise
        ranks.from_first(None)

    def follow(self, host: SearchHooks) -> None:
        """Train what rank 0 says."""
        nothing: Any = None
        while (order := ranks.from_first(nothing)) is not None:
            if isinstance(order, str):
                raise TrainingFailed(f"The search ended on the first rank: {order}")
            params, number, checkpoint = order
            self._train(host, stand_in(params, number), checkpoint)

    def share(self, host: SearchHooks, n_jobs: int) -> None:
        """Run trials on threads, each with a trainer of its own."""
        threads = [
            threading.Thread(target=self._work, args=(twin_of(host),), name=f"trials-{number}")
            for number in range(n_jobs)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        finally:
            self.trials.stopped = True  # interrupted: what runs may end, nothing new begins
        if self._failure is not None:
            raise self._failure

    def _work(self, twin: SearchHooks) -> None:
        try:
            while (job := self.trials.next()) is not None:
                self._run(twin, job)
        except BaseException as error:
            self._failure = error
            self.trials.stopped = True

    # -- one trial

    def _run(self, host: SearchHooks, job: Job) -> None:
        """Run a trial and tell the study how it ended."""
        trial = job.trial
        values: list[float] = []
        try:
            with heartbeat(self.study, trial):
                outcome = self._announce(host, job)
                if outcome is None:
                    outcome, values = self._train(host, trial, job.checkpoint)
        except BaseException:
            self.trials.give_up(trial)  # an interrupt, or a signal to end: to be continued
            raise
        self._tell(host, trial, outcome, values)
        self.trials.ended(trial)
        if outcome is not None and not isinstance(outcome, self.pruned):
            fatal = isinstance(outcome, HOPELESS) or not isinstance(outcome, self.catch)
            if fatal:
                raise outcome
        if self.request.options.get("gc_after_trial"):
            import gc

            gc.collect()

    def _announce(self, host: SearchHooks, job: Job) -> Exception | None:
        """Sample, and tell the other ranks what to train; returns what ended the trial before that."""
        if host.args.world_size == 1:
            return None
        assert host.hp_space is not None
        try:
            host.hp_space(job.trial)  # samples, so that the other ranks get all values at once
        except Exception as error:
            return error
        ranks.from_first((job.trial.params, job.trial.number, job.checkpoint))
        return None

    def _train(self, host: SearchHooks, trial: Any, checkpoint: str | None) -> tuple[Exception | None, list[float]]:
        """Train a trial; returns what ended it (None if nothing did) and its objectives, the same on all ranks."""
        outcome: Exception | None = None
        values: list[float] = []
        self.states.restore()
        try:
            values = numbers(train_trial(host, trial, checkpoint), len(self.request.directions))
        except Exception as error:
            outcome = error
        if outcome is None and self.leads:
            found = checkpoint_of(host, folder_of(host, trial))
            trial.set_user_attr(CHECKPOINT, relative(self.output_dir, found))
        if outcome is not None:
            outcome.__traceback__ = None  # its frames hold the model
        release(host)
        others = ranks.everyone(None if outcome is None else f"{type(outcome).__name__}: {outcome}")
        if outcome is None and any(others):
            outcome = TrainingFailed(next(each for each in others if each))
        return outcome, values

    def _tell(self, host: SearchHooks, trial: optuna.Trial, outcome: Exception | None, values: list[float]) -> None:
        from optuna.trial import TrialState

        if outcome is None:
            self.study.tell(trial, values)
        elif isinstance(outcome, self.pruned):
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            trial.set_user_attr(ERROR, f"{type(outcome).__name__}: {outcome}")
            logger.warning("Trial %d failed: %s: %s", trial.number, type(outcome).__name__, outcome)
            self.study.tell(trial, state=TrialState.FAIL)
        frozen = self.study.trials[trial.number]
        self._write_down(frozen)
        for callback in self.callbacks:
            callback(self.study, frozen)
        tidy(self.output_dir, self._folders(finished=True), self._folders(finished=False), self.keep_trials)

    def _folders(self, finished: bool) -> list[str]:
        """Folders of all trials that ended, or of the best ones only."""
        trials = [each for each in self.study.get_trials(deepcopy=False) if each.state.is_finished()]
        if not finished:
            trials = self._best()
        return [each.user_attrs[FOLDER] for each in trials if FOLDER in each.user_attrs]

    def _best(self) -> list[optuna.trial.FrozenTrial]:
        from optuna.trial import TrialState

        if not self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            return []
        return list(self.study.best_trials) if self.request.is_multi_objective else [self.study.best_trial]

    def _write_down(self, frozen: optuna.trial.FrozenTrial) -> None:
        import optuna

        state = {"COMPLETE": "complete", "PRUNED": "pruned"}.get(frozen.state.name, "failed")
        to_json = optuna.distributions.distribution_to_json
        log.append(
            self.output_dir,
            self.log_name,
            log.TrialRow(
                trial=str(frozen.number),
                name=frozen.user_attrs.get(FOLDER, f"run-{frozen.number}"),
                state=state,
                values=frozen.values,
                params=frozen.params,
                hyperparameters=frozen.user_attrs.get(HYPERPARAMETERS, frozen.params),
                distributions={name: to_json(each) for name, each in frozen.distributions.items()},
                intermediate={str(step): value for step, value in frozen.intermediate_values.items()},
                error=frozen.user_attrs.get(ERROR),
                checkpoint=frozen.user_attrs.get(CHECKPOINT),
                began=frozen.datetime_start.timestamp() if frozen.datetime_start else None,
                ended=frozen.datetime_complete.timestamp() if frozen.datetime_complete else None,
            ),
        )

    # -- what a trial tells while it trains

    def opened(self, host: SearchHooks, trial: Any) -> None:
        """Write into the study where the trial lives and what it is made of."""
        if not self.leads:
            return
        name = folder_of(host, trial).name
        others = self.study.get_trials(deepcopy=False)
        if any(each.user_attrs.get(FOLDER) == name and each.number != trial.number for each in others):
            raise UsageError(
                f"hp_name gave {name!r} for two trials; expected a different name for each: use its number."
            )
        if FOLDER not in trial.user_attrs:
            # A new trial: what lies there is of an earlier search, and would be taken for this trial's.
            tidy(self.output_dir, [name], [], "none")
        trial.set_user_attr(FOLDER, name)
        trial.set_user_attr(HYPERPARAMETERS, log.jsonable(hyperparameters_of(host, trial)))

    def report(self, host: SearchHooks, trial: Any, step: int, metrics: dict[str, float]) -> None:
        """Report an evaluation to the study; every rank raises `TrialPruned` if the pruner says so."""
        if self.request.is_multi_objective:
            return  # Optuna prunes only where there is one objective
        prune = False
        if self.leads:
            (host.objective,) = numbers(host.objective, 1)
            if step not in self.study.trials[trial.number].intermediate_values:
                trial.report(host.objective, step)  # a trial that goes on may evaluate a step again
            prune = trial.should_prune()
        if ranks.from_first(prune):
            host.callback_handler.on_train_end(host.args, host.state, host.control)
            raise self.pruned(f"at step {step}")

    # -- the end

    def finish(self, host: SearchHooks) -> BestRun | list[BestRun]:
        """Give the trainer the best trial's arguments; return the best run or runs, on every rank."""
        found = None
        if self.leads:
            found = [
                (each.number, each.values, each.params, each.user_attrs.get(HYPERPARAMETERS)) for each in self._best()
            ]
        found = ranks.from_first(found)
        if not found:
            raise TrainingFailed(ranks.from_first(self._what_went_wrong() if self.leads else ""))
        number, _, params, hyperparameters = found[0]
        # As they were applied: the space may have been another one when this trial was sampled.
        apply_trial(host, stand_in(params, number) if hyperparameters is None else hyperparameters)
        summary = self.study if self.leads else None
        if self.request.is_multi_objective:
            return [BestRun(str(number), values, params, summary) for number, values, params, _ in found]
        return BestRun(str(number), found[0][1][0], params, summary)

    def _what_went_wrong(self) -> str:
        trials = self.study.trials
        errors = [each.user_attrs[ERROR] for each in trials if ERROR in each.user_attrs]
        pruned = sum(each.state.name == "PRUNED" for each in trials)
        first = f" The first failed of: {errors[0]}" if errors else ""
        return f"None of {len(trials)} trials ended well: {len(errors)} failed, {pruned} were pruned.{first}"
