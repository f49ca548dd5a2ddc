"""Events reach those who listen, in order, with the flags and keywords that transformers gives them."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from tests.tiny import RegressionData, TinyRegression
from transformers.trainer_callback import CallbackHandler as TheirHandler, TrainerControl as TheirControl

from onward import Trainer, TrainingArguments
from onward.callbacks import (
    EVENTS,
    CallbackHandler,
    DefaultFlowCallback,
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
)
from onward.state import TrainerControl, TrainerState

EXTRA = {"on_evaluate": {"metrics": {"a": 1}}, "on_predict": {"metrics": {"a": 1}}, "on_log": {"logs": {"b": 2}}}
ARGS = SimpleNamespace()


class Recorder(TrainerCallback):
    """Writes down every event that it gets, with the keywords."""

    def __init__(self, name: str = "", seen: list[Any] | None = None) -> None:
        self.name = name
        self.seen = [] if seen is None else seen


def _recording(event: str) -> Any:
    def record(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append((self.name, event, dataclasses.asdict(control), kwargs))

    return record


for _event in EVENTS:
    setattr(Recorder, _event, _recording(_event))
TheirRecorder = type("TheirRecorder", (transformers.TrainerCallback,), {**vars(Recorder)})


def handler_of(*callbacks: Any) -> CallbackHandler:
    return CallbackHandler([DefaultFlowCallback(), *callbacks], "model", "processing", "optimizer", "scheduler")


def fire(handler: Any, event: str, control: Any = None) -> Any:
    control = TrainerControl() if control is None else control
    return getattr(handler, event)(ARGS, TrainerState(), control, **EXTRA.get(event, {}))


def names(seen: list[Any]) -> list[str]:
    return [entry[0] for entry in seen]


@pytest.mark.parametrize("event", [e for e in EVENTS if e not in ("on_step_end", "on_epoch_end")])
def test_flags_and_keywords_are_those_of_transformers(event: str) -> None:
    for flags in itertools.product([False, True], repeat=5):
        ours, theirs = Recorder(), TheirRecorder()
        our_handler, their_handler = (
            cls([], "model", "processing", "optimizer", "scheduler") for cls in (handler_of().__class__, TheirHandler)
        )
        for handler, recorder in ((our_handler, ours), (their_handler, theirs)):
            handler.callbacks.append(recorder)
            handler.train_dataloader, handler.eval_dataloader = "train", "eval"
        our_end = fire(our_handler, event, TrainerControl(*flags))
        their_end = fire(their_handler, event, TheirControl(*flags))
        assert ours.seen == theirs.seen
        assert len(ours.seen) == 1
        assert dataclasses.asdict(our_end) == dataclasses.asdict(their_end)


def test_there_is_a_method_for_every_event() -> None:
    theirs = {name for name in vars(transformers.TrainerCallback) if name.startswith("on_")}
    assert theirs == set(EVENTS)
    for cls in (TrainerCallback, CallbackHandler):
        assert theirs | {"on_train_error"} == {name for name in vars(cls) if name.startswith("on_")}


def test_a_returned_control_is_handed_on() -> None:
    other = TrainerControl(should_save=True)
    first = TrainerCallback()
    first.on_step_begin = lambda *args, **kwargs: other  # type: ignore[method-assign]
    last = Recorder()
    assert fire(handler_of(first, last), "on_step_begin") is other
    assert last.seen[0][2]["should_save"] is True


def test_silent_callbacks_are_not_called() -> None:
    """The empty methods of both base classes are passed over."""

    class Quiet(TrainerCallback):
        def on_log(self, *args: Any, **kwargs: Any) -> None: ...

    class TheirQuiet(transformers.TrainerCallback):
        def on_log(self, *args: Any, **kwargs: Any) -> None: ...

    handler = handler_of(Quiet(), TheirQuiet(), EarlyStoppingCallback())
    route = handler._route("on_step_begin")
    assert route.listeners == []
    assert [type(callback) for _, callback in handler._route("on_log").listeners] == [Quiet, TheirQuiet]


def test_any_object_with_the_right_methods_will_do() -> None:
    seen: list[str] = []
    bare = SimpleNamespace(on_log=lambda *args, logs, **kwargs: seen.append(logs))
    handler = handler_of(bare)
    fire(handler, "on_save")
    fire(handler, "on_log")
    assert seen == [{"b": 2}]


class TestTheListIsPublic:
    def setup_method(self) -> None:
        self.seen: list[Any] = []
        self.handler = handler_of(self.recorder("a"), self.recorder("b"))
        self.fired()  # so that something is remembered that could be stale

    def recorder(self, name: str) -> Recorder:
        return Recorder(name, self.seen)

    def fired(self) -> list[str]:
        self.seen.clear()
        fire(self.handler, "on_save")
        return names(self.seen)

    def test_append_insert_and_replace(self) -> None:
        self.handler.callbacks.append(self.recorder("c"))
        assert self.fired() == ["a", "b", "c"]
        self.handler.callbacks.insert(0, self.recorder("first"))
        assert self.fired() == ["first", "a", "b", "c"]
        self.handler.callbacks[2] = self.recorder("A")
        assert self.fired() == ["first", "A", "b", "c"]
        self.handler.callbacks = [self.recorder("alone")]
        assert self.fired() == ["alone"]

    def test_pop_and_remove(self) -> None:
        first = self.handler.pop_callback(Recorder)
        assert first.name == "a"
        assert self.fired() == ["b"]
        self.handler.remove_callback(self.handler.callbacks[-1])
        assert self.fired() == []
        assert self.handler.pop_callback(Recorder) is None
        self.handler.remove_callback(Recorder)  # no such class: nothing happens, as in transformers
        with pytest.raises(ValueError, match="not in list"):
            self.handler.remove_callback(first)

    def test_a_method_assigned_to_a_silent_callback_is_heard(self) -> None:
        silent = TrainerCallback()
        self.handler.callbacks.append(silent)
        assert self.fired() == ["a", "b"]
        silent.on_save = lambda *args, **kwargs: self.seen.append(("late",))  # type: ignore[method-assign]
        assert self.fired() == ["a", "b", "late"]
        del silent.on_save
        fire(self.handler, "on_train_begin")  # what is taken away may still be called until then, and does nothing
        assert self.fired() == ["a", "b"]

    def test_a_method_assigned_to_a_class_is_heard_from_the_next_training(self) -> None:
        class Silent(TrainerCallback):
            pass

        self.handler.callbacks.append(Silent())
        assert self.fired() == ["a", "b"]
        Silent.on_save = lambda *args, **kwargs: self.seen.append(("late",))  # type: ignore[method-assign]
        fire(self.handler, "on_train_begin")
        assert self.fired() == ["a", "b", "late"]

    def test_a_callback_that_removes_itself_hides_no_other(self) -> None:
        once = self.recorder("once")

        def leave(*args: Any, **kwargs: Any) -> None:
            self.seen.append(("once",))
            self.handler.callbacks.remove(once)

        once.on_save = leave  # type: ignore[method-assign]
        self.handler.callbacks.insert(1, once)
        assert self.fired() == ["once", "a", "b"]
        assert self.fired() == ["a", "b"]

    def test_a_callback_that_changes_the_list_makes_none_run_twice(self) -> None:
        def add_two(*args: Any, **kwargs: Any) -> None:
            self.seen.append(("adder",))
            if len(self.handler.callbacks) < 5:
                self.handler.callbacks.insert(0, self.recorder("before"))
                self.handler.callbacks.append(self.recorder("after"))

        adder = TrainerCallback()
        adder.on_save = add_two  # type: ignore[method-assign]
        self.handler.callbacks.insert(2, adder)
        assert self.fired() == ["a", "adder", "b", "after"]
        assert self.fired() == ["before", "a", "adder", "b", "after"]

    def test_call_event_can_be_replaced(self) -> None:
        events: list[str] = []
        original = self.handler.call_event
        self.handler.call_event = lambda event, *args, **kwargs: (  # type: ignore[method-assign]
            events.append(event),
            original(event, *args, **kwargs),
        )[1]
        assert self.fired() == ["a", "b"]
        assert events == ["on_save"]


@pytest.mark.parametrize(
    "name", ["PrinterCallback", "ProgressCallback", "DefaultFlowCallback", "EarlyStoppingCallback"]
)
def test_classes_of_transformers_stand_for_ours(name: str) -> None:
    ours = {"PrinterCallback": PrinterCallback, "ProgressCallback": ProgressCallback}.get(name)
    handler = handler_of(PrinterCallback(), ProgressCallback(), EarlyStoppingCallback())
    before = len(handler.callbacks)
    handler.remove_callback(getattr(transformers.trainer_callback, name))
    assert len(handler.callbacks) == before - 1
    assert name not in handler.callback_list
    assert ours is None or not any(isinstance(callback, ours) for callback in handler.callbacks)


def test_what_would_go_wrong_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "onward"):
        handler = CallbackHandler([PrinterCallback], None, None, None, None)
    assert "no DefaultFlowCallback" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "onward"):
        handler.add_callback(PrinterCallback)
    assert "there is one already" in caplog.text
    caplog.clear()
    CallbackHandler([transformers.trainer_callback.DefaultFlowCallback], None, None, None, None)
    assert not caplog.text


def test_the_error_event_is_ours_alone() -> None:
    seen: list[Any] = []
    ours = TrainerCallback()
    ours.on_train_error = lambda *args, error, **kwargs: seen.append(error)  # type: ignore[method-assign]
    error = ValueError("x")
    handler_of(transformers.TrainerCallback(), ours).on_train_error(ARGS, TrainerState(), TrainerControl(), error=error)
    assert seen == [error]


class Suffers(Trainer):
    """Its gradients are NaN at one step, and it runs out of memory with more than `room` samples."""

    room, bad, taken = 8, 5, 0

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        if len(inputs["labels"]) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.taken += 1
        if self.taken == self.bad:
            for weight in model.parameters():
                weight.grad.mul_(torch.nan)
        return loss


class Compares(TrainerCallback):
    """Keeps what it is handed that is not what its trainer has now."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.heard: set[str] = set()
        self.stale: list[tuple[str, str]] = []

    def compare(self, event: str, subject: dict[str, Any], handed: dict[str, Any]) -> None:
        """Compare with the attributes of the same names."""
        trainer = self.trainer
        if trainer is None:  # in the constructor
            return
        self.heard.add(event)
        for name in ("model", "optimizer", "lr_scheduler", "processing_class"):
            subject[name] = handed[name]
        self.stale += [(event, name) for name, value in subject.items() if value is not getattr(trainer, name)]
        if handed["train_dataloader"] is not trainer.feed.loader:
            self.stale.append((event, "train_dataloader"))
        if subject["state"].train_batch_size != trainer._train_batch_size:
            self.stale.append((event, "train_batch_size"))


