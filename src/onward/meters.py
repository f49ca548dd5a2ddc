"""Running sums of a run: what log lines and the final figures are computed from, and what a resume restores.

No I/O and no collective happens here. Counts that live on an accelerator stay there until a log line closes the
interval: `Meters.close_interval` is the only place that waits for the device.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch

from onward.types import StepPlace

MAX_POSITIONS = 100
"""Positions of non-finite steps that are kept; the count goes on beyond."""
_CHUNK = 256


def speed_metrics(
    split: str,
    start_time: float,
    num_samples: float | None = None,
    num_steps: float | None = None,
    num_tokens: float | None = None,
) -> dict[str, float]:
    """Runtime and rates since `start_time`, under the key names and rounding of transformers.

    Args:
        split: prefix of the keys (``train``, ``eval``, ``test`` …).
        start_time: `time.time()` at the beginning.
        num_samples: samples done since then, over all processes.
        num_steps: steps done since then.
        num_tokens: tokens done since then, over all processes.

    Returns:
        ``{split}_runtime`` in seconds (4 digits), and ``{split}_{samples,steps,tokens}_per_second`` (3 digits) for what
        was given.
    """
    runtime = time.time() - start_time
    figures = {f"{split}_runtime": round(runtime, 4)}
    if runtime <= 0:  # a coarse clock saw no time pass: there is no rate to speak of
        return figures
    for unit, count in (("samples", num_samples), ("steps", num_steps), ("tokens", num_tokens)):
        if count is not None:
            figures[f"{split}_{unit}_per_second"] = round(count / runtime, 3)
    return figures


class _Clock:
    """Seconds of training: stands still while paused."""

    def __init__(self) -> None:
        self.elapsed = 0.0
        self._since: float | None = None
        self._pauses = 0

    def start(self) -> None:
        self._pauses = 0
        self._since = time.monotonic()

    def read(self) -> float:
        running = 0.0 if self._since is None else time.monotonic() - self._since
        return self.elapsed + running

    def stop(self) -> None:
        self.elapsed = self.read()
        self._since = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        was_running = self._since is not None
        self._pauses += 1
        if was_running:
            self.stop()
        try:
            yield
        finally:
            self._pauses -= 1
            if was_running and self._pauses == 0:
                self._since = time.monotonic()


class Meters:
    """The running sums of one run.

        start               training begins (or goes on after a resume)
        waiting             around fetching a batch
        count_batch         once per micro-batch
        count_step          once per optimizer step, with a flag that may live on the device
        paused              around evaluation and saving, so that rates are those of training
        stop                training is over
        close_interval      at a log line: rates of the interval, the only wait for the device
        figures             at the end: rates of the whole run

    Sums cover the whole run, also what came before a resume (`load_state_dict`).
    """

    def __init__(self) -> None:
        self.samples: int = 0
        """Samples trained on, over all processes."""
        self.tokens: int = 0
        """Tokens trained on without padding, over all processes; 0 where they cannot be counted."""
        self.pads: int = 0
        """Padding tokens trained on, over all processes."""
        self.steps: int = 0
        """Optimizer steps done, those that were skipped included."""
        self.data_wait: float = 0.0
        """Seconds that this process waited for batches."""
        self.nonfinite_steps: int = 0
        """Optimizer steps whose loss or gradient was NaN or infinite."""
        self.nonfinite_positions: list[int] = []
        """The last `MAX_POSITIONS` of these, as optimizer steps."""
        self.nonfinite_in_a_row: int = 0
        """How many of the latest optimizer steps were left out (or not finite)."""
        self.left_out_steps: int = 0
        """Optimizer steps that changed no weights, for whatever reason; their loss is in no mean."""
        self.open_left_out: int = 0
        """Those of them since the last log line."""
        self.rollbacks: int = 0
        """How often the run went back to a checkpoint."""
        self.data_lead: int = 0
        """Steps of data that rollbacks left behind: the data stands this far ahead of the step count."""
        self.unjudged: list[tuple[StepPlace, bool]] = []
        """Steps that were left out and not acted on yet, and whether they were finite."""
        self.longest_row: int = 0
        """The longest row of such steps since they were last acted on."""
        self._clock = _Clock()
        self._interval = _Interval()

    # -- while training -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the clock."""
        self._clock.start()
        self._interval = _Interval(began=self._clock.read())

    def stop(self) -> None:
        """Stop the clock: training is over, and what follows counts in no rate."""
        self._clock.stop()

    def waiting(self) -> AbstractContextManager[None]:
        """Context manager: the time inside counts as waiting for data."""
        return _Waiting(self)

    def paused(self) -> Any:
        """Context manager: the time inside counts neither as training nor in any rate. It may be nested."""
        return self._clock.paused()

    def count_batch(self, inputs: Any, main_input_name: str = "input_ids", packed: int | None = None) -> None:
        """Count the samples, tokens and padding of one micro-batch.

        Tokens are the elements of a two-dimensional integer input; those where ``attention_mask`` is zero are padding.
        A batch without such an input counts samples alone. `packed` tokens were trained on without any padding.
        """
        interval = self._interval
        main = inputs.get(main_input_name) if isinstance(inputs, (dict, Mapping)) else None
        if not _holds_tokens(main):
            interval.samples += _batch_size(inputs)
            return
        interval.samples += main.shape[0]
        if packed is not None:
            interval.places += packed
            interval.tokens += packed
            return
        total = main.numel()
        interval.places += total
        mask = inputs.get("attention_mask")
        if isinstance(mask, torch.Tensor) and mask.shape == main.shape:
            real = torch.count_nonzero(mask)
            if real.device.type == "cpu":
                interval.tokens += int(real)
            else:  # stays on the device: no wait in the step
                held = interval.device_tokens
                interval.device_tokens = real if held is None else held + real
        else:
            interval.tokens += total

    def mark(self) -> Any:
        """What `rewind` needs to forget micro-batches and steps that are counted from here on."""
        return self._interval.copy()

    def rewind(self, to: Any) -> None:
        """Forget what was counted since `mark`, but not the time that it took."""
        to.data_wait = self._interval.data_wait
        self._interval = to.copy()

    def count_step(
        self,
        finite: torch.Tensor | bool = True,
        place: StepPlace | None = None,
        taken: torch.Tensor | bool | None = None,
    ) -> None:
        """Count one optimizer step.

        Args:
            finite: whether its loss and gradient were; a device tensor is read only at the next log line.
            place: where in data and run the step is, kept if it turns out not to be finite.
            taken: whether it changed the weights, of the same kind; `None` if that is the same as `finite`.
        """
        interval = self._interval
        interval.steps += 1
        if isinstance(finite, bool) and not interval.flags and not interval.chunks:
            self._note(finite, finite if taken is None else bool(taken), place)
            return
        code = torch.as_tensor(finite).detach().reshape(()).to(torch.uint8)
        interval.flags.append(code * 3 if taken is None else code + 2 * torch.as_tensor(taken).to(code))
        interval.flagged.append(place)
        if len(interval.flags) == _CHUNK:  # keeps the memory of a run that never logs small
            interval.chunks.append(torch.stack(interval.flags))
            interval.flags = []

    def _note(self, finite: bool, taken: bool, place: StepPlace | None) -> None:
        if finite and taken:
            self.nonfinite_in_a_row = 0
            return
        self.nonfinite_in_a_row += 1
        self.longest_row = max(self.longest_row, self.nonfinite_in_a_row)
        self.unjudged = [*self.unjudged, (place or StepPlace(), finite)]
        if not taken:
            self.left_out_steps += 1
            self.open_left_out += 1
        if not finite:
            self.nonfinite_steps += 1
            if place is not None and place.in_data is not None:
                self.nonfinite_positions = [*self.nonfinite_positions, place.in_data][-MAX_POSITIONS:]

    def take_unjudged(self) -> tuple[list[tuple[StepPlace, bool]], int]:
        """What was left out since the last call, and the longest row of it."""
        taken, self.unjudged = self.unjudged, []
        row, self.longest_row = self.longest_row, 0
        return taken, row

    # -- at a log line --------------------------------------------------------------------------------------------

    def close_interval(self, reduce: Callable[[torch.Tensor], torch.Tensor] | None = None) -> dict[str, float]:
        """Close the interval since the last call and return its rates. Waits for the device.

        Args:
            reduce: sums an integer tensor of shape (3,) over processes; without it the counts are this process's own.
                When given, every process must call this at the same step.

        Returns:
            ``samples_per_second``; where tokens can be counted ``tokens_per_second`` (padding excluded) and
            ``pad_fraction``; ``data_wait_fraction``, the share of the time spent waiting for batches; and
            ``nonfinite_steps`` of the whole run if there were any.
        """
        interval, now = self._interval, self._clock.read()
        samples, tokens, places = self._settle(interval, reduce)
        self._interval = _Interval(began=now)
        return self._rates(now - interval.began, (samples, tokens, places), interval.data_wait)

    def _settle(
        self, interval: _Interval, reduce: Callable[[torch.Tensor], torch.Tensor] | None
    ) -> tuple[int, int, int]:
        """Add the sums of an interval to those of the run; return its samples, tokens and places over all processes."""
        counts = interval.counts()
        if reduce is not None:
            counts = reduce(counts)
        samples, tokens, places = (int(count) for count in counts.tolist())  # host sync
        self.samples += samples
        self.tokens += tokens
        self.pads += places - tokens
        self.steps += interval.steps
        self.data_wait += interval.data_wait
        for code, place in interval.codes():  # host sync
            self._note(bool(code & 1), bool(code & 2), place)
        return samples, tokens, places

    def _rates(self, seconds: float, counts: tuple[int, int, int], data_wait: float) -> dict[str, float]:
        samples, tokens, places = counts
        rates: dict[str, float] = {}
        if seconds > 0:
            rates["samples_per_second"] = round(samples / seconds, 3)
            if places:
                rates["tokens_per_second"] = round(tokens / seconds, 3)
            rates["data_wait_fraction"] = round(min(data_wait / seconds, 1.0), 4)
        if places:
            rates["pad_fraction"] = round((places - tokens) / places, 4)
        if self.nonfinite_steps:
            rates["nonfinite_steps"] = self.nonfinite_steps
        return rates

    # -- at the end -----------------------------------------------------------------------------------------------

    @property
    def train_seconds(self) -> float:
        """Seconds spent training over the whole run, without evaluation and saving."""
        return self._clock.read()

    def figures(self) -> dict[str, float]:
        """Rates of the whole run, as `close_interval` names them; closed intervals only."""
        return self._rates(self.train_seconds, (self.samples, self.tokens, self.tokens + self.pads), self.data_wait)

    # -- across a resume ------------------------------------------------------------------------------------------

    def state_dict(self, reduce: Callable[[torch.Tensor], torch.Tensor] | None = None) -> dict[str, Any]:
        """JSON-able form, the interval that is still open included. Waits for the device.

        Args:
            reduce: as for `close_interval`.
        """
        settled = copy.copy(self)
        settled._settle(self._interval, reduce)
        return {**{name: getattr(settled, name) for name in _SAVED}, "train_seconds": self.train_seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`'s form; what it lacks keeps its value, so that older checkpoints load."""
        for name in _SAVED:
            if name in state:
                value = state[name]
                setattr(self, name, list(value) if isinstance(value, list) else value)
        self.unjudged = [(StepPlace(*place), finite) for place, finite in self.unjudged]
        self._clock = _Clock()
        self._clock.elapsed = float(state.get("train_seconds", 0.0))
        self._interval = _Interval(began=self._clock.elapsed)


_SAVED = (
    "samples", "tokens", "pads", "steps", "data_wait",
    "nonfinite_steps", "nonfinite_positions", "nonfinite_in_a_row", "left_out_steps", "open_left_out",
    "rollbacks", "data_lead", "unjudged", "longest_row",
)  # fmt: skip


@dataclass
class _Interval:
    """What happened in this process since the last log line."""

    began: float = 0.0
    samples: int = 0
    tokens: int = 0
    places: int = 0
    steps: int = 0
    data_wait: float = 0.0
    device_tokens: torch.Tensor | None = None
    flags: list[torch.Tensor] = field(default_factory=list)
    chunks: list[torch.Tensor] = field(default_factory=list)
    flagged: list[StepPlace | None] = field(default_factory=list)

    def counts(self) -> torch.Tensor:
        """Samples, tokens and places (tokens and padding), on the device that counted."""
        counts = torch.tensor([self.samples, self.tokens, self.places])
        if self.device_tokens is None:
            return counts
        counts = counts.to(self.device_tokens.device, non_blocking=True)
        counts[1] += self.device_tokens
        return counts

    def copy(self) -> _Interval:
        """A copy that counts on its own."""
        # At each step of several micro-batches: `dataclasses.replace` takes four times as long.
        there = object.__new__(_Interval)
        lists = {"flags": list(self.flags), "chunks": list(self.chunks), "flagged": list(self.flagged)}
        there.__dict__.update(self.__dict__, **lists)
        return there

    def codes(self) -> list[tuple[int, StepPlace | None]]:
        """Of each step 1 if it was finite, plus 2 if it was taken, and its place. Waits for the device."""
        parts = [*self.chunks, torch.stack(self.flags)] if self.flags else self.chunks
        if not parts:
            return []
        return list(zip(torch.cat(parts).tolist(), self.flagged, strict=True))


class _Waiting:
    """A class, because a generator takes three times as long to enter and leave, and this is entered at each step."""

    def __init__(self, meters: Meters) -> None:
        self.meters = meters

    def __enter__(self) -> None:
        self.began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.meters._interval.data_wait += time.monotonic() - self.began


def _holds_tokens(main: Any) -> TypeGuard[torch.Tensor]:
    """Whether this input is a batch of token numbers, of shape (samples, length)."""
    return isinstance(main, torch.Tensor) and main.dim() == 2 and not main.is_floating_point()


def _batch_size(inputs: Any) -> int:
    is_mapping = isinstance(inputs, (dict, Mapping))
    values = inputs.values() if is_mapping else inputs if isinstance(inputs, (list, tuple)) else (inputs,)
    for value in values:
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            return int(value.shape[0])
    return 0
