"""Out of memory in the middle of a step: take the step back, cut its micro-batches, and take it again.

    pull        the step's micro-batches, cut to the size that is known to fit
    attempt     forward and backward of each, without exchanging gradients
    agree       whether any process ran out
    exchange    gradients, where there are several processes
    clip        and agree once more
    optimizer   whole or not at all (`onward.optim.whole_step`)

What runs out is freed, the step is taken back to its start (`onward.loop.undo`), micro-batches are halved, and the same
samples are trained on again. The step keeps its samples, its place in the schedule and what its loss is divided by.
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from onward import engine
from onward.agreement import Agreement
from onward.data.pieces import Limit, Pieces
from onward.errors import DataError, OutOfMemory
from onward.loop.fit import Work, accumulate, clip, end_step
from onward.loop.undo import Start
from onward.memory_errors import is_out_of_memory
from onward.optim.guard import innermost
from onward.optim.whole_step import Copies, allocates

if TYPE_CHECKING:
    from onward.hooks.base import TrainerBase
    from onward.loop.fit import Run

logger = logging.getLogger(__name__)

T = TypeVar("T")


def attempt(work: Callable[[], T]) -> tuple[T | None, str | None]:
    """Do `work`; if memory runs out, return what was said instead of its result.

    The error is gone when this returns, and with its traceback the tensors that the frames in it held.
    """
    try:
        return work(), None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None, str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def free() -> None:
    """Give back what an attempt has left behind."""
    gc.collect()
    engine.empty_cache()


class _Watched(list[Any]):
    """Micro-batches that remember which one is being trained on."""

    at = -1

    def __iter__(self) -> Iterator[Any]:
        for self.at, piece in enumerate(super().__iter__()):
            yield piece


class Fitting:
    """Keeps the micro-batches of one run small enough for the memory."""

    def __init__(self, host: TrainerBase, run: Run, found: int | None = None) -> None:
        """`found`: samples per micro-batch that an earlier part of the run found to fit."""
        self.limit = Limit()
        self._whole = run.plan.micro_batch_size
        """Samples in each of what the feed gives out."""
        self.agreement = Agreement.open()
        self._wholes: list[Pieces] = []
        self._missing: list[bool] = []
        run.feed.limit(self.limit)
        if found is not None:
            self.resize(host, run, found)

    def close(self) -> None:
        """Give back what several processes share; all must call it."""
        self.agreement.close()

    def resize(self, host: TrainerBase, run: Run, samples: int) -> None:
        """Train with micro-batches of so many samples, up to the whole step; before the first epoch only."""
        plan = run.plan
        if samples > plan.micro_batch_size:
            samples = min(samples, plan.micro_batch_size * plan.accumulation)
            self._whole = plan.micro_batch_size * plan.accumulation
            run.feed.join(plan.accumulation)
        if samples != plan.micro_batch_size:
            self._set(host, samples)

    # -- the step -------------------------------------------------------------------------------------------------

    def pull(self, host: TrainerBase, run: Run, batches: Iterator[Any], count: int) -> Work:
        """The next step's micro-batches, cut to the size that is known to fit."""
        self._wholes, left = [], count
        while left > 0 and (whole := next(batches, None)) is not None:
            self._wholes.append(whole)
            left -= len(whole.batches())
        work = self._work(host, run)
        if self._whole > run.plan.micro_batch_size:
            # Not as many as here have pieces: the last step of an epoch may have fewer in another process.
            sure = math.ceil((count - 1) * run.plan.micro_batch_size / self.limit.get())
            work.chances = max(0, sure - 1)
        return work

    def _work(self, host: TrainerBase, run: Run) -> Work:
        limit = self.limit.get()
        if limit:
            # What loader workers had prefetched, and what has no samples to collate, is still as large as before.
            self._wholes = [run.feed.cut(whole, limit) for whole in self._wholes]
        pieces = [piece for whole in self._wholes for piece in whole]
        batches = sum(len(whole.batches()) for whole in self._wholes)
        weights = run.feed.batch_weights(batches)
        if len(pieces) != len(self._wholes) or batches != len(self._wholes):
            weights = self._weights(weights, host.accelerator.num_processes)
            run.feed.weigh_pieces(weights)
        samples, num_items = host.get_batch_samples(iter(pieces), len(pieces), host.args.device)
        return Work(_Watched(samples), num_items, weights, batches, chances=batches - 1)

    def _weights(self, of_batches: list[float], processes: int) -> list[float]:
        """What the mean loss of each piece counts for: as much as its samples did in their micro-batches."""
        pieces = sum(map(len, self._wholes))
        if processes == 1 and self._whole % (self.limit.get() or self._whole) == 0:
            # As in a run that had this size from the start, to which the short end of an epoch is one micro-batch more.
            return [1.0] * pieces
        sizes = [size for whole in self._wholes for size in whole.batches()]
        of_samples = iter([w / size for w, size in zip(of_batches, sizes, strict=True) for _ in range(size)])
        more = pieces / len(of_batches)  # the loss of each is divided by their number
        return [sum(islice(of_samples, size)) * more for whole in self._wholes for size in whole.sizes()]

    def take(self, host: TrainerBase, run: Run, work: Work) -> bool:
        """Take the step, with smaller micro-batches as often as memory runs out.

        Returns:
            False if a callback asked in between to stop.

        Raises:
            OutOfMemory: a single sample does not fit.
        """
        start = Start(host)
        while True:
            went_on, said = self._try(host, run, work)
            if said is None:
                return bool(went_on)
            start.undo(host, run.model)
            host._free_saves()
            free()
            work = self._shrink(host, run, work, said)

    def _try(self, host: TrainerBase, run: Run, work: Work) -> tuple[bool | None, str | None]:
        """One attempt at the step; the second value is not None, on all processes, if memory ran out on one."""
        with apart(run.model, self.agreement):
            went_on, said = self._agreed(*self._micro_batches(host, run, work))
        if said is not None or not went_on:
            return went_on, said
        if not self.agreement.is_alone:
            _exchange(run.model, self.agreement, self._missing)
        grad_norm, said = self.together(lambda: clip(host, run))
        if said is not None:
            return None, said
        host.control = host.callback_handler.on_pre_optimizer_step(host.args, host.state, host.control)
        said = self._step(host, grad_norm)
        if said is not None:
            return None, said
        end_step(host, run, grad_norm)
        return True, None

    def _micro_batches(self, host: TrainerBase, run: Run, work: Work) -> tuple[bool | None, str | None]:
        """`attempt` forward and backward of all.

        Between micro-batches the processes ask each other whether to leave. One that ran out asks on, as often as the
        others do: they would wait for it.
        """
        leave, asked = work.leave, 0
        if leave is None:
            return attempt(lambda: self._forward_and_backward(host, run, work))

        def count_and_leave() -> None:
            nonlocal asked
            asked += 1
            leave()

        counted = replace(work, leave=count_and_leave)
        outcome = attempt(lambda: self._forward_and_backward(host, run, counted))
        if outcome[1] is not None and not self.agreement.is_alone:
            for _ in range(work.chances - asked):
                leave()
        return outcome

    def _forward_and_backward(self, host: TrainerBase, run: Run, work: Work) -> bool:
        went_on = accumulate(host, run, work)
        if went_on and not self.agreement.is_alone:
            self._missing = _fill_gradients(run.model)
        return went_on

    def _step(self, host: TrainerBase, grad_norm: Any) -> str | None:
        optimizer = innermost(host.optimizer)
        if not allocates(optimizer):
            host._step_optimizer(grad_norm)
            return None
        meters = host.meters.mark()
        copies, said = self.together(lambda: Copies(optimizer))
        if said is None:
            _, said = self.together(lambda: host._step_optimizer(grad_norm))
        if said is not None and copies is not None:
            copies.put_back()
            host.meters.rewind(meters)
        if said is not None and (scaler := getattr(host.accelerator, "scaler", None)) is not None:
            scaler.update(scaler.get_scale())  # forgets that this step's gradients were unscaled
        return said

    def together(self, work: Callable[[], T]) -> tuple[T | None, str | None]:
        """`attempt`, with the same outcome on all processes."""
        return self._agreed(*attempt(work))

    def _agreed(self, result: T | None, said: str | None) -> tuple[T | None, str | None]:
        (anyone,) = self.agreement.largest(int(said is not None))
        if anyone and said is None:
            return result, "another process ran out of memory"
        return result, said

    # -- smaller --------------------------------------------------------------------------------------------------

    def _shrink(self, host: TrainerBase, run: Run, work: Work, said: str) -> Work:
        watched = work.samples
        at = max(0, getattr(watched, "at", 0))
        (largest,) = self.agreement.largest(max(size for whole in self._wholes for size in whole.sizes()))
        if largest <= 1:
            raise OutOfMemory(self._describe_sample(run, watched[at], at, said))
        try:
            self._set(host, (largest + 1) // 2)
            smaller = self._work(host, run)
        except DataError as error:
            raise OutOfMemory(
                f"Out of memory with {largest} samples ({said}), and the batch cannot be cut: {error}"
            ) from None
        effective = run.plan.accumulation * run.plan.micro_batch_size
        tell_change(
            host, largest, self.limit.get(),
            f"Out of memory at step {host.state.global_step + 1}, micro-batch {at + 1} of {len(watched)}: {said}. The "
            f"same step is taken again (effective batch: {effective} samples per process, as before)",
        )  # fmt: skip
        if _has_batch_statistics(run.model):
            logger.warning(
                "The model normalises over the samples of a micro-batch (BatchNorm): smaller ones change its results. "
                "Use GroupNorm or LayerNorm, or freeze the statistics, if that matters."
            )
        host.current_gradient_accumulation_steps = len(smaller.samples)
        return replace(smaller, leave=work.leave)

    def _set(self, host: TrainerBase, samples: int) -> None:
        self.limit.set(samples)
        host._train_batch_size = host.state.train_batch_size = samples

    def _describe_sample(self, run: Run, piece: Any, at: int, said: str) -> str:
        index = "unknown (the data has no index)"
        known = [i for whole in self._wholes for i in (whole.indices or [None] * len(whole))]
        if at < len(known) and known[at] is not None:
            index = str(known[at])
        return (
            f"Out of memory with a single sample: index {index} of the training data, {shapes_of(piece)} ({said}). "
            "Shorten it (max_length, truncation), or make the step smaller: activation_checkpointing=True, bf16=True, "
            "optim='adafactor' or an 8-bit optimizer, chunked_loss='auto', LoRA (peft); or use a larger device."
        )


def shapes_of(piece: Any) -> str:
    """The shapes of a batch, in words."""
    members = piece.items() if hasattr(piece, "items") else [("input", piece)]
    return ", ".join(f"{name} of shape {tuple(value.shape)}" for name, value in members if hasattr(value, "shape"))


def tell_change(host: TrainerBase, before: int, now: int, why: str) -> None:
    """Log that batches have another size from now on, and tell the callbacks."""
    logger.warning("%s, %d samples at a time%s.", why, now, f" instead of {before}" if now != before else ", as before")
    if hasattr(host.callback_handler, "on_train_error"):  # ours, which passes over callbacks that do not know an event
        host.control = host.callback_handler.call_event(
            "on_batch_size_change", host.args, host.state, host.control, before=before, now=now, reason=why
        )


def _has_batch_statistics(model: Any) -> bool:
    from torch.nn.modules.batchnorm import _BatchNorm

    return any(isinstance(module, _BatchNorm) and module.training for module in model.modules())


# -- several processes ------------------------------------------------------------------------------------------------


def apart(model: Any, agreement: Agreement) -> Any:
    """A context in which DistributedDataParallel neither exchanges gradients nor buffers.

    A process that runs out within backward would leave the others waiting for its gradients.
    """
    if agreement.is_alone or not hasattr(model, "no_sync"):
        return nullcontext()
    model.require_forward_param_sync = False
    return model.no_sync()


def _fill_gradients(model: Any) -> list[bool]:
    """Put zeros where this process's samples touched no parameter: others' may have. Returns where that was."""
    import torch

    missing = []
    for parameter in model.parameters():
        missing.append(parameter.requires_grad and parameter.grad is None)
        if missing[-1]:
            parameter.grad = torch.zeros_like(parameter)
    return missing


def _exchange(model: Any, agreement: Agreement, missing: list[bool]) -> None:
    """Average gradients over all processes, as DistributedDataParallel does, and take over rank 0's buffers.

    In place, so that it needs no memory: every process has made the gradients that were missing.
    """
    if not hasattr(model, "no_sync"):
        return
    import torch.distributed as dist

    touched = agreement.largest(*(int(not nothing) for nothing in missing))
    size = dist.get_world_size()
    pending = []
    for parameter, by_anyone in zip(model.parameters(), touched, strict=True):
        if not by_anyone:
            parameter.grad = None
        elif parameter.grad is not None:
            pending.append(dist.all_reduce(parameter.grad.div_(size), async_op=True))
    if getattr(model, "broadcast_buffers", False):
        pending += [dist.broadcast(buffer, 0, async_op=True) for buffer in model.module.buffers()]
    for work in pending:
        work.wait()
