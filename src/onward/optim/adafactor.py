"""Adafactor: second moments of a matrix kept as one row and one column.

Source: Shazeer and Stern 2018, arXiv 1804.04235. The state has the names and types that transformers writes into
`optimizer.pt`, and every update equals its to the bit on a CPU, so either side loads the other's checkpoint. (torch's
own `torch.optim.Adafactor` follows another variant of the paper.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from onward.errors import UsageError

_HALF = (torch.float16, torch.bfloat16)


def _root_mean_square(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor)
    root: float = tensor.numel() ** 0.5
    return norm / root


class Adafactor(torch.optim.Optimizer):
    """Adafactor with transformers' options.

    ``lr`` is an outside learning rate and excludes ``relative_step``, where the step size follows from the count of
    steps. ``scale_parameter`` multiplies it with the size of the weights. ``eps`` is (added to squared gradients, least
    size of weights). ``beta1=None`` keeps no first moment. Half-precision weights are updated in float32.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | None = None,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
        relative_step: bool = True,
        warmup_init: bool = False,
    ) -> None:
        if lr is not None and relative_step:
            raise UsageError(f"Adafactor: got lr={lr} with relative_step=True, expected one of them")
        if warmup_init and not relative_step:
            raise UsageError("Adafactor: got warmup_init=True without relative_step=True, which it shapes")
        options = {
            "lr": lr,
            "eps": eps,
            "clip_threshold": clip_threshold,
            "decay_rate": decay_rate,
            "beta1": beta1,
            "weight_decay": weight_decay,
            "scale_parameter": scale_parameter,
            "relative_step": relative_step,
            "warmup_init": warmup_init,
        }
        super().__init__(params, options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every weight that has a gradient, and return what ``closure`` returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)
        return loss

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        if weight.grad is None or weight.grad.is_sparse:
            raise UsageError("Adafactor: got a sparse gradient, expected a dense one (nn.Embedding with sparse=False)")
        half = weight.dtype in _HALF
        grad = weight.grad.float() if weight.grad.dtype in _HALF else weight.grad
        values = weight.float() if half else weight
        state = self._state_of(weight, grad, group)
        state["step"] += 1
        state["RMS"] = _root_mean_square(values)
        rate = self._get_lr(group, state)

        change = _second_moment(state, grad, group)
        change.div_((_root_mean_square(change) / group["clip_threshold"]).clamp_(min=1.0)).mul_(rate)
        if group["beta1"] is not None:
            change = state["exp_avg"].mul_(group["beta1"]).add_(change, alpha=1 - group["beta1"])
        if group["weight_decay"] != 0:
            values.add_(values, alpha=-group["weight_decay"] * rate)
        values.sub_(change)
        if half:
            weight.copy_(values)

    def _state_of(self, weight: Tensor, grad: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """Return the weight's state, made on first use and moved to the dtype of the gradient after a load."""
        state: dict[str, Any] = self.state[weight]
        if not state:
            shapes = {"exp_avg": grad.shape} if group["beta1"] is not None else {}
            if grad.dim() >= 2:
                shapes |= {"exp_avg_sq_row": grad.shape[:-1], "exp_avg_sq_col": grad.shape[:-2] + grad.shape[-1:]}
            else:
                shapes["exp_avg_sq"] = grad.shape
            state |= {"step": 0, "RMS": 0, **{name: grad.new_zeros(shape) for name, shape in shapes.items()}}
        for name in ("exp_avg", "exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq"):
            if name in state:
                state[name] = state[name].to(grad)
        return state

    @staticmethod
    def _get_lr(param_group: dict[str, Any], param_state: dict[str, Any]) -> Any:
        """The step size. Schedules written for transformers' Adafactor call it by this name."""
        size = param_group["lr"]
        if param_group["relative_step"]:
            ceiling = 1e-6 * param_state["step"] if param_group["warmup_init"] else 1e-2
            size = min(ceiling, 1.0 / math.sqrt(param_state["step"]))
        if param_group["scale_parameter"]:
            return max(param_group["eps"][1], param_state["RMS"]) * size
        return size


def _second_moment(state: dict[str, Any], grad: Tensor, group: dict[str, Any]) -> Tensor:
    """Fold the squared gradient into the running means, and return the gradient divided by their root."""
    keep = 1.0 - math.pow(state["step"], group["decay_rate"])
    squared = grad.square().add_(group["eps"][0])
    if "exp_avg_sq" in state:
        mean: Tensor = state["exp_avg_sq"].mul_(keep).add_(squared, alpha=1.0 - keep)
        return mean.rsqrt().mul_(grad)
    row: Tensor = state["exp_avg_sq_row"].mul_(keep).add_(squared.mean(dim=-1), alpha=1.0 - keep)
    column: Tensor = state["exp_avg_sq_col"].mul_(keep).add_(squared.mean(dim=-2), alpha=1.0 - keep)
    # The outer product of row and column, over their common mean, stands in for the full matrix of squares.
    of_row = (row / row.mean(dim=-1, keepdim=True)).rsqrt_().unsqueeze(-1)
    return (of_row * column.unsqueeze(-2).rsqrt()).mul_(grad)
