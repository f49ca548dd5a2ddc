"""Hooks about hyperparameter search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from onward.hooks.base import TrainerBase
from onward.types import BestRun, HPSearchBackend

if TYPE_CHECKING:
    from torch import nn

    from onward.search.applying import Overrides
    from onward.search.request import Reporter


class SearchHooks(TrainerBase):
    """`hyperparameter_search`, `load_best_trial`, applying a trial's hyperparameters and reporting back."""

    _overrides: Overrides | None = None
    """What the current trial changed in the arguments."""
    _reporter: Reporter | None = None
    """Where evaluations go while a search runs."""

    def hyperparameter_search(
        self,
        hp_space: Callable[[Any], dict[str, Any]] | None = None,
        compute_objective: Callable[[dict[str, float]], Any] | None = None,
        n_trials: int = 20,
        direction: str | list[str] = "minimize",
        backend: str | HPSearchBackend | None = None,
        hp_name: Callable[[Any], str] | None = None,
        **kwargs: Any,
    ) -> BestRun | list[BestRun]:
        """Train once for each of `n_trials` sets of hyperparameters and say which was best.

        Each trial has a new model from ``model_init``, and a folder of its own in ``output_dir`` for checkpoints. A
        trial that raises is recorded as failed and the search goes on. Afterwards the arguments are those of the best
        trial, and `load_best_trial` loads its model.

        Args:
            hp_space: ``optuna.Trial -> {argument: value}``; for Ray Tune and W&B ``None -> their space``. Default:
                learning rate, epochs, seed and batch size.
            compute_objective: from the metrics of an evaluation to the number to optimise (numbers, if there are
                several directions). Default: the sum of all metrics, or the loss where there is no other.
            n_trials: trials in total. A study that is continued (a storage, the same name) is finished to this number.
            direction: ``minimize`` or ``maximize``, or a list with one for each objective.
            backend: ``optuna``, ``ray`` or ``wandb``. Default: the first one that is installed.
            hp_name: name of a trial, and of its folder. Default: ``run-`` and its number.
            kwargs: options of the backend: see docs/search.md.

        Returns:
            The best run; with several directions a list, one for each trial that no other beats in everything.

        Raises:
            UsageError: there is no ``model_init``, or an option cannot work.
            MissingDependency: the backend is not installed.
            TrainingFailed: no trial ended well.
        """
        from onward.search import run_search
        from onward.search.request import Request

        request = Request(hp_space, compute_objective, n_trials, direction, hp_name, kwargs)
        return run_search(self, backend, request)

    def load_best_trial(self, run_id: str | None = None) -> nn.Module:
        """Load the model of the best trial of the search in ``output_dir`` (also one that another process ran).

        Args:
            run_id: another trial, by the ``run_id`` of its `BestRun`.

        Returns:
            The model, which is now ``self.model``; the arguments are the trial's.

        Raises:
            NoCheckpoint: the trial has no checkpoint, or there was no search.
        """
        from onward.search.best import load_best_trial

        return load_best_trial(self, run_id)

    def _hp_search_setup(self, trial: Any) -> None:
        """Apply the hyperparameters of a trial to the arguments."""
        self._trial = trial
        if trial is not None:
            from onward.search.trials import open_trial

            open_trial(self, trial)

    def _report_to_hp_search(self, trial: Any, step: int, metrics: Mapping[str, float]) -> None:
        """Report the metrics of an evaluation; raises `optuna.TrialPruned` where the search gives the trial up."""
        if self._reporter is not None and trial is not None and self.compute_objective is not None:
            self.objective = self.compute_objective(dict(metrics))
            self._reporter.report(self, trial, step, dict(metrics))

    def _trial_name(self) -> str | None:
        """Name of the current trial; None where there is none."""
        if self._trial is None:
            return None
        from onward.search.trials import name_of

        return name_of(self, self._trial)

    def _retune(self, checkpoint: str) -> None:
        """Let a trial's hyperparameters win over those in the optimizer's state of another trial's checkpoint."""
        if self._trial is not None:
            from onward.search.retuning import retune

            retune(self, checkpoint)
