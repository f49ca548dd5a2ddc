"""Agreement between ranks about things that only one of them knows: a folder's name, an error.

Small Python objects only; with one process every function here is the identity.
"""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def rank() -> int:
    """Return the rank of this process (0 when there is only one)."""
    import torch.distributed as dist

    return dist.get_rank() if _together() else 0


def everyone(value: T) -> list[T]:
    """Return the value of every rank, in order of rank; all ranks must call it."""
    if not _together():
        return [value]
    import torch.distributed as dist

    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def from_first(value: T) -> T:
    """Return rank 0's value on every rank; all ranks must call it."""
    if not _together():
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _together() -> bool:
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
