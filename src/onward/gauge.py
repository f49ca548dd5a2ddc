"""How much memory a piece of work takes at most, and how much there is to take, on an accelerator or on the host."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch

from onward.memory import lower_peak_rss, process_status, read_entry

_USABLE = 0.95
"""Part of a limit that may be planned with: batches differ, and memory comes in fragments."""


class Gauge(Protocol):
    """Measures the memory of one device, as this process sees it. All figures are bytes."""

    def start(self) -> None:
        """Begin to measure, with all that is merely cached given back."""

    def taken(self) -> int:
        """What was held at most since `start`, beyond what was held then."""

    def room(self) -> int:
        """What may be taken beyond what was held at `start`, leaving 5 % of the limit free; not more than 0 if full."""


def open_gauge(device: torch.device, sharers: int = 1) -> Gauge | None:
    """The gauge of a device, `None` where its memory cannot be measured.

    `sharers`: processes that share the memory of the host.
    """
    if device.type == "cuda":
        return CudaGauge(device)
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return None
    try:
        lower_peak_rss()
    except OSError:
        return None
    return HostGauge(sharers)


class CudaGauge:
    """By the statistics of torch's allocator: what it has reserved is what counts against a limit."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held = 0

    def start(self) -> None:
        """Begin to measure."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        self._held = torch.cuda.memory_reserved(self._device)

    def taken(self) -> int:
        """What was reserved at most since `start`, beyond what was reserved then."""
        return torch.cuda.max_memory_reserved(self._device) - self._held

    def room(self) -> int:
        """What may be reserved more: of the device, and of the fraction of it that this process was given."""
        free, total = torch.cuda.mem_get_info(self._device)
        allowed = torch.cuda.get_per_process_memory_fraction(self._device) * total
        return int(_USABLE * min(allowed, self._held + free)) - self._held


class HostGauge:
    """By resident memory, of which Linux keeps a high-water mark that can be put back.

    Resident memory is what cgroups and the machine count. Under a limit of address space (``ulimit -v``) it stands in
    for that: what a step computes it writes, so both grow alike.

    Args:
        sharers: processes that share the memory of the machine; each plans with its part.
    """

    def __init__(self, sharers: int = 1) -> None:
        self._sharers = sharers
        self._held = 0

    def start(self) -> None:
        """Begin to measure."""
        _trim()
        lower_peak_rss()
        self._held = process_status("VmRSS")

    def taken(self) -> int:
        """What was resident at most since `start`, beyond what was resident then."""
        return process_status("VmHWM") - self._held

    def room(self) -> int:
        """What may be taken beyond what was held at `start`, by the tightest of all limits."""
        more = process_status("VmRSS") - self._held
        own = [int(_USABLE * limit) - used for limit, used in _own_limits()]
        shared = [(int(_USABLE * limit) - used) // self._sharers for limit, used in _shared_limits()]
        return min(own + shared) + more


def _trim() -> None:
    """Give freed memory back to the system, or what is allocated from it would not show."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc; others do not hold on to it
    if trim is not None:
        trim(0)


def _own_limits() -> Iterator[tuple[int, int]]:
    """Limit and use of what this process has for itself."""
    import resource

    for kind, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            yield limit, process_status(name)


def _shared_limits() -> Iterator[tuple[int, int]]:
    """Limit and use of the machine, and of each control group that this process is in."""
    machine = Path("/proc/meminfo")
    total = read_entry(machine, "MemTotal:") * 1024
    yield total, total - read_entry(machine, "MemAvailable:") * 1024
    for folder in _control_groups(Path("/proc/self/cgroup").read_text(), Path("/sys/fs/cgroup")):
        group = read_group(folder)
        if group is not None:
            yield group


def _control_groups(membership: str, mounted: Path) -> Iterator[Path]:
    """Folders of the memory controller, of version 1 or 2, from this process's group up to the root."""
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        root = mounted / "memory" if "memory" in controllers.split(",") else mounted
        if controllers and root == mounted:
            continue
        group = root / path.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


def read_group(folder: Path) -> tuple[int, int] | None:
    """Limit and use of a control group; `None` without a limit. Pages of files that can be dropped are no use."""
    for limit, used, droppable in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            text = (folder / limit).read_text().strip()
            # Version 1 writes the largest number that there is for no limit.
            if text.isdigit() and int(text) < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
                return int(text), int((folder / used).read_text()) - read_entry(folder / "memory.stat", droppable)
        except OSError:
            continue
    return None
