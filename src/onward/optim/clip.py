"""The norm of the gradient, and the cut to a greatest norm.

Both stay on the device: the norm is a tensor that nobody reads before a log line, and the cut multiplies by a factor
that is 1 where nothing is to be cut, instead of asking whether it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from onward.sharding import is_part

_OWN_RULES = ("FSDP", "DEEPSPEED", "XLA", "MEGATRON_LM")
_SURELY_BELOW = 0.99
"""A norm of at most this share of the limit is not cut, however its number format rounds."""


class Gradients:
    """The gradients of one model. Its parameters are listed once: walking a deep model at each step adds up."""

    def __init__(self, model: nn.Module, accelerator: Any) -> None:
        self.model = model
        self.parameters = list(model.parameters())
        self._accelerator = accelerator
        kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
        # Whether gradients are sharded in a way that accelerate must reduce.
        self._by_accelerate = kind in _OWN_RULES or any(map(is_part, self.parameters))
        self._scaled = getattr(accelerator, "mixed_precision", None) == "fp16"

    def clip(self, max_norm: float) -> Tensor | None:
        """Scale all gradients so that their norm is at most ``max_norm``, and return the norm that they had.

        The result is a 0-d tensor on the device, None where DeepSpeed has none yet.
        """
        if self._by_accelerate:
            return _as_tensor(self._accelerator.clip_grad_norm_(self.parameters, max_norm))
        norm = self._local_norm()
        # On a CPU reading the norm is free, and the factor would be exactly 1.
        if not (norm.is_cpu and norm.item() < _SURELY_BELOW * max_norm):
            clip_grads_with_norm_(self.parameters, max_norm, norm)
        return norm

    def norm(self) -> Tensor | None:
        """Return the 2-norm of all gradients as one vector: a 0-d tensor on the device."""
        if self._by_accelerate:
            # An infinite limit cuts nothing, and lets accelerate do what this kind of sharding needs.
            return _as_tensor(self._accelerator.clip_grad_norm_(self.parameters, float("inf")))
        return self._local_norm()

    def _local_norm(self) -> Tensor:
        if self._scaled:
            self._accelerator.unscale_gradients()
        return get_total_norm(_present(self.parameters))

    def clear(self) -> None:
        """Set all gradients to None."""
        for parameter in self.parameters:
            parameter.grad = None


def _present(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _as_tensor(norm: Any) -> Tensor | None:
    if norm is None or isinstance(norm, Tensor):
        return norm.full_tensor() if is_part(norm) else norm  # type: ignore[union-attr]
    return torch.tensor(float(norm))
