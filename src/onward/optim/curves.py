"""The shapes of a learning rate: each function maps an optimizer step to a factor of the base learning rate.

They are pure, take the step first and the rest by keyword, and equal transformers' to the bit, which fixes the order
of the operations. ``warmup`` and ``total`` count optimizer steps. Names of the other keywords are those that
`lr_scheduler_kwargs` uses.
"""

from __future__ import annotations

import math

WARMUPS = ("linear", "cosine", "1-sqrt")


def flat(step: int) -> float:
    """The base learning rate, always."""
    return 1.0


def _rise(step: int, warmup: int) -> float:
    return float(step) / float(max(1, warmup))


def _progress(step: int, warmup: int, total: int) -> float:
    """How much of the part after the warm-up is done."""
    return float(step - warmup) / float(max(1, total - warmup))


def _wave(num_cycles: float, progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * float(num_cycles) * 2.0 * progress))


def _lift(factor: float, floor: float) -> float:
    """Squeeze a factor from [0, 1] into [floor, 1]."""
    return factor * (1 - floor) + floor


def flat_after_warmup(step: int, *, warmup: int) -> float:
    """Rise in a line, then stay."""
    return _rise(step, warmup) if step < warmup else 1.0


def linear(step: int, *, warmup: int, total: int) -> float:
    """Rise in a line, then fall in a line to zero."""
    if step < warmup:
        return _rise(step, warmup)
    return max(0.0, float(total - step) / float(max(1, total - warmup)))


def cosine(step: int, *, warmup: int, total: int, num_cycles: float, floor: float = 0.0) -> float:
    """Rise in a line, then follow ``num_cycles`` waves of a cosine between 1 and ``floor``."""
    if step < warmup:
        return _rise(step, warmup)
    return max(0.0, _lift(_wave(num_cycles, _progress(step, warmup, total)), floor))


def cosine_restarts(step: int, *, warmup: int, total: int, num_cycles: float) -> float:
    """Rise in a line, then fall ``num_cycles`` times from 1 to 0, jumping back up in between."""
    if step < warmup:
        return _rise(step, warmup)
    progress = _progress(step, warmup, total)
    if progress >= 1.0:
        return 0.0
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((float(num_cycles) * progress) % 1.0))))


def cosine_from_floor(
    step: int, *, warmup: int, total: int, num_cycles: float, floor: float, warmup_lr_rate: float | None
) -> float:
    """A cosine to ``floor`` whose warm-up starts above zero: at ``warmup_lr_rate``, or one step into the rise."""
    now, start, end = float(step), float(warmup), float(total)
    if now < start:
        if warmup_lr_rate is None:
            return (now + 1.0) / max(1.0, start)
        base = float(warmup_lr_rate)
        return base + (1.0 - base) * now / max(1, start - 1)
    progress = (now - start + 1.0) / max(1.0, end - start)
    return max(0.0, _lift(_wave(num_cycles, progress), floor))


def polynomial(step: int, *, warmup: int, total: int, lr_end: float, power: float, lr_init: float) -> float:
    """Rise in a line, then fall from ``lr_init`` to ``lr_end`` along a power of what remains."""
    if step < warmup:
        return _rise(step, warmup)
    if step > total:
        return lr_end / lr_init
    remaining = 1 - (step - warmup) / max(1, total - warmup)
    rate: float = (lr_init - lr_end) * remaining**power + lr_end
    return rate / lr_init


def inverse_sqrt(step: int, *, warmup: int, timescale: int) -> float:
    """Rise in a line, then fall with the inverse root of the step."""
    if step < warmup:
        return _rise(step, warmup)
    return 1.0 / math.sqrt((step + (timescale - warmup)) / timescale)


def warmup_stable_decay(
    step: int, *, ends: tuple[int, int, int], warmup_type: str, decay_type: str, floor: float, num_cycles: float
) -> float:
    """Rise, stay, fall. ``ends`` are the steps at which the three stages end; after them it stays at ``floor``."""
    warmup, stable, total = ends
    if step < warmup:
        return max(0.0, _lift(_rising(_rise(step, warmup), warmup_type), floor))
    if step < stable:
        return 1.0
    if step < total:
        done = float(step - stable) / float(max(1, total - stable))
        return max(0.0, _lift(_falling(done, decay_type, num_cycles), floor))
    return floor


def _rising(progress: float, kind: str) -> float:
    if kind == "linear":
        return progress
    if kind == "cosine":
        return 0.5 * (1.0 - math.cos(math.pi * progress))
    return 1.0 - math.sqrt(1.0 - progress)


def _falling(progress: float, kind: str, num_cycles: float) -> float:
    if kind == "linear":
        return 1.0 - progress
    if kind == "cosine":
        return _wave(num_cycles, progress)
    return 1.0 - math.sqrt(progress)
