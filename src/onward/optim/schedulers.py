"""Which schedule a name means.

Most are a curve on a `LambdaLR`, whose saved state holds only where it stands: the curve itself comes from the
arguments of the run that loads it. Two wait for a metric instead (`steps_on_metric`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from onward.errors import UsageError, did_you_mean
from onward.optim import curves
from onward.optim.greedy import GreedyLR

log = logging.getLogger(__name__)

Curve = Callable[[int], float]


@dataclass(frozen=True)
class Span:
    """What a curve is fitted to: the length of the warm-up and of the run in optimizer steps, and the base rate."""

    warmup: int | None
    total: int | None
    base: float

    def needs_warmup(self) -> int:
        """The warm-up's length, which must be known."""
        if self.warmup is None:
            raise UsageError("this schedule needs num_warmup_steps: got None, expected a number of optimizer steps")
        return self.warmup

    def needs_total(self) -> int:
        """The run's length, which must be known."""
        if self.total is None:
            raise UsageError("this schedule needs num_training_steps: got None, expected a number of optimizer steps")
        return self.total


def _constant_with_warmup(span: Span) -> Curve:
    return partial(curves.flat_after_warmup, warmup=span.needs_warmup())


def _linear(span: Span) -> Curve:
    return partial(curves.linear, warmup=span.needs_warmup(), total=span.needs_total())


def _cosine(span: Span, num_cycles: float = 0.5) -> Curve:
    return partial(curves.cosine, warmup=span.needs_warmup(), total=span.needs_total(), num_cycles=num_cycles)


def _cosine_restarts(span: Span, num_cycles: float = 1) -> Curve:
    return partial(curves.cosine_restarts, warmup=span.needs_warmup(), total=span.needs_total(), num_cycles=num_cycles)


def _floor(span: Span, min_lr: float | None, min_lr_rate: float | None) -> float:
    if (min_lr is None) == (min_lr_rate is None):
        raise UsageError(
            f"lr_scheduler_kwargs: got min_lr={min_lr} and min_lr_rate={min_lr_rate}, expected exactly one of them"
        )
    if min_lr_rate is not None:
        return min_lr_rate
    assert min_lr is not None
    return min_lr / span.base


def _cosine_with_min_lr(
    span: Span, num_cycles: float = 0.5, min_lr: float | None = None, min_lr_rate: float | None = None
) -> Curve:
    floor = _floor(span, min_lr, min_lr_rate)
    curve = partial(curves.cosine, warmup=span.needs_warmup(), total=span.needs_total(), num_cycles=num_cycles)
    return partial(curve, floor=floor)


def _cosine_warmup_with_min_lr(
    span: Span,
    num_cycles: float = 0.5,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
    warmup_lr_rate: float | None = None,
) -> Curve:
    floor = _floor(span, min_lr, min_lr_rate)
    curve = partial(curves.cosine_from_floor, warmup=span.needs_warmup(), total=span.needs_total(), floor=floor)
    return partial(curve, num_cycles=num_cycles, warmup_lr_rate=warmup_lr_rate)


def _polynomial(span: Span, lr_end: float = 1e-7, power: float = 1.0) -> Curve:
    if not span.base > lr_end:
        raise UsageError(f"lr_scheduler_kwargs: got lr_end={lr_end}, expected less than learning_rate={span.base}")
    curve = partial(curves.polynomial, warmup=span.needs_warmup(), total=span.needs_total(), lr_init=span.base)
    return partial(curve, lr_end=lr_end, power=power)


def _inverse_sqrt(span: Span, timescale: int | None = None) -> Curve:
    warmup = span.needs_warmup()
    return partial(curves.inverse_sqrt, warmup=warmup, timescale=timescale or warmup or 10_000)


def _warmup_stable_decay(
    span: Span,
    num_decay_steps: int | None = None,
    num_stable_steps: int | None = None,
    warmup_type: str = "linear",
    decay_type: str = "cosine",
    min_lr_ratio: float = 0.0,
    num_cycles: float = 0.5,
) -> Curve:
    if num_decay_steps is None:
        raise UsageError("lr_scheduler_type='warmup_stable_decay' needs lr_scheduler_kwargs={'num_decay_steps': …}")
    for word, got in (("warmup_type", warmup_type), ("decay_type", decay_type)):
        if got not in curves.WARMUPS:
            raise UsageError(f"lr_scheduler_kwargs: got {word}={got!r}, expected one of {', '.join(curves.WARMUPS)}")
    warmup = span.needs_warmup()
    if num_stable_steps is None:
        num_stable_steps = span.needs_total() - warmup - num_decay_steps
    stable = warmup + num_stable_steps
    curve = partial(curves.warmup_stable_decay, ends=(warmup, stable, stable + num_decay_steps))
    return partial(curve, warmup_type=warmup_type, decay_type=decay_type, floor=min_lr_ratio, num_cycles=num_cycles)


