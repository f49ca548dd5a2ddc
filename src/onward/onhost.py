"""What the host knows of a tensor on an accelerator, so that it need not wait for the accelerator to tell.

A batch is on the host before it is copied to the device. Where something of it is asked for later that only the host
can use, lengths for one, the tensor on the device leads to the one that it was copied from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_NAME = "_onward_on_host"


def on_host(tensor: Tensor) -> Tensor:
    """The values of `tensor` on the host. Waits for the device where the host has not kept them."""
    if tensor.device.type == "cpu":
        return tensor
    kept: Tensor | None = getattr(tensor, _NAME, None)
    return tensor.cpu() if kept is None else kept  # host sync where nothing was kept


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`, without waiting for the copy; the host keeps it."""
    if device.type == "cpu":
        return tensor
    # A copy from memory that is not page-locked would wait for the device.
    source = tensor.pin_memory() if device.type == "cuda" else tensor
    return _lead(source.to(device, non_blocking=True), tensor)


def keep_mask(batch: Any, moved: Any) -> None:
    """Let the attention mask of a moved batch lead to that of the batch on the host."""
    if isinstance(batch, Mapping) and isinstance(moved, Mapping):
        source, mask = batch.get("attention_mask"), moved.get("attention_mask")
        if isinstance(source, Tensor) and isinstance(mask, Tensor) and source.device.type == "cpu" != mask.device.type:
            _lead(mask, source)


def _lead(moved: Tensor, source: Tensor) -> Tensor:
    setattr(moved, _NAME, source)
    return moved
