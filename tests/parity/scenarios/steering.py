"""Callbacks and subclasses that steer: flags in every event, what an event is handed, which hook is called when."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..models import Regression, points
from ..record import EVENTS, FLAGS, exact
from .methods import Shared
from .registry import scenario

STEERABLE = [event for event in EVENTS if event not in ("on_init_end", "on_predict", "on_push_begin")]
WITHIN_A_STEP = ("on_epoch_begin", "on_step_begin", "on_substep_end")
"""Where an epoch that ends leaves gradients, which onward drops: see docs/differences.md."""
LOADERS = ("train_dataloader", "eval_dataloader")
HANDED = ("model", "processing_class", "optimizer", "lr_scheduler")
STATE = (
    "epoch", "global_step", "max_steps", "logging_steps", "eval_steps", "save_steps", "train_batch_size",
    "num_train_epochs", "num_input_tokens_seen", "total_flos", "best_metric", "best_global_step",
    "is_local_process_zero", "is_world_process_zero", "is_hyper_param_search", "trial_params",
)  # fmt: skip
INTERVALS = {
    "num_train_epochs": 2, "per_device_train_batch_size": 4, "logging_steps": 3, "eval_strategy": "steps",
    "eval_steps": 4, "save_strategy": "steps", "save_steps": 4,
}  # fmt: skip


def steered(stage: Any, event: str, flag: str, accumulation: int, step: int) -> Any:
    """A run in which `flag` is set once, at the first `event` from `step` on."""

    def heard(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step >= step and not self.done:
            self.done = True
            setattr(control, flag, True)
        return control

    callback = type("Steering", (stage.lib.TrainerCallback,), {event: heard, "done": False})()
    changes = {**INTERVALS, "output_dir": str(stage.folder / f"{event}-{flag}-{accumulation}")}
    parts = {"callbacks": [callback], "eval_dataset": points(8, seed=1)}
    stage.recorder = type(stage.recorder)()
    return stage.train(Regression(), points(14), parts, gradient_accumulation_steps=accumulation, **changes)


@scenario
def flags_in_every_event(stage: Any) -> Any:
    """Each flag set in each event, in the middle of a run of two micro-batches a step."""
    return {
        f"{event} {flag}": steered(stage, event, flag, 2, 2)
        for event in STEERABLE
        for flag in FLAGS
        if flag != "should_epoch_stop" or event not in WITHIN_A_STEP
    }


@scenario
def flags_before_the_first_step(stage: Any) -> Any:
    """Also who asks for the end before there was a step gets one."""
    events = ("on_train_begin", "on_epoch_begin", "on_step_begin", "on_pre_optimizer_step")
    return {f"{event} {flag}": steered(stage, event, flag, 1, 0) for event in events for flag in FLAGS}


class Watch:
    """What the events of a trainer are handed, and whether that is what the trainer has."""

    def __init__(self, stage: Any) -> None:
        """`callback` is to be put among those of `trainer`."""
        self.seen: list[Any] = []
        self.trainer: Any = None
        members = {event: self.listener(event) for event in EVENTS}
        self.callback = type("Watching", (stage.lib.TrainerCallback,), members)()

    def listener(self, event: str) -> Any:
        """Writes down what it is handed."""

        def heard(_: Any, args: Any, state: Any, control: Any, **handed: Any) -> None:
            has = self.trainer
            subject = {"args": args, "state": state, "control": control, **{name: handed[name] for name in HANDED}}
            loaders = {name: None if handed[name] is None else len(handed[name]) for name in LOADERS}
            self.seen.append(
                [
                    event,
                    has and [name for name, value in subject.items() if value is not getattr(has, name)],
                    [name for name, value in handed.items() if value is None],
                    exact({**loaders, **{name: getattr(state, name) for name in STATE}}),
                    [len(state.log_history), sorted(state.stateful_callbacks), has and has.is_in_train],
                    [handed["model"].training, sorted(name for name in ("logs", "metrics") if name in handed)],
                ]
            )

        return heard


def watched(stage: Any, model: Any = None, kind: Any = None, parts: Any = None, **changes: Any) -> tuple[Any, Watch]:
    """A trainer, and the watch over what its events are handed."""
    watch = Watch(stage)
    args = stage.arguments(**{**INTERVALS, **changes})
    model = Regression(dropout=0.1) if model is None and not parts else model
    data = {"train_dataset": points(18), "eval_dataset": points(8, seed=1), **(parts or {})}
    watch.trainer = (kind or stage.lib.Trainer)(model=model, args=args, callbacks=[watch.callback], **data)
    return watch.trainer, watch


@scenario
def handed_to_callbacks(stage: Any) -> Any:
    """In and around a run: evaluations of other data, a second `train`, a resume."""
    trainer, watch = watched(stage, load_best_model_at_end=True)
    trainer.evaluate()
    trainer.evaluate(points(13, seed=2))
    trainer.predict(points(5, seed=3))
    trainer.train()
    trainer.evaluate({"few": points(4), "many": points(20)})
    trainer.args.num_train_epochs = 3
    trainer.train()
    again, later = watched(stage)
    again.train(resume_from_checkpoint=str(stage.folder / "run" / "checkpoint-4"))
    return {"first": watch.seen, "resumed": later.seen}


@scenario
def handed_to_callbacks_of_a_new_model(stage: Any) -> Any:
    """Each `train` makes a model, an optimizer and a schedule anew; then the user makes them."""
    trainer, watch = watched(stage, parts={"model_init": lambda: Regression(dropout=0.1)}, eval_on_start=True)
    trainer.train()
    trainer.train()
    own, other = watched(stage, eval_strategy="epoch")
    own.create_optimizer()
    own.evaluate()
    own.create_optimizer_and_scheduler(10)
    own.evaluate()
    own.train()
    return {"made by the trainer": watch.seen, "made by the user": other.seen}


@scenario
def handed_to_callbacks_what_was_replaced(stage: Any) -> Any:
    """Callbacks that put other arguments, another control and another model in place."""
    import copy

    class Replacing(stage.lib.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.args = copy.copy(trainer.args)
            trainer.args.max_grad_norm = 0.1

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            return stage.lib.TrainerControl(should_log=True, should_training_stop=state.global_step == 7)

    trainer, watch = watched(stage)
    trainer.add_callback(Replacing())
    trainer.model = Regression(dropout=0.2)
    trainer.evaluate()
    trainer.train()
    return {"seen": watch.seen, "history": exact([line.get("loss") for line in trainer.state.log_history])}


@scenario
def hook_behind_every_step(stage: Any) -> Any:
    """`_maybe_log_save_evaluate` is called also where nothing is to be logged."""

    class Own(stage.lib.Trainer):  # type: ignore[misc, name-defined]
        def _maybe_log_save_evaluate(
            self, tr_loss: Any, grad_norm: Any, model: Any, trial: Any, epoch: Any, *rest: Any, **named: Any
        ) -> None:
            called.append(exact([self.state.global_step, tr_loss, grad_norm, epoch, named.get("learning_rate")]))
            if self.state.global_step % 2:
                self.log({"gathered": float(tr_loss)})
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, epoch, *rest, **named)

    called: list[Any] = []
    args = stage.arguments(**INTERVALS)
    parts = {"train_dataset": points(18), "eval_dataset": points(8, seed=1)}
    return {**stage.finish(stage.trainer(Regression(dropout=0.1), args, Own, **parts)), "called": called}


class Sized(Shared):
    """A stream that says how long it is."""

    def __init__(self, rows: list[dict[str, Any]], size: int | None = None) -> None:
        """`size`: what it says, if that is not true."""
        super().__init__(rows)
        self.size = len(rows) if size is None else size

    def __len__(self) -> int:
        """As it says."""
        return self.size


@scenario
def stream_with_a_length(stage: Any) -> Any:
    """Trained by epochs, in even and uneven steps; the number of samples and batches."""
    found = {}
    for accumulation in (1, 2, 4):
        for size in (16, 18):
            changes = {"output_dir": str(stage.folder / f"{accumulation}-{size}"), "num_train_epochs": 2.5}
            args = stage.arguments(per_device_train_batch_size=4, gradient_accumulation_steps=accumulation, **changes)
            stage.recorder = type(stage.recorder)()
            trainer = stage.trainer(Regression(dropout=0.1), args, train_dataset=Sized(points(size)))
            loader = trainer.get_train_dataloader()
            counts = [len(loader), trainer.num_examples(loader)]
            found[f"{size} in steps of {accumulation}"] = {**stage.finish(trainer), "counts": counts}
    return found


class Counted(nn.Module):
    """A regression that divides its loss by the number of items where it is told; `mode` says how it takes it."""

    def __init__(self) -> None:
        """Weights come from a fixed seed."""
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)
        self.told: list[Any] = []

    def score(self, x: torch.Tensor, labels: torch.Tensor, items: Any) -> dict[str, torch.Tensor]:
        """x: (batch, 4); labels: (batch,); `items` divides the sum of errors, or None for their mean."""
        self.told.append(exact(items))
        logits = self.layer(x).squeeze(-1)
        total = nn.functional.mse_loss(logits, labels, reduction="sum")
        return {"loss": total / (len(labels) if items is None else items), "logits": logits}


class ByKeywords(Counted):
    """Takes whatever comes."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor, **others: Any) -> dict[str, torch.Tensor]:
        """See `score`."""
        return self.score(x, labels, others.get("num_items_in_batch"))


