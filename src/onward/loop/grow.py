"""``auto_find_batch_size="grow"``: before training starts, find the largest micro-batch that fits.

    warm up     one micro-batch and an optimizer step, so that gradients and optimizer state take their memory
    probe       the longest samples, at two sizes
    jump        to the size that the line through both says will fit, with 5 % of the limit left free
    verify      that size; the next smaller one if it does not fit after all
    take back   weights, optimizer, buffers, gradients and random numbers, to the bit

A step stays the same list of samples: it is only cut into fewer parts. So the largest size of all is the whole step of
a process, and accumulation falls as micro-batches grow. Several processes do all this in step with each other, and each
figure is that of the one which has the least room.
"""

from __future__ import annotations

import logging
import math
import os
import time
from functools import partial
from typing import TYPE_CHECKING

from onward.data.draws import protected
from onward.data.order import longest_samples
from onward.gauge import Gauge, open_gauge
from onward.loop.shrink import Fitting, apart, free, tell_change
from onward.loop.undo import Start
from onward.optim.guard import innermost
from onward.optim.whole_step import Copies

if TYPE_CHECKING:
    from onward.hooks.base import TrainerBase
    from onward.loop.fit import Run

logger = logging.getLogger(__name__)


def grow(host: TrainerBase, run: Run) -> None:
    """Find the largest micro-batch that fits, and train with it."""
    fitting = run.fitting
    assert fitting is not None
    if run.is_over or host.state.global_step >= run.plan.max_steps:
        return
    gauge = open_gauge(host.args.device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    obstacle = _obstacle(host, run, gauge)
    (anywhere,) = fitting.agreement.largest(int(obstacle is not None))
    if anywhere:
        logger.warning(
            "auto_find_batch_size='grow' does not look for a larger size here, and works as True does: %s.",
            obstacle or "another process cannot",
        )
        return
    assert gauge is not None
    began, before = time.monotonic(), run.plan.micro_batch_size
    whole = before * run.plan.accumulation
    found = even_size(whole, _Search(host, run, gauge).largest(whole))
    fitting.resize(host, run, found)
    tell_change(
        host, before, found,
        f"The largest micro-batch that fits was looked for in {time.monotonic() - began:.1f} s (effective batch: "
        f"{whole} samples per process, which stays)",
    )  # fmt: skip


def _obstacle(host: TrainerBase, run: Run, gauge: Gauge | None) -> str | None:
    """Why no size can be looked for."""
    if not run.feed.can_join:
        return "its micro-batches are not cut from map-style data in a loader of onward's"
    if gauge is None:
        return f"the memory of {host.args.device} cannot be measured on this system"
    if host.args.optim in ("lomo", "adalomo") or "layerwise" in str(host.args.optim):
        return f"optim={str(host.args.optim)!r} changes weights within the backward pass"
    return None


def even_size(whole: int, largest: int) -> int:
    """The size of the fewest parts of at most `largest` samples that `whole` can be cut into, all about as large."""
    return math.ceil(whole / math.ceil(whole / largest))


def _where(room: int, one: tuple[int, int], other: tuple[int, int], most: int) -> int:
    """The size, from 1 to `most`, at which the line through two ``(size, bytes)`` reaches `room`."""
    rise, run = other[1] - one[1], other[0] - one[0]
    if rise <= 0 or run <= 0:
        return most
    return max(1, min(most, other[0] + (room - other[1]) * run // rise))


class _Search:
    """Trains beside the run, measures, and takes everything back."""

    def __init__(self, host: TrainerBase, run: Run, gauge: Gauge) -> None:
        assert run.fitting is not None
        self._host, self._run, self._gauge = host, run, gauge
        self._fitting: Fitting = run.fitting
        column = host.args.length_column_name
        dataset = run.feed.loader.dataset.dataset
        whole = run.plan.micro_batch_size * run.plan.accumulation
        self._samples = protected(partial(longest_samples, dataset, whole, column))

    def largest(self, whole: int) -> int:
        """Samples that fit, from 1 to `whole`."""
        host, accumulation = self._host, self._host.current_gradient_accumulation_steps
        if self._run.buffers is not None:
            self._run.buffers.keep()
        start, copies = Start(host), None
        host.current_gradient_accumulation_steps = 1
        try:
            small, copies = self._warm_up()
            return 1 if copies is None else self._jump(small, whole)
        finally:
            if copies is not None:
                copies.put_back()
            start.undo(host, self._run.model)
            host.current_gradient_accumulation_steps = accumulation
            free()

    def _warm_up(self) -> tuple[int, Copies | None]:
        """Take an optimizer step on few samples; returns how many, and the weights from before."""
        size = self._run.plan.micro_batch_size
        while self._taken(size) is None:
            if size == 1:
                return 1, None  # the first step will say which sample does not fit
            size //= 2
        optimizer = innermost(self._host.optimizer)
        copies, said = self._fitting.together(lambda: Copies(optimizer))
        if said is None:
            _, said = self._fitting.together(optimizer.step)
        if said is not None and copies is not None:
            copies.put_back()
        return size, None if said is not None else copies

    def _jump(self, small: int, whole: int) -> int:
        """Draw the line through two sizes, and go where it leads."""
        large = min(2 * small, whole)
        first, second = self._taken(small), self._taken(large)
        self._gauge.start()
        room = -self._fitting.agreement.largest(-self._gauge.room())[0]
        size, fits = even_size(whole, max(small, large - 1)), small
        if first is not None and second is not None:
            size = even_size(whole, _where(room, (small, first), (large, second), whole))
            fits = large if second <= room else small
        while size > fits:
            taken = self._taken(size)
            if taken is not None and taken <= room:
                return size
            size = even_size(whole, size - 1)
        return fits

    def _taken(self, size: int) -> int | None:
        """What forward and backward of a micro-batch take at most; `None` where memory runs out."""
        host, model = self._host, self._run.model
        free()
        self._gauge.start()
        batch, said = self._fitting.together(lambda: self._run.feed.sample_batch(self._samples[:size]))
        if batch is not None and said is None:
            items = host._get_num_items_in_batch([batch], host.args.device)
            with apart(model, self._fitting.agreement):
                _, said = self._fitting.together(partial(host.training_step, model, batch, items))
        (taken,) = self._fitting.agreement.largest(self._gauge.taken())
        logger.debug("A micro-batch of %d takes %.1f MiB: %s.", size, taken / 2**20, said or "it fits")
        return None if said is not None else taken