for name in (*EVENTS, "on_rollback"):
    setattr(
        Compares,
        name,
        lambda self, args, state, control, __name=name, **handed: self.compare(
            __name, {"args": args, "state": state, "control": control}, handed
        ),
    )


@pytest.mark.parametrize(
    ("room", "settings"),
    [(8, {"on_nonfinite": "rollback"}), (2, {"auto_find_batch_size": True, "on_nonfinite": "rollback"})],
)
def test_callbacks_are_handed_what_the_trainer_has_now(room: int, settings: dict[str, Any], tmp_path: Path) -> None:
    args = TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=2, per_device_train_batch_size=8, save_steps=2, eval_steps=3,
        eval_strategy="steps", logging_steps=1, report_to="none", disable_tqdm=True, **settings,
    )  # fmt: skip
    data = {"train_dataset": RegressionData(32), "eval_dataset": RegressionData(8)}
    trainer = Suffers(TinyRegression(), args, callbacks=[callback := Compares()], **data)
    trainer.room, callback.trainer = room, trainer
    trainer.bad = 5 if room == 8 else 17
    trainer.train()
    assert callback.stale == []
    assert {"on_rollback", "on_evaluate", "on_save", "on_log", "on_train_end"} <= callback.heard
    assert trainer._train_batch_size == room