class ByName(Counted):
    """Names the argument, which transformers does not look for."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor, num_items_in_batch: Any = None) -> dict[str, torch.Tensor]:
        """See `score`."""
        return self.score(x, labels, num_items_in_batch)


def counted() -> Iterator[Counted]:
    """Each way to take the number of items."""
    yield from (ByKeywords(), ByName())
    yield type("Told", (ByName,), {"accepts_loss_kwargs": True})()
    yield type("Refusing", (ByKeywords,), {"accepts_loss_kwargs": False})()


@scenario
def models_that_are_told_the_number_of_items(stage: Any) -> Any:
    """By keyword, by name, and by an attribute that says yes or no; with and without accumulation."""
    found = {}
    for accumulation in (1, 3):
        for model in counted():
            name = f"{type(model).__name__} {accumulation}"
            changes = {**INTERVALS, "output_dir": str(stage.folder / name)}
            stage.recorder = type(stage.recorder)()
            parts = {"eval_dataset": points(8, seed=1)}
            record = stage.train(model, points(18), parts, gradient_accumulation_steps=accumulation, **changes)
            found[name] = {**record, "told": model.told}
    return found


@scenario
def hook_that_makes_every_loader(stage: Any) -> Any:
    """`_get_dataloader` for training, evaluation and prediction."""

    class Own(stage.lib.Trainer):  # type: ignore[misc, name-defined]
        def _get_dataloader(self, dataset: Any, description: str, batch_size: int, *rest: Any, **named: Any) -> Any:
            asked.append([len(dataset), description, batch_size, len(rest), sorted(named), named.get("dataloader_key")])
            return super()._get_dataloader(dataset, description, batch_size, *rest, **named)

    asked: list[Any] = []
    args = stage.arguments(eval_strategy="epoch", num_train_epochs=2)
    trainer = stage.trainer(Regression(), args, Own, train_dataset=points(18), eval_dataset=points(8, seed=1))
    record = stage.finish(trainer)
    trainer.predict(points(5))
    return {**record, "asked": asked}