CURVES: dict[str, Callable[..., Curve]] = {
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_restarts,
    "polynomial": _polynomial,
    "constant": lambda span: curves.flat,
    "constant_with_warmup": _constant_with_warmup,
    "inverse_sqrt": _inverse_sqrt,
    "cosine_with_min_lr": _cosine_with_min_lr,
    "cosine_warmup_with_min_lr": _cosine_warmup_with_min_lr,
    "warmup_stable_decay": _warmup_stable_decay,
}
"""Schedules that follow from the step alone."""

ON_METRIC: dict[str, Callable[..., Any]] = {"reduce_lr_on_plateau": ReduceLROnPlateau, "greedy": GreedyLR}
"""Schedules that wait for a metric."""


def make_scheduler(name: Any, optimizer: Optimizer, warmup: int | None, total: int | None, options: Any = None) -> Any:
    """Return the schedule called ``name`` (the values of `lr_scheduler_type`) over ``optimizer``.

    ``warmup`` and ``total`` count optimizer steps; ``options`` are `lr_scheduler_kwargs`. Raises `UsageError` for an
    unknown name, an unknown option, or one that cannot be.
    """
    word = str(getattr(name, "value", name))
    known = [*CURVES, *ON_METRIC]
    if word not in known:
        raise UsageError(
            f"lr_scheduler_type: got {word!r}, expected one of {', '.join(known)}.{did_you_mean(word, known)}"
        )
    options = dict(options or {})
    if word in ON_METRIC:
        return _with_options(word, ON_METRIC[word], optimizer, options)
    last_epoch = options.pop("last_epoch", -1)
    if word.startswith("constant") and options:
        # transformers drops them without a word; a script that has them still runs.
        log.warning("lr_scheduler_type=%r reads no lr_scheduler_kwargs, got %s", word, sorted(options))
        options = {}
    base = optimizer.defaults.get("lr", 0.0)
    curve = _with_options(word, CURVES[word], Span(warmup, total, base), options)
    return LambdaLR(optimizer, curve, last_epoch=last_epoch)


def _with_options(word: str, make: Callable[..., Any], first: Any, options: dict[str, Any]) -> Any:
    """Call ``make(first, **options)``, turning an unknown option into an error that lists the known ones."""
    import inspect

    known = list(inspect.signature(make).parameters)[1:]
    for option in options:
        if option not in known:
            raise UsageError(
                f"lr_scheduler_kwargs: lr_scheduler_type={word!r} does not read {option!r}, "
                f"it reads {', '.join(known) or 'none'}.{did_you_mean(option, known)}"
            )
    return make(first, **options)


def steps_on_metric(scheduler: Any) -> bool:
    """Whether ``scheduler.step`` wants a metric after each evaluation instead of being called at each optimizer step.

    Holds for transformers' GreedyLR too, which scripts pass in ready-made; it is known by its name, so that
    transformers need not be imported.
    """
    scheduler = getattr(scheduler, "scheduler", scheduler)  # accelerate's wrapper holds the real one
    return isinstance(scheduler, (ReduceLROnPlateau, GreedyLR)) or type(scheduler).__name__ == "GreedyLR"


def current_rate(scheduler: Any, optimizer: Any, deepspeed: bool = False) -> float:
    """The learning rate of the first parameter group, as a log line shows it.

    A rate that is kept in a tensor is read back: one host sync, so this is for log lines only.
    """
    if steps_on_metric(scheduler):
        rate = optimizer.param_groups[0]["lr"]
    else:
        try:
            rate = scheduler.get_last_lr()[0]
        except AssertionError as error:
            # DeepSpeed holds steps back while its fp16 scale settles, and has no rate until the first one.
            if not deepspeed or "need to call step" not in str(error):
                raise
            rate = 0.0
    return float(rate)
