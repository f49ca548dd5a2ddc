"""Where a step began, so that it can be taken back as if it had never been begun.

A step is taken back before its optimizer step: weights and optimizer are as they were, gradients were zero.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.batchnorm import _NormBase

from onward.checkpoint.buffers import distinct
from onward.data.draws import mark, rewind

if TYPE_CHECKING:
    from onward.hooks.base import TrainerBase


class Start:
    """The state of a run at the start of a step. Making one takes some ten microseconds and no device waits."""

    def __init__(self, host: TrainerBase, draw_again: Callable[[], None] | None = None) -> None:
        """`draw_again`: puts the CPU generators back, where that is not to where they stand now."""
        assert host._tr_loss is not None
        self._put_back_cpu = partial(rewind, mark()) if draw_again is None else draw_again
        # The host knows these states, so reading them does not wait for the device.
        self._cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        self._buffers = host._buffers
        loss = host._tr_loss
        self._loss: Any = loss.item() if loss.is_cpu else loss.clone()  # the number is the same, and costs less
        self._flos, self._open_tokens = host.current_flos, host._open_tokens
        self._tokens_seen = host.state.num_input_tokens_seen
        self._meters = host.meters.mark()

    def undo(self, host: TrainerBase, model: Any) -> None:
        """Go back there."""
        assert host._tr_loss is not None
        model.zero_grad()
        self.draw_again()
        if self._buffers is not None:
            self._buffers.put_back()
        host._tr_loss.fill_(self._loss)
        host._loss_before, host._loss_finite = None, True
        host.current_flos, host._open_tokens = self._flos, self._open_tokens
        host.state.num_input_tokens_seen = self._tokens_seen
        host.meters.rewind(self._meters)

    def draw_again(self) -> None:
        """Put back the random number generators alone."""
        self._put_back_cpu()
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda)


class Buffers:
    """The buffers of a model (running statistics, for one), which forward may change, as they were before a step.

    Only those are copied anew that may have changed since the last copy.
    """

    def __init__(self, model: Any) -> None:
        self._places = [_Place(module, name) for module in model.modules() for name in module._buffers]

    @torch.no_grad()
    def keep(self) -> None:
        """Copy what has changed."""
        for place in self._places:
            if place.may_differ():
                place.keep()

    @torch.no_grad()
    def put_back(self, unless: torch.Tensor | None = None) -> None:
        """Make all as they were; not where `unless`, a 0-d bool tensor, is true on its device: nothing waits for it."""
        for place in self._places:
            if place.may_differ():
                place.put_back(unless)


class _Place:
    """One buffer of a module, which forward changes or replaces (``self.mean = 0.9 * self.mean + …``)."""

    def __init__(self, module: Any, name: str) -> None:
        self._of: dict[str, torch.Tensor | None] = module._buffers
        self._name = name
        # The kernels of batch normalisation change their statistics without raising the version.
        self._silent = isinstance(module, _NormBase)
        self._kept: torch.Tensor | None = None
        self._copy: torch.Tensor | None = None
        self.keep()

    def may_differ(self) -> bool:
        """Whether it may not be what it was when it was copied."""
        now = self._of[self._name]
        if now is not self._kept:
            return True
        return now is not None and self._version is not None and (self._silent or now._version != self._version)

    def keep(self) -> None:
        """Copy it as it is now."""
        now, copy = self._of[self._name], self._copy
        if now is not None and copy is not None and now is self._kept and now.shape == copy.shape:
            copy.copy_(now)
        else:
            self._copy = None if now is None else now.detach().clone()
        self._kept = now
        self._version = None if now is None else _version(now)

    def put_back(self, unless: torch.Tensor | None) -> None:
        """Make it what was copied, in the very tensor that it was."""
        now, kept, copy = self._of[self._name], self._kept, self._copy
        if unless is not None:
            if now is not None and copy is not None and now.shape == copy.shape:
                here, before = distinct(now), distinct(copy, of=now)
                here.copy_(torch.where(unless.to(now.device), here, before))
                return
            if unless:  # host sync: what has another shape cannot be chosen on the device
                return
        self._of[self._name] = kept
        if kept is not None and copy is not None:
            if kept.shape != copy.shape:
                kept.resize_(copy.shape)
            distinct(kept).copy_(distinct(copy, of=kept))
            self._version = _version(kept)


def _version(buffer: torch.Tensor) -> int | None:
    return None if buffer.is_inference() else buffer._version  # inference tensors count none, and cannot be changed
