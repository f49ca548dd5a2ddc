"""Where a step began, so that it can be taken back as if it had never been begun.

A step is taken back before its optimizer step: weights and optimizer are as they were, gradients were zero.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.batchnorm import _NormBase

from onward.data.draws import mark, rewind

if TYPE_CHECKING:
    from onward.hooks.base import TrainerBase


class Start:
    """The state of a run at the start of a step. Making one takes some twenty microseconds and no device waits."""

    def __init__(self, host: TrainerBase, draw_again: Callable[[], None] | None = None) -> None:
        """`draw_again`: puts the CPU generators back, where that is not to where they stand now."""
        assert host._tr_loss is not None
        self._put_back_cpu = partial(rewind, mark()) if draw_again is None else draw_again
        # The host knows these states, so reading them does not wait for the device.
        self._cuda = torch.cuda.get_rng_state() if _uses_cuda() else None
        self._buffers = host._buffers
        self._loss = host._tr_loss.clone()
        self._values = {name: getattr(host, name) for name in ("current_flos", "_open_tokens")}
        self._tokens_seen = host.state.num_input_tokens_seen
        self._meters = host.meters.mark()

    def undo(self, host: TrainerBase, model: Any) -> None:
        """Go back there."""
        assert host._tr_loss is not None
        model.zero_grad()
        self.draw_again()
        if self._buffers is not None:
            self._buffers.put_back()
        host._tr_loss.copy_(self._loss)
        host._loss_before, host._loss_finite = None, True
        for name, value in self._values.items():
            setattr(host, name, value)
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
        self._buffers = [buffer for buffer in model.buffers() if not buffer.is_inference()]
        self._copies = [buffer.clone() for buffer in self._buffers]
        self._versions = [buffer._version for buffer in self._buffers]
        # The kernels of batch normalisation change their statistics without raising the version.
        norms = [module for module in model.modules() if isinstance(module, _NormBase)]
        self._silent = {id(buffer) for norm in norms for buffer in norm.buffers()}

    def keep(self) -> None:
        """Copy what has changed."""
        for number in self._changed():
            self._copies[number].copy_(self._buffers[number])
            self._versions[number] = self._buffers[number]._version

    def _changed(self) -> list[int]:
        """Places of those that may differ from their copies."""
        return [
            number
            for number, buffer in enumerate(self._buffers)
            if self._versions[number] != buffer._version or id(buffer) in self._silent
        ]

    @torch.no_grad()
    def put_back(self, unless: torch.Tensor | None = None) -> None:
        """Make all as they were; not where `unless`, a 0-d bool tensor, is true on its device: nothing waits for it."""
        for number in self._changed():
            buffer, copy = self._buffers[number], self._copies[number]
            if unless is not None:
                copy = torch.where(unless.to(buffer.device), buffer, copy)
            buffer.copy_(copy)
            if unless is None:
                self._versions[number] = buffer._version


def _uses_cuda() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
