"""Agreement of all processes of a run on small numbers, between hosts: no accelerator is waited for."""

from __future__ import annotations

from typing import Any


class Agreement:
    """The largest of what every process says. With one process it is what that one says."""

    def __init__(self, group: Any = None) -> None:
        self._group = group

    @classmethod
    def open(cls) -> Agreement:
        """Open a group of its own for this; all processes must call it at the same place."""
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls()
        return cls(dist.new_group(backend="gloo"))

    @property
    def is_alone(self) -> bool:
        """Whether there is only one process."""
        return self._group is None

    def largest(self, *numbers: int) -> tuple[int, ...]:
        """For each number the largest of all processes. All must call it; waits for the slowest."""
        if self._group is None:
            return numbers
        import torch
        import torch.distributed as dist

        said = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(said, dist.ReduceOp.MAX, group=self._group)
        return tuple(said.tolist())

    def close(self) -> None:
        """Give the group back; all processes must call it."""
        if self._group is None:
            return
        import torch.distributed as dist

        dist.destroy_process_group(self._group)
        self._group = None
