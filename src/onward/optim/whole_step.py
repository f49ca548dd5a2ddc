"""An optimizer step that happens whole or not at all, also where memory runs out in its middle.

Where an optimizer allocates within its step (its state at the first one, temporaries at every one unless it is fused),
it may have changed some weights and moments when an allocation fails. So weights and state are copied to host memory
before such a step and put back if it fails. torch's fused optimizers allocate nothing once their state is there: their
later steps need no copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)


def allocates(optimizer: Any) -> bool:
    """Whether the next step of ``optimizer`` (the innermost one) may allocate memory."""
    if type(optimizer) not in _FUSED or not all(group.get("fused") for group in optimizer.param_groups):
        return True
    if type(optimizer) is torch.optim.SGD and all(group["momentum"] == 0 for group in optimizer.param_groups):
        return False
    return any(
        parameter.grad is not None and not _has_state(optimizer.state.get(parameter))
        for group in optimizer.param_groups
        for parameter in group["params"]
    )


def _has_state(state: dict[str, Any] | None) -> bool:
    return bool(state) and any(value is not None for value in state.values())  # type: ignore[union-attr]


class Copies:
    """Weights and optimizer state as they were before a step."""

    def __init__(self, optimizer: Any) -> None:
        """Copy them to host memory. May run out of memory itself: nothing has happened then."""
        self._optimizer = optimizer
        self._weights = [(weight, _on_host(weight)) for weight in _weights(optimizer)]
        self._groups = [{k: _copied(v) for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        self._state = {
            key: (values, {name: (value, _copied(value)) for name, value in values.items()})
            for key, values in optimizer.state.items()
        }

    @torch.no_grad()
    def put_back(self) -> None:
        """Undo the step, whole or begun. Allocates nothing that the step had not freed."""
        for weight, copy in self._weights:
            weight.copy_(copy)
        for group, old in zip(self._optimizer.param_groups, self._groups, strict=True):
            for name in [name for name in group if name != "params" and name not in old]:
                del group[name]
            group.update({name: _restored(group.get(name), value) for name, value in old.items()})
        for key in [key for key in self._optimizer.state if key not in self._state]:
            del self._optimizer.state[key]
        for key, (values, old) in self._state.items():
            values.clear()
            values.update({name: _restored(value, copy) for name, (value, copy) in old.items()})
            self._optimizer.state[key] = values


def _weights(optimizer: Any) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is not None:
                yield weight


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _on_host(value)
    if isinstance(value, dict):
        return {name: _copied(part) for name, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list) else value


def _restored(value: Any, copy: Any) -> Any:
    """`copy` in the place of `value`, into the same memory where it is a tensor."""
    if isinstance(copy, Tensor) and isinstance(value, Tensor):
        return value.copy_(copy)
    return copy
