"""`CallbackHandler`: passes each event on to the callbacks that care about it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

from typing_extensions import override

from onward.callbacks.base import TrainerCallback
from onward.kin import become_kin

if TYPE_CHECKING:
    from onward.state import TrainerControl, TrainerState

logger = logging.getLogger(__name__)

_BASES = ("onward.callbacks.base", "transformers.trainer_callback")
"""Modules whose ``TrainerCallback`` does nothing on any event."""


class Route(NamedTuple):
    """Who listens to an event, and what that was found from."""

    callbacks: list[Any]
    """All callbacks, as they were."""
    listeners: list[tuple[int, Any]]
    """Those that do something on the event, with their places."""
    silent: list[dict[str, Any]]
    """The attributes of the others, each of which may be assigned a method of its own at any time."""


class CallbackHandler(TrainerCallback):
    """Calls the callbacks in their order, and sets the control flags back before the events that use them up.

    A callback that does nothing on an event, because it inherits the empty method of `TrainerCallback` (ours or
    transformers'), is not called. Who listens is remembered for each event, and checked before it is believed:
    ``callbacks`` is a public list that people append to, insert into and pop from, also while an event goes round, and
    methods are assigned to instances. Methods assigned to a class are noticed when the next training begins.
    """

    def __init__(
        self, callbacks: Iterable[Any], model: Any, processing_class: Any, optimizer: Any, lr_scheduler: Any
    ) -> None:
        become_kin()
        self.callbacks: list[Any] = []
        self.watchers: list[Any] = []
        """Callbacks of the trainer's own, called before the others: code that looks at `callbacks` expects what
        transformers puts there, and what its user added."""
        self._routes: dict[str, Route] = {}
        self.model = model
        self.processing_class = processing_class
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.train_dataloader: Any = None
        self.eval_dataloader: Any = None
        for callback in callbacks:
            self.add_callback(callback)
        if not any(_has_class_named(callback, "DefaultFlowCallback") for callback in self.callbacks):
            logger.warning(
                "There is no DefaultFlowCallback among the callbacks (%s), so nothing will ask for logs, evaluations, "
                "checkpoints or the end of training. Add one with trainer.add_callback(DefaultFlowCallback).",
                self.callback_list.replace("\n", ", ") or "none",
            )

    def add_callback(self, callback: Any) -> None:
        """Append a callback, or an instance of a callback class."""
        added = callback() if isinstance(callback, type) else callback
        if any(type(present) is type(added) for present in self.callbacks):
            logger.warning("A %s is added, but there is one already; both will be called.", type(added).__name__)
        self.callbacks.append(added)

    def pop_callback(self, callback: Any) -> Any:
        """Remove and return a callback, or the first one of a class; None where there is none."""
        become_kin()  # scripts import PrinterCallback and friends from transformers to remove them from a trainer
        for index, present in enumerate(self.callbacks):
            if isinstance(present, callback) if isinstance(callback, type) else present == callback:
                return self.callbacks.pop(index)
        return None

    def remove_callback(self, callback: Any) -> None:
        """Remove a callback, or the first one of a class if there is one.

        Raises:
            ValueError: an instance was given that is not among the callbacks.
        """
        if isinstance(callback, type):
            self.pop_callback(callback)
        else:
            self.callbacks.remove(callback)

    @property
    def callback_list(self) -> str:
        """Class names of the callbacks, one per line."""
        return "\n".join(type(callback).__name__ for callback in self.callbacks)

    def call_event(
        self, event: str, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Pass `event` on to every callback that does something on it; return the control that comes out."""
        route = self._route(event)
        if not route.listeners:
            return control
        kwargs.update(
            model=self.model,
            processing_class=self.processing_class,
            optimizer=self.optimizer,
            lr_scheduler=self.lr_scheduler,
            train_dataloader=self.train_dataloader,
            eval_dataloader=self.eval_dataloader,
        )
        for place, callback in route.listeners:
            result = getattr(callback, event)(args, state, control, **kwargs)
            if result is not None:
                control = result
            if (callbacks := self._everyone()) != route.callbacks:
                # Nobody may be skipped or called twice because the list changes: go on from here one by one.
                return self._call_rest(event, _position(callbacks, callback, place) + 1, (args, state, control), kwargs)
        return control

    def _call_rest(
        self, event: str, place: int, subject: tuple[Any, Any, TrainerControl], kwargs: dict[str, Any]
    ) -> TrainerControl:
        """Pass `event` on to the callbacks from `place` on, looking at the list anew after each."""
        args, state, control = subject
        while place < len(callbacks := self._everyone()):
            callback = callbacks[place]
            if _listens(callback, event):
                result = getattr(callback, event)(args, state, control, **kwargs)
                control = control if result is None else result
            place = _position(self._everyone(), callback, place) + 1
        return control

    def _everyone(self) -> list[Any]:
        return [*self.watchers, *self.callbacks]

    def _route(self, event: str) -> Route:
        """Who listens to `event` now."""
        everyone, route = self._everyone(), self._routes.get(event)
        if route is not None and route.callbacks == everyone:
            for own in route.silent:
                if event in own:
                    break
            else:
                return route
        listeners, silent = [], []
        for place, callback in enumerate(everyone):
            if _listens(callback, event):
                listeners.append((place, callback))
            else:
                silent.append(getattr(callback, "__dict__", {}))
        route = self._routes[event] = Route(everyone, listeners, silent)
        return route

    @override
    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> TrainerControl:
        return self.call_event("on_init_end", args, state, control, **kwargs)

    @override
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> TrainerControl:
        control.should_training_stop = False
        self._routes.clear()
        return self.call_event("on_train_begin", args, state, control, **kwargs)

    @override
    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> TrainerControl:
        return self.call_event("on_train_end", args, state, control, **kwargs)

    @override
    def on_train_error(
        self, args: Any, state: Any, control: Any, error: BaseException | None = None, **kwargs: Any
    ) -> TrainerControl:
        return self.call_event("on_train_error", args, state, control, error=error, **kwargs)

    @override
    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> TrainerControl:
        control.should_epoch_stop = False
        return self.call_event("on_epoch_begin", args, state, control, **kwargs)

    @override
    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> TrainerControl:
        return self.call_event("on_epoch_end", args, state, control, **kwargs)

    @override
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> TrainerControl:
        control.should_log = False
        control.should_evaluate = False
        control.should_save = False
        return self.call_event("on_step_begin", args, state, control, **kwargs)

    @override
    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> TrainerControl:
        return self.call_event("on_substep_end", args, state, control, **kwargs)

    @override
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> TrainerControl:
        return self.call_event("on_pre_optimizer_step", args, state, control, **kwargs)

    @override
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> TrainerControl:
        return self.call_event("on_optimizer_step", args, state, control, **kwargs)

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> TrainerControl:
        return self.call_event("on_step_end", args, state, control, **kwargs)

    @override
    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> TrainerControl:
        control.should_log = False
        return self.call_event("on_log", args, state, control, logs=logs, **kwargs)

    @override
    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, Any] | None = None, **kwargs: Any
    ) -> TrainerControl:
        control.should_evaluate = False
        return self.call_event("on_evaluate", args, state, control, metrics=metrics, **kwargs)

    @override
    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> TrainerControl:
        return self.call_event("on_prediction_step", args, state, control, **kwargs)

    @override
    def on_predict(
        self, args: Any, state: Any, control: Any, metrics: dict[str, Any] | None = None, **kwargs: Any
    ) -> TrainerControl:
        return self.call_event("on_predict", args, state, control, metrics=metrics, **kwargs)

    @override
    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> TrainerControl:
        control.should_save = False
        return self.call_event("on_save", args, state, control, **kwargs)

    @override
    def on_push_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> TrainerControl:
        return self.call_event("on_push_begin", args, state, control, **kwargs)


def _position(callbacks: list[Any], callback: Any, before: int) -> int:
    """Where `callback` stands now; if it left the list, the place before that of its successor."""
    return next((index for index, present in enumerate(callbacks) if present is callback), before - 1)


def _listens(callback: Any, event: str) -> bool:
    """Whether `callback` does something on `event`: has such a method, and not the empty one of a base class."""
    method = getattr(callback, event, None)
    function = getattr(method, "__func__", None)
    if type(function) is not FunctionType:
        return method is not None  # assigned to the instance, a partial, something compiled: assume that it does
    return not (function.__module__ in _BASES and function.__qualname__.startswith("TrainerCallback."))


def _has_class_named(callback: Any, name: str) -> bool:
    return any(base.__name__ == name for base in type(callback).__mro__)
