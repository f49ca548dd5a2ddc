"""A trial of Ray Tune, in the worker process that Ray started for it.

The trainer is made anew from a `Recipe`: its class, `model_init`, arguments, data sets (which come out of Ray's object
store) and the functions and callbacks that it was given. Nothing of the trainer that asked for the search is pickled.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.callbacks import TrainerCallback
from onward.errors import UsageError
from onward.search.trials import numbers, release, train_trial

if TYPE_CHECKING:
    from onward.hooks.searching import SearchHooks

CONSTRUCTOR = (
    "model_init", "data_collator", "processing_class", "compute_loss_func", "compute_metrics",
    "preprocess_logits_for_metrics", "optimizer_cls_and_kwargs",
)  # fmt: skip
DATA = ("train_dataset", "eval_dataset")


@dataclass
class Recipe:
    """What it takes to make a trainer like the one that asked for the search, its data sets apart."""

    trainer_class: type[Any]
    args: Any
    parts: dict[str, Any]
    callbacks: list[Any]
    search: dict[str, Any] = field(default_factory=dict)
    """`hp_name`, `compute_objective`, `hp_search_backend`."""

    def make(self, data: dict[str, Any]) -> SearchHooks:
        """Make the trainer."""
        given = {name: value for name, value in {**self.parts, **data}.items() if value is not None}
        trainer: SearchHooks = self.trainer_class(args=copy.copy(self.args), callbacks=self.callbacks, **given)
        for name, value in self.search.items():
            setattr(trainer, name, value)
        return trainer


def recipe_of(host: SearchHooks) -> Recipe:
    """Write down how to make a trainer like `host`.

    Raises:
        UsageError: the class of the trainer has a constructor of another form.
    """
    parts = {name: getattr(host, name) for name in CONSTRUCTOR}
    taken = inspect.signature(type(host).__init__).parameters
    if not any(each.kind is each.VAR_KEYWORD for each in taken.values()):
        needed = [name for name in (*CONSTRUCTOR, *DATA, "args", "callbacks") if getattr(host, name, None) is not None]
        if lacking := [name for name in needed if name not in taken]:
            raise UsageError(
                f"Ray makes a {type(host).__name__} in each worker, but its constructor does not take "
                f"{', '.join(lacking)}. Take Trainer's keywords (**kwargs will do), or search with backend='optuna'."
            )
    args = copy.copy(host.args)
    args.output_dir = os.path.abspath(str(args.output_dir))  # a worker has another working directory
    if args.save_total_limit is None:
        args.save_total_limit = 1  # Ray copies each checkpoint into its storage, and keeps as many as it is told there
    return Recipe(
        type(host),
        args,
        parts,
        [each for each in host.callback_handler.callbacks if not _is_made_by_the_constructor(each)],
        {
            "hp_name": host.hp_name,
            "compute_objective": host.compute_objective,
            "hp_search_backend": host.hp_search_backend,
        },
    )


def check_can_be_sent(recipe: Recipe) -> None:
    """Find what cannot be sent to a worker before anything starts, and name it.

    Raises:
        UsageError: something cannot be pickled.
    """
    from ray import cloudpickle

    callbacks = {f"callbacks: {type(each).__name__}": each for each in recipe.callbacks}
    search = {name: value for name, value in recipe.search.items() if callable(value)}
    parts = {"args": recipe.args, "the class of the trainer": recipe.trainer_class, **recipe.parts, **callbacks}
    for name, part in {**parts, **search}.items():
        try:
            cloudpickle.dumps(part)  # type: ignore[no-untyped-call]
        except Exception as error:
            raise UsageError(
                f"Ray sends {name} to its workers, and it cannot be pickled: {error}. Make what it holds (locks, open "
                "files, connections) inside of it when it is called, or search with backend='optuna'."
            ) from error


def _is_made_by_the_constructor(callback: Any) -> bool:
    module = type(callback).__module__
    ours = module.startswith("onward.callbacks.") and type(callback).__name__ != "EarlyStoppingCallback"
    return ours or module.startswith(("onward.sinks.", "transformers.integrations."))


def run_trial(config: dict[str, Any], recipe: Recipe, **data: Any) -> None:
    """Train one trial: what Ray calls in the worker, again for every pause and exploit."""
    import ray.tune

    host = recipe.make(data)
    reporter = RayReporter()
    host._reporter = reporter
    host.add_callback(reporter)
    checkpoint = ray.tune.get_checkpoint()
    with contextlib.ExitStack() as stack:
        path = None
        if checkpoint is not None:
            path = stack.enter_context(checkpoint.as_directory())
            # Another trial's checkpoint may have been made with another batch size or seed.
            host.args.allow_resume_mismatch = True
        (objective,) = numbers(train_trial(host, dict(config), path), 1)
    reporter.flush()
    if not reporter.reported:
        ray.tune.report({"objective": objective, "step": host.state.global_step})
    folder = Path(host._get_output_dir(config))
    release(host)
    shutil.rmtree(folder, ignore_errors=True)  # Ray has its own copies in its storage


class RayReporter(TrainerCallback):
    """Hands evaluations to Ray, together with the checkpoint of the same step if there is one."""

    def __init__(self) -> None:
        self.reported = False
        self._open: dict[str, float] | None = None

    def opened(self, host: SearchHooks, trial: Any) -> None:
        """Nothing to note: Ray knows its trials."""

    def report(self, host: SearchHooks, trial: Any, step: int, metrics: dict[str, float]) -> None:
        """Report an evaluation; if a save is due it follows within the same step, and the report with it."""
        self.flush()
        (host.objective,) = numbers(host.objective, 1)
        self._open = {**metrics, "objective": host.objective, "step": step}
        if not host.control.should_save:
            self.flush()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report what waits, with the checkpoint that was just written (a listener makes saves synchronous)."""
        if self._open is not None:
            folder = Path(args.output_dir) / state.trial_name / f"checkpoint-{state.global_step}"
            self.flush(folder if folder.is_dir() else None)

    def flush(self, checkpoint: Path | None = None) -> None:
        """Report what waits. Ray may end this process or thread in here."""
        if self._open is None:
            return
        import ray.tune

        metrics, self._open = self._open, None
        self.reported = True
        ray.tune.report(metrics, checkpoint=checkpoint and ray.tune.Checkpoint.from_directory(str(checkpoint)))
