"""A study of Optuna: opened or continued, its trials handed out one at a time, each with an owner.

Several processes may work on one study. Who runs a trial is written into it, so that a trial whose process died is
found by whoever comes next: it goes on from its own last whole checkpoint, or is marked as failed if it has none.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import time
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.checkpoint import get_last_checkpoint
from onward.checkpoint.owner import Owner, current
from onward.errors import UsageError, did_you_mean
from onward.search.request import Request

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

OWNER, FOLDER, ERROR = "onward:owner", "onward:folder", "onward:error"
HYPERPARAMETERS, CHECKPOINT = "onward:hyperparameters", "onward:checkpoint"

NOT_FOR_THE_STUDY = ("timeout", "n_jobs", "gc_after_trial", "catch", "callbacks")
FOR_THE_STUDY = ("storage", "sampler", "pruner", "study_name", "load_if_exists")
SQLITE = "sqlite:///"


@dataclass
class Job:
    """A trial to run."""

    trial: optuna.Trial
    checkpoint: str | None
    """Where it goes on from; None for a new one."""


def check_options(options: dict[str, Any]) -> None:
    """Raise `UsageError` for an option that neither the study nor the search takes."""
    known = (*FOR_THE_STUDY, *NOT_FOR_THE_STUDY)
    for name in options:
        if name not in known:
            raise UsageError(
                f"hyperparameter_search got the unknown option {name!r}; expected for Optuna one of "
                f"{', '.join(known)}.{did_you_mean(name, known)}"
            )


def open_study(request: Request, output_dir: str) -> optuna.Study:
    """Create the study, or open the one of this name in the storage.

    Raises:
        UsageError: it exists, and optimises in other directions.
    """
    import optuna

    options = {name: value for name, value in request.options.items() if name in FOR_THE_STUDY}
    storage = options.get("storage")
    if storage is not None:
        # Without a name each call would make another study, and none would ever be continued.
        options.setdefault("study_name", Path(os.path.abspath(output_dir)).name)
        options.setdefault("load_if_exists", True)
        if isinstance(storage, str | Path) and "://" not in str(storage):
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend

            Path(storage).parent.mkdir(parents=True, exist_ok=True)
            options["storage"] = JournalStorage(JournalFileBackend(str(storage)))
        elif str(storage).startswith(SQLITE):
            Path(str(storage).removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
    options["directions"] = request.directions
    study = optuna.create_study(**options)
    found = [each.name.lower() for each in study.directions]
    if found != request.directions:
        raise UsageError(
            f"The study {study.study_name!r} exists and has the directions {found}; got {request.directions}. Pass "
            "these, or another study_name."
        )
    return study


def log_name(study: optuna.Study, request: Request) -> str:
    """Name of the study in ``trials.jsonl``, where a study in memory is not one with an earlier one of its name."""
    if request.options.get("storage") is None and "study_name" in request.options:
        return f"{study.study_name} {uuid.uuid4().hex[:8]}"
    return str(study.study_name)


@contextlib.contextmanager
def heartbeat(study: optuna.Study, trial: optuna.Trial) -> Iterator[None]:
    """Record that a trial is alive while it runs, where the storage wants to know (``heartbeat_interval``)."""
    if _with_heartbeat(study) is None:
        yield
        return
    from optuna.storages._heartbeat import get_heartbeat_thread

    with get_heartbeat_thread(trial._trial_id, study._storage):
        yield


def _with_heartbeat(study: optuna.Study) -> Any:
    """The storage of the study if it takes heartbeats, else None."""
    storage = study._storage
    return storage if getattr(storage, "get_heartbeat_interval", lambda: None)() is not None else None


def stand_in(params: dict[str, Any], number: int) -> optuna.trial.FrozenTrial:
    """A trial with these parameters, for `hp_space` and `model_init`, that no study knows of."""
    import optuna

    return optuna.trial.FrozenTrial(
        number=number,
        state=optuna.trial.TrialState.RUNNING,
        value=None,
        datetime_start=datetime.datetime.now(),
        datetime_complete=None,
        params=dict(params),
        distributions={},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
        trial_id=number,
    )


class Trials:
    """Hands out the trials of a study until there are `n_trials` in total."""

    def __init__(self, study: optuna.Study, output_dir: str, n_trials: int, timeout: float | None) -> None:
        self.study = study
        self.output_dir = Path(output_dir)
        self.n_trials = n_trials
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._running: set[int] = set()
        self.stopped = False

    def next(self) -> Job | None:
        """Return a trial that a dead process left, or a new one; None when there is nothing more to do."""
        if self.stopped or (self._deadline is not None and time.monotonic() >= self._deadline):
            return None
        with self._only_one():
            job = self._adopt() or self._new()
            if job is not None:
                job.trial.set_user_attr(OWNER, current().token())
                self._running.add(job.trial.number)
        return job

    @contextlib.contextmanager
    def heed_stop(self) -> Iterator[None]:
        """Let ``study.stop()`` end the search, as samplers of a finite space, callbacks and trainers call it.

        Optuna's own `stop` knows only the loop of `Study.optimize`, which cannot go on with a trial.
        """

        def stop() -> None:
            self.stopped = True

        self.study.stop = stop  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self.study.stop

    def ended(self, trial: optuna.Trial) -> None:
        """Note that a trial is not being run any more."""
        self._running.discard(trial.number)

    def give_up(self, trial: optuna.Trial) -> None:
        """Leave a trial to whoever continues the study: this process was told to end."""
        trial.set_user_attr(OWNER, "")
        self.ended(trial)

    def _new(self) -> Job | None:
        from optuna.trial import TrialState

        begun = [each for each in self.study.get_trials(deepcopy=False) if each.state != TrialState.WAITING]
        sampler: Any = self.study.sampler
        if len(begun) >= self.n_trials or (hasattr(sampler, "is_exhausted") and sampler.is_exhausted(self.study)):
            return None
        if _with_heartbeat(self.study) is None:
            return Job(self.study.ask(), None)
        with warnings.catch_warnings():  # of heartbeats outside of Study.optimize: `heartbeat` records them
            warnings.filterwarnings("ignore", message="Heartbeat of storage")
            return Job(self.study.ask(), None)

    def _adopt(self) -> Job | None:
        import optuna
        from optuna.trial import TrialState

        storage = _with_heartbeat(self.study)
        silent = [] if storage is None else storage._get_stale_trial_ids(self.study._study_id)
        for frozen in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            owner = frozen.user_attrs.get(OWNER)
            if frozen.number in self._running or not (_is_left_alone(owner) or frozen._trial_id in silent):
                continue
            trial = optuna.Trial(self.study, frozen._trial_id)
            name = frozen.user_attrs.get(FOLDER)
            folder = None if name is None else self.output_dir / name
            checkpoint = get_last_checkpoint(folder) if folder is not None and folder.is_dir() else None
            if checkpoint is not None:
                logger.warning("Trial %d was cut off; it goes on from %s.", frozen.number, checkpoint)
                return Job(trial, checkpoint)
            reason = "its process ended before its first whole checkpoint"
            logger.warning("Trial %d was cut off and is marked as failed: %s.", frozen.number, reason)
            trial.set_user_attr(ERROR, reason)
            self.study.tell(trial, state=TrialState.FAIL)
        return None

    @contextlib.contextmanager
    def _only_one(self) -> Iterator[None]:
        """Keep other threads, and processes on this output folder, from taking the same trial or one too many."""
        try:
            import fcntl
        except ImportError:  # Windows: a second process may then start one trial too many
            yield
            return
        self.output_dir.mkdir(parents=True, exist_ok=True)
        with open(self.output_dir / ".search.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _is_left_alone(token: str | None) -> bool:
    """Whether the process that ran a trial is certainly not running it any more."""
    if token is None:
        return False  # somebody who does not sign trials: another program on the same study
    owner = Owner.from_token(token)
    return owner is None or owner == current() or owner.is_gone()
