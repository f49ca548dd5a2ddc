"""A copy of device state in host memory, taken fast, so that training can go on while it is written.

All tensors go into one block of memory that is kept and reused by the next save: page-faulting fresh memory costs five
to thirty times the copy itself. The block lies on huge pages and, with CUDA, is pinned, so that copies are queued on
the device's stream and the host does not wait: `Snapshot.wait` does, in the writer.

The copy keeps what a file's bytes depend on: which tensors share memory, strides, the types and identities of
containers. So an asynchronous save writes the same bytes as a synchronous one.
"""

from __future__ import annotations

import copy
import mmap
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

_ALIGN = 64
_RESERVE = 1 << 28
"""Bytes of host memory to leave free beside a snapshot."""


class NotCopyableError(Exception):
    """A state holds something that a snapshot cannot copy; the save is then synchronous."""


class HostBuffers:
    """The block of host memory that snapshots are copied into; one snapshot lives in it at a time."""

    def __init__(self) -> None:
        self._block: mmap.mmap | None = None
        self._pinned = False

    def copy(self, tree: Any) -> Snapshot:
        """Return a copy of nested containers of tensors and plain values; the previous snapshot becomes invalid.

        Raises:
            NotCopyableError: a tensor is no plain dense one (a quantized or sharded subclass, say).
            MemoryError: host memory is short.
        """
        storages = _storages(tree)
        total = sum(_aligned(each.nbytes()) for each in storages.values())
        self._reserve(total, cuda=any(each.device.type == "cuda" for each in storages.values()))
        copies: dict[tuple[str, int], torch.UntypedStorage] = {}
        offset = 0
        for key, storage in storages.items():
            copies[key] = self._copy_storage(storage, offset)
            offset += _aligned(storage.nbytes())
        snapshot = Snapshot(_rebuild(tree, copies, {}))
        if self._pinned:
            snapshot.event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            snapshot.event.record()
        return snapshot

    def release(self) -> None:
        """Give the memory back (once no snapshot is in use)."""
        if self._block is not None and self._pinned:
            _cudart().cudaHostUnregister(self._address())
        self._block = None  # freed when the last tensor that lies in it is gone
        self._pinned = False

    @property
    def size(self) -> int:
        """Bytes held."""
        return 0 if self._block is None else len(self._block)

    def _reserve(self, total: int, cuda: bool) -> None:
        if self.size >= total and (self._pinned or not cuda):
            return
        self.release()
        if total + _RESERVE > available_memory():
            raise MemoryError(f"a copy of the training state takes {total:,} bytes of host memory")
        size = -(-max(total, _ALIGN) // (1 << 21)) << 21
        self._block = mmap.mmap(-1, size)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._block.madvise(mmap.MADV_HUGEPAGE)
        if cuda:
            self._pinned = int(_cudart().cudaHostRegister(self._address(), size, 0)) == 0

    def _address(self) -> int:
        assert self._block is not None
        return torch.frombuffer(self._block, dtype=torch.uint8, count=1).data_ptr()

    def _copy_storage(self, storage: torch.UntypedStorage, offset: int) -> torch.UntypedStorage:
        count = storage.nbytes()
        if count == 0:
            return torch.UntypedStorage(0)  # type: ignore[no-untyped-call]
        assert self._block is not None
        target = torch.frombuffer(self._block, dtype=torch.uint8, count=count, offset=offset)
        target.copy_(_as_bytes(storage), non_blocking=True)
        return target.untyped_storage()


class Snapshot:
    """Copied state; complete only after `wait` when it came from a device."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree
        self.event: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Wait for the device to finish copying."""
        if self.event is not None:
            self.event.synchronize()


def to_host(tree: Any) -> Any:
    """Return the tree with device tensors copied to host memory, sharing kept; unchanged when all are there already.

    A file records on which device a storage was. Saves made either way shall have equal bytes, so all record the host.
    """
    try:
        storages = _storages(tree)
    except NotCopyableError:
        return tree
    away = {key: each for key, each in storages.items() if each.device.type != "cpu"}
    if not away or sum(each.nbytes() for each in away.values()) + _RESERVE > available_memory():
        return tree
    return _rebuild(tree, {key: _to_cpu(each) for key, each in storages.items()}, {})


def available_memory() -> int:
    """Return the bytes of host memory that can be taken: what the machine has free, or less where a cgroup says so."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, int(limit) - used)


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def _to_cpu(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    return storage.cpu()  # type: ignore[no-untyped-call,no-any-return]


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def _key(storage: torch.UntypedStorage) -> tuple[str, int]:
    return str(storage.device), storage._cdata if storage.nbytes() == 0 else storage.data_ptr()


def _as_bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _storages(tree: Any) -> dict[tuple[str, int], torch.UntypedStorage]:
    return {_key(tensor.untyped_storage()): tensor.untyped_storage() for tensor in _tensors(tree, set())}


def _tensors(tree: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        if type(tree) not in (torch.Tensor, torch.nn.Parameter) or tree.layout != torch.strided or tree.is_quantized:
            raise NotCopyableError(f"a tensor of type {type(tree).__name__}")
        if tree.device.type not in ("cpu", "cuda"):
            raise NotCopyableError(f"a tensor on {tree.device}")
        yield tree
    elif isinstance(tree, (dict, list, tuple)) and id(tree) not in seen:
        seen.add(id(tree))
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(value, seen)


def _rebuild(tree: Any, copies: dict[tuple[str, int], torch.UntypedStorage], memo: dict[int, Any]) -> Any:
    if id(tree) in memo:
        return memo[id(tree)]
    result: Any
    if isinstance(tree, torch.Tensor):
        storage = copies[_key(tree.untyped_storage())]
        result = torch.empty(0, dtype=tree.dtype).set_(storage, tree.storage_offset(), tree.shape, tree.stride())
        if isinstance(tree, torch.nn.Parameter):
            result = torch.nn.Parameter(result, requires_grad=tree.requires_grad)
    elif type(tree) in (dict, OrderedDict):
        result = memo[id(tree)] = type(tree)()
        result.update((key, _rebuild(value, copies, memo)) for key, value in tree.items())
        if hasattr(tree, "_metadata"):  # versions of modules, which `nn.Module.state_dict` hangs on its result
            result._metadata = copy.deepcopy(tree._metadata)
    elif type(tree) is list:
        result = memo[id(tree)] = []
        result.extend(_rebuild(value, copies, memo) for value in tree)
    elif type(tree) is tuple:
        result = tuple(_rebuild(value, copies, memo) for value in tree)
    else:
        result = copy.deepcopy(tree, memo)
    memo[id(tree)] = result
    return result
