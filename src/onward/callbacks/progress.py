"""`ProgressCallback`: shows where a run stands, in a terminal, a notebook or a plain log. `PrinterCallback`: prints."""

from __future__ import annotations

import atexit
import math
import time
from typing import Any, Protocol

from typing_extensions import override

from onward.callbacks.base import TrainerCallback
from onward.callbacks.figures import Pace, Picture, best_in_words, memory
from onward.state import TrainerState

_REFRESH = 0.25
"""Seconds between two drawings: slow enough to cost nothing, fast enough to look alive."""
_SHARE = 0.02
"""Share of the time that drawing may take at most: a slow line to the terminal must not slow training."""


class View(Protocol):
    """A place where progress is shown."""

    live: bool
    """Whether it shows more than log lines, and so wants to be drawn between them."""

    def log(self, picture: Picture, logs: dict[str, Any], max_length: int) -> None:
        """Show a log line, with texts of at most `max_length` characters; a live view may wait for `show`."""

    def write(self, text: str) -> None:
        """Show a text of its own."""

    def show(self, picture: Picture) -> None:
        """Draw."""

    def close(self) -> None:
        """Draw no more, and give back what is held."""


class ProgressCallback(TrainerCallback):
    """Shows step, epoch, loss, learning rate, speed, time left and memory, and a bar for each evaluation.

    In a terminal as live lines with the log above them; in a notebook as a bar and a table; where no one watches, as
    one plain line per log line. Only the first process shows anything. A step costs the look at a clock; drawing
    happens at most four times per second.

    Args:
        max_str_len: longest text in a log line, in characters; longer ones are cut.
    """

    def __init__(self, max_str_len: int = 100) -> None:
        self.max_str_len = max_str_len
        self.training_bar: View | None = None
        """What shows the training that is running; ``training_bar.write(text)`` prints above it."""
        self.prediction_bar: View | None = None
        """What shows the evaluation that is running; the same one as `training_bar` while training."""
        self.current_step = 0
        self._picture = Picture()
        self._pace = Pace(0)
        self._due = math.inf
        self._tokens: tuple[float, float] | None = None
        self._evaluated: Any = None

    # -- training -------------------------------------------------------------------------------------------------

    @override
    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self._close()
        name = state.trial_name if state.is_hyper_param_search and state.trial_name else "training"
        self._picture = Picture(name=name, max_steps=state.max_steps, epochs=state.num_train_epochs)
        self._pace = Pace(state.global_step)
        self._tokens = None
        self.current_step = state.global_step
        self.training_bar = self._open()
        self._draw(state)
        self._due = 0.0

    @override
    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        # Every step comes by here. The first one is always looked at, because time is measured from its end; where
        # nothing is drawn `_due` is infinite from then on.
        if time.monotonic() >= self._due:
            self._draw(state)

    @override
    def on_epoch_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if time.monotonic() >= self._due:
            self._draw(state)

    @override
    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: Any,
        logs: dict[str, Any] | None = None,
        rates: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.training_bar is None or not logs:
            return
        rates = rates or {}
        self._learn(state, logs, {**logs, **rates})
        self._look(state)
        # Most rates are for the live lines, but a skipped step must not scroll by unseen.
        noted = {name: rates[name] for name in ("nonfinite_steps",) if rates.get(name)}
        self.training_bar.log(self._picture, {**logs, **noted}, self.max_str_len)
        if time.monotonic() >= self._due:
            self._draw(state)

    @override
    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if self.training_bar is not None:
            self._picture.ending = "done" if state.global_step >= state.max_steps else "stopped"
            self._picture.best = best_in_words(state, args.metric_for_best_model)
            self._finish(state)

    @override
    def on_train_error(
        self, args: Any, state: TrainerState, control: Any, error: BaseException | None = None, **kwargs: Any
    ) -> None:
        if self.training_bar is not None:
            asked_for = isinstance(error, (KeyboardInterrupt, SystemExit))
            self._picture.ending, self._picture.reason = "stopped" if asked_for else "failed", type(error).__name__
            self._finish(state)
        self._close()

    # -- evaluation -----------------------------------------------------------------------------------------------

    @override
    def on_prediction_step(
        self, args: Any, state: TrainerState, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        if self.prediction_bar is None or eval_dataloader is not self._evaluated:
            self._begin_evaluation(eval_dataloader)
        done, total = self._picture.evaluation or (0, None)
        self._picture.evaluation = (done + 1, total)
        if time.monotonic() >= self._due:
            self._draw(state)

    @override
    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._end_evaluation(state)

    @override
    def on_predict(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._end_evaluation(state)

    def _begin_evaluation(self, dataloader: Any) -> None:
        if self.training_bar is None:
            self._picture = Picture()
        self._picture.evaluation = (0, _length(dataloader))
        self._evaluated = dataloader
        if self.prediction_bar is None:  # else the evaluation before this one broke off
            self.prediction_bar = self.training_bar or self._open()

    def _end_evaluation(self, state: TrainerState) -> None:
        view, self.prediction_bar, self._evaluated = self.prediction_bar, None, None
        if view is None:
            return
        if view is self.training_bar:
            self._picture.evaluation = None
            self._pace.forget_recent()
            self._draw(state)
        else:
            view.show(self._picture)
            self._release(view)

    # -- drawing --------------------------------------------------------------------------------------------------

    def _open(self) -> View:
        view = open_view()
        self._due = 0.0
        # A run that dies without a word must still put the streams back before Python says why it died.
        atexit.register(self._close)
        return view

    def _close(self) -> None:
        views = {id(view): view for view in (self.training_bar, self.prediction_bar) if view is not None}
        self.training_bar = self.prediction_bar = None
        for view in views.values():
            self._release(view)

    def _release(self, view: View) -> None:
        self._due = math.inf
        atexit.unregister(self._close)
        view.close()

    def _finish(self, state: TrainerState) -> None:
        self._picture.evaluation = None
        self._draw(state)
        self._close()

    def _learn(self, state: TrainerState, logs: dict[str, Any], figures: dict[str, Any]) -> None:
        """Take over from a log line what the live lines show."""
        if isinstance(loss := logs.get("loss"), (int, float)):
            self._picture.losses.append(float(loss))
        if isinstance(rate := logs.get("learning_rate"), (int, float)):
            self._picture.learning_rate = rate
        if isinstance(speed := figures.get("tokens_per_second"), (int, float)):
            self._picture.tokens_per_second = speed
        elif state.num_input_tokens_seen and "loss" in logs:
            self._count_tokens(state.num_input_tokens_seen)

    def _count_tokens(self, seen: int) -> None:
        """Speed in tokens between two log lines, where the arguments ask for counting them."""
        now = time.monotonic()
        if self._tokens is not None and now > self._tokens[0]:
            self._picture.tokens_per_second = (seen - self._tokens[1]) / (now - self._tokens[0])
        self._tokens = (now, seen)

    def _look(self, state: TrainerState) -> None:
        """Bring the picture up to date."""
        now, picture = time.monotonic(), self._picture
        self.current_step = state.global_step
        if self.prediction_bar is None:
            self._pace.mark(state.global_step, now)
        picture.step, picture.epoch = state.global_step, state.epoch
        picture.elapsed = self._pace.elapsed(now)
        picture.steps_per_second = self._pace.steps_per_second()
        picture.left = self._pace.left(state.global_step, state.max_steps, now)

    def _draw(self, state: TrainerState) -> None:
        view = self.training_bar or self.prediction_bar
        if view is None:
            return
        began = time.monotonic()
        self._look(state)
        if not view.live:
            self._due = math.inf
            return
        self._picture.memory = memory()
        view.show(self._picture)
        now = time.monotonic()
        self._due = now + max(_REFRESH, (now - began) / _SHARE)


class PrinterCallback(TrainerCallback):
    """Prints each log line as a dictionary, floats with four significant digits, on the first process of a machine."""

    @override
    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if state.is_local_process_zero and logs is not None:
            shown = {name: value for name, value in logs.items() if name != "total_flos"}
            print({name: f"{value:.4g}" if isinstance(value, float) else value for name, value in shown.items()})


def open_view() -> View:
    """The best display for where this process runs."""
    from onward.callbacks.notebook import NotebookView, in_notebook

    if in_notebook():
        return NotebookView()
    from onward.callbacks.terminal import TerminalView, find_terminal

    terminal = find_terminal()
    if terminal is not None and TerminalView.current is None:
        return TerminalView(terminal)
    from onward.callbacks.plain import PlainView

    return PlainView()


def _length(dataloader: Any) -> int | None:
    """Batches in a loader; None where it does not know."""
    try:
        return len(dataloader)
    except (TypeError, NotImplementedError, AttributeError):
        return None
