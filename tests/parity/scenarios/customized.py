"""Users who pass in or override a piece."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..compare import measured
from ..models import Regression, classifier, gpt2, labelled, llama, pad, points, ragged, tokens
from ..record import EVENTS
from .registry import scenario


@scenario
def optimizers_passed_in(stage: Any) -> Any:
    """A ready optimizer and a ready schedule."""
    model = llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    return stage.train(model, tokens(), {"optimizers": (optimizer, schedule)})


@scenario
def optimizer_passed_in_alone(stage: Any) -> Any:
    """The schedule is made for it."""
    model = llama()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    return stage.train(model, tokens(), {"optimizers": (optimizer, None)}, warmup_steps=2)


@scenario
def optimizer_class(stage: Any) -> Any:
    """`optimizer_cls_and_kwargs` beats `optim`."""
    choice = (torch.optim.NAdam, {"lr": 3e-3, "betas": (0.8, 0.9)})
    return stage.train(llama(), tokens(), {"optimizer_cls_and_kwargs": choice}, weight_decay=0.1)


@scenario
def loss_function(stage: Any) -> Any:
    """`compute_loss_func` normalises by the items of the whole step."""

    def loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        logits = outputs["logits"][:, :-1].flatten(0, 1).float()
        total = nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")
        return total / num_items_in_batch

    parts = {"data_collator": pad, "compute_loss_func": loss, "eval_dataset": ragged(8, seed=1)}
    changes = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    return stage.train(llama(), ragged(), parts, num_train_epochs=2, **changes)


@scenario
def loss_overridden(stage: Any) -> Any:
    """The recipe of the documentation: a weighted loss from the logits."""

    class Weighted(stage.lib.Trainer):  # type: ignore[misc, name-defined]
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            labels = inputs.pop("labels")
            outputs = model(**inputs)
            loss = nn.functional.cross_entropy(outputs.logits, labels, weight=torch.tensor([1.0, 2.0, 3.0]))
            return (loss, outputs) if return_outputs else loss

    args = stage.arguments(per_device_train_batch_size=4, gradient_accumulation_steps=2, eval_strategy="epoch")
    parts = {"train_dataset": labelled(), "eval_dataset": labelled(9, seed=1)}
    return stage.finish(stage.trainer(classifier(), args, Weighted, **parts))


@scenario
def loss_overridden_and_logged(stage: Any) -> Any:
    """As TRL does: `compute_loss` calls super, `log` adds what was gathered since the last line."""

    class Chatty(stage.lib.Trainer):  # type: ignore[misc, name-defined]
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            self.gathered = [*getattr(self, "gathered", []), float(loss.detach())]
            return loss

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            logs["gathered"] = sum(getattr(self, "gathered", []))
            self.gathered = []
            super().log(logs, start_time)

    args = stage.arguments(gradient_accumulation_steps=2, logging_steps=2)
    return stage.finish(stage.trainer(gpt2(), args, Chatty, train_dataset=tokens()))


@scenario
def step_overridden(stage: Any) -> Any:
    """`training_step` around super, and one that counts `_prepare_inputs`."""

    class Own(stage.lib.Trainer):  # type: ignore[misc, name-defined]
        prepared = 0

        def _prepare_inputs(self, inputs: Any) -> Any:
            self.prepared += 1
            return super()._prepare_inputs(inputs)

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            inputs = {**inputs, "x": inputs["x"] * 2}
            return super().training_step(model, inputs, num_items_in_batch)

    args = stage.arguments(per_device_train_batch_size=4, gradient_accumulation_steps=3)
    trainer = stage.trainer(Regression(dropout=0.1), args, Own, train_dataset=points())
    return {**stage.finish(trainer), "prepared": trainer.prepared}


@scenario
def step_written_by_hand(stage: Any) -> Any:
    """A `training_step` that does all of its work, with the narrow signature."""

    class Own(stage.lib.Trainer):  # type: ignore[misc, name-defined]
        def training_step(self, model: Any, inputs: Any, *_: Any) -> Any:
            model.train()
            loss = self.compute_loss(model, self._prepare_inputs(inputs)) * 0.5
            self.accelerator.backward(loss)
            return loss.detach()

    return stage.finish(stage.trainer(Regression(), stage.arguments(), Own, train_dataset=points()))


@scenario
def optimizer_and_schedule_overridden(stage: Any) -> Any:
    """`create_optimizer` and `create_scheduler` in a subclass."""

    class Own(stage.lib.Trainer):  # type: ignore[misc, name-defined]
        def create_optimizer(self) -> Any:
            if self.optimizer is None:
                groups = [{"params": list(self.model.parameters()), "lr": self.args.learning_rate * 3}]
                self.optimizer = torch.optim.Adam(groups)
            return self.optimizer

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=num_training_steps // 3)
            return self.lr_scheduler

    return stage.finish(stage.trainer(llama(), stage.arguments(), Own, train_dataset=tokens()))


@scenario
def evaluation_overridden(stage: Any) -> Any:
    """`prediction_step` and `evaluate` in a subclass."""

    class Own(stage.lib.Trainer):  # type: ignore[misc, name-defined]
        def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
            loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
            return loss * 2, logits, labels

        def evaluate(self, *args: Any, **kwargs: Any) -> Any:
            metrics = super().evaluate(*args, **kwargs)
            self.log({"eval_twice": metrics["eval_loss"] * 2})
            return metrics

    args = stage.arguments(eval_strategy="epoch", num_train_epochs=2)
    parts = {"train_dataset": points(), "eval_dataset": points(9, seed=1)}
    return stage.finish(stage.trainer(Regression(), args, Own, **parts))


@scenario
def loss_scaled_by_the_user(stage: Any) -> Any:
    """The class attribute that says whether a loss is already normalised."""

    class Own(stage.lib.Trainer):  # type: ignore[misc, name-defined]
        loss_is_scaled_for_ga = False

    args = stage.arguments(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    return stage.finish(stage.trainer(llama(), args, Own, train_dataset=tokens()))


def transformers_callback() -> Any:
    """A callback as integrations write it: against transformers, whichever library trains."""
    from transformers import TrainerCallback

    class Steering(TrainerCallback):  # type: ignore[misc]
        heard: list[str]

        def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.heard = ["on_init_end"]

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            self.heard.append(f"on_log {state.global_step} {sorted(key for key in logs if not measured(key))}")

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            if state.global_step == 2:
                control.should_evaluate = True
            if state.global_step == 3:
                control.should_save = True
            if state.global_step == 5:
                control.should_epoch_stop = True
            if state.global_step == 8:
                control.should_training_stop = True
            return control

        def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> Any:
            self.heard.append(f"on_epoch_end {type(model).__name__} {sorted(kwargs)}")
            control.should_log = True
            return control

    return Steering()


@scenario
def steered_by_a_callback(stage: Any) -> Any:
    """Flags set by a `transformers.TrainerCallback` evaluate, save, end an epoch and end the run."""
    callback = transformers_callback()
    parts = {"callbacks": [callback], "eval_dataset": points(8, seed=1)}
    record = stage.train(Regression(), points(), parts, logging_steps=50, per_device_train_batch_size=4)
    return {**record, "heard": callback.heard}


@scenario
def stopped_in_the_middle_of_a_step(stage: Any) -> Any:
    """A callback asks for the end between two micro-batches."""
    from transformers import TrainerCallback

    class Stop(TrainerCallback):  # type: ignore[misc]
        def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            control.should_training_stop = state.global_step == 1
            return control

    changes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}
    return stage.train(Regression(), points(), {"callbacks": [Stop()]}, **changes)


@scenario
def callbacks_added_and_removed(stage: Any) -> Any:
    """After construction, by class and by instance."""
    from transformers import TrainerCallback

    calls: list[str] = []
    members = {event: (lambda self, *_, __event=event, **__: calls.append(__event)) for event in EVENTS}
    listener = type("Listener", (TrainerCallback,), members)
    trainer = stage.trainer(Regression(), stage.arguments(num_train_epochs=1), train_dataset=points(9))
    trainer.add_callback(listener)
    popped = trainer.pop_callback(listener)
    trainer.add_callback(popped)
    trainer.add_callback(type("Other", (listener,), {}))
    trainer.remove_callback(listener)
    return {**stage.finish(trainer), "calls": calls}


@scenario
def stock_arguments(stage: Any) -> Any:
    """A `transformers.TrainingArguments` object, whichever library trains."""
    from transformers import TrainingArguments

    args = stage.arguments(
        TrainingArguments, gradient_accumulation_steps=2, eval_strategy="epoch", save_strategy="epoch"
    )
    parts = {"train_dataset": tokens(), "eval_dataset": tokens(8, seed=1)}
    return stage.finish(stage.trainer(gpt2(), args, **parts))


@scenario
def arguments_changed_after_construction(stage: Any) -> Any:
    """Read when needed, not when built."""
    args = stage.arguments()
    trainer = stage.trainer(Regression(), args, train_dataset=points())
    trainer.args.max_grad_norm = 0.01
    trainer.args.num_train_epochs = 2
    trainer.args.learning_rate = 0.05
    return stage.finish(trainer)
