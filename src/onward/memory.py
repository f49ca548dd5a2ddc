"""How much memory a stage of the run took, in host memory and on the accelerator.

Two sets of figures: `peak_figures`, which costs next to nothing and is always on, and `MemoryTracker`, transformers'
figures, on with ``skip_memory_metrics=False``.
"""

from __future__ import annotations

import gc
import inspect
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from onward.errors import UsageError

_SAMPLE_SECONDS = 0.005
_STAGE_OF = {
    "__init__": "init",
    "train": "train",
    "_inner_training_loop": "train",
    "evaluate": "eval",
    "predict": "test",
}


# -- the garbage collector ------------------------------------------------------------------------------------


@contextmanager
def old_objects_frozen() -> Iterator[None]:
    """Inside, the garbage collector leaves alone what exists now, and goes on collecting what is made.

    A full pass looks at every object of the process. Once transformers, a data set and a model are loaded it takes
    some tenths of a second, in the middle of some step; what a run itself makes is little. Where somebody else has
    frozen objects already, nothing is done.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


# -- always on ------------------------------------------------------------------------------------------------


def reset_peak() -> None:
    """Let the accelerator's peaks begin anew. The host's stay: others may be measuring them."""
    if _accelerator() is not None:
        torch.cuda.reset_peak_memory_stats()


def peak_figures(split: str) -> dict[str, int]:
    """Peaks in bytes, under keys that begin with ``{split}_peak_memory_``.

    Returns:
        ``rss``: the most host memory that this process has held since it began. With a CUDA device also ``allocated``
        (what tensors took) and ``reserved`` (what the allocator held) since `reset_peak`. A figure that the system
        does not give is left out.
    """
    figures = {}
    rss = _peak_rss()
    if rss is not None:
        figures[f"{split}_peak_memory_rss"] = rss
    if _accelerator() is not None:
        figures[f"{split}_peak_memory_allocated"] = int(torch.cuda.max_memory_allocated())
        figures[f"{split}_peak_memory_reserved"] = int(torch.cuda.max_memory_reserved())
    return figures


def _accelerator() -> Any:
    """The memory statistics of the accelerator in use; `None` without one or before it was touched."""
    return torch.cuda if torch.cuda.is_available() and torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]


def _peak_rss() -> int | None:
    """High-water mark of this process's resident memory in bytes; it never falls."""
    global _highest
    # getrusage would do on Linux too, but there a process begins with the peak of the one that started it.
    mark = process_status("VmHWM") or _usage_peak()
    if mark is None:
        return None
    _highest = max(_highest, mark)
    return _highest


_highest = 0
"""The highest mark that was read: Linux's can be put back, and is off by some pages."""


def process_status(name: str) -> int:
    """Bytes that Linux gives under a name in this process's status, like ``VmRSS``; 0 where there is no such line."""
    try:
        return read_entry(Path("/proc/self/status"), f"{name}:") * 1024
    except OSError:
        return 0


def read_entry(path: Path, name: str) -> int:
    """The number behind a name at the begin of a line of a file, 0 without such a line.

    Raises:
        OSError: the file cannot be read.
    """
    for line in path.read_text().splitlines():
        if line.startswith(f"{name} ") or line.startswith(f"{name}\t"):
            return int(line.split()[1])
    return 0


def _usage_peak() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def lower_peak_rss() -> None:
    """Let the kernel's high-water mark of this process begin anew; `peak_figures` still knows the earlier one.

    Raises:
        OSError: the system has no such thing, or does not allow it.
    """
    _peak_rss()
    Path("/proc/self/clear_refs").write_text("5")


# -- on request -----------------------------------------------------------------------------------------------


class MemoryTracker:
    """Memory that `init`, `train`, `evaluate` and `predict` took, under the key names of transformers.

    For each stage ``{stage}_mem_cpu_alloc_delta`` is what was held at its end more than at its beginning, and
    ``{stage}_mem_cpu_peaked_delta`` what it held at most beyond its end; the sum is what it needed. The same with
    ``gpu`` on an accelerator. Stages are ``init``, ``train``, ``eval`` and ``test``; ``init`` is reported with the
    first of the others, together with ``before_init_mem_cpu`` (``_gpu``). A stage inside a stage (an evaluation during
    training) is part of the outer one.

    Args:
        skip_memory_metrics: do nothing at all.
    """

    def __init__(self, skip_memory_metrics: bool = False) -> None:
        self.skip_memory_metrics = skip_memory_metrics
        self._stage: str | None = None
        self._host: _HostPeak | None = None
        self._device_at_start: int | None = None
        self._done: dict[str, dict[str, int]] = {}
        self._before_init: dict[str, int] = {}

    def start(self, stage: str | None = None) -> None:
        """Begin a stage; by default the one that the calling method is named after."""
        if self.skip_memory_metrics:
            return
        stage = stage or self._calling_stage()
        if self._stage not in (None, stage):
            return
        if self._host is not None:
            self._host.stop()  # the same stage failed before
        self._stage = stage
        gc.collect()
        device = _accelerator()
        if device is not None:
            device.reset_peak_memory_stats()
            device.empty_cache()
            self._device_at_start = int(device.memory_allocated())
        self._host = _HostPeak()

    def stop_and_update_metrics(self, metrics: dict[str, Any] | None = None, stage: str | None = None) -> None:
        """End a stage and add its figures to `metrics`, if given. The end of an inner stage does nothing."""
        if self.skip_memory_metrics:
            return
        stage = stage or self._calling_stage()
        if stage != self._stage:
            return
        self._stop(stage)
        if metrics is None:
            return
        for done in [name for name in ("init", stage) if name in self._done]:
            metrics.update({f"{done}_mem_{key}": value for key, value in self._done.pop(done).items()})
        metrics.update(self._before_init)
        self._before_init = {}

    def _stop(self, stage: str) -> None:
        assert self._host is not None
        gc.collect()
        began, now, peak = self._host.stop()
        figures = {"cpu_alloc_delta": now - began, "cpu_peaked_delta": max(0, peak - now)}
        if stage == "init":
            self._before_init["before_init_mem_cpu"] = began
        device = _accelerator()
        if device is not None:
            device.empty_cache()
            before, now = self._device_at_start or 0, int(device.memory_allocated())
            figures["gpu_alloc_delta"] = now - before
            figures["gpu_peaked_delta"] = max(0, int(device.max_memory_allocated()) - now)
            if stage == "init":
                self._before_init["before_init_mem_gpu"] = before
        self._done[stage] = figures
        self._stage, self._host, self._device_at_start = None, None, None

    def _calling_stage(self) -> str:
        """The stage of the method that called in: subclasses written for transformers name none."""
        frame = inspect.currentframe()
        caller = frame.f_back.f_back.f_code.co_name if frame and frame.f_back and frame.f_back.f_back else "?"
        if caller not in _STAGE_OF:
            raise UsageError(
                f"The memory tracker was called from {caller}() and cannot tell which stage that is. Name it: "
                f"start(stage=...), one of {', '.join(dict.fromkeys(_STAGE_OF.values()))}."
            )
        return _STAGE_OF[caller]


class _HostPeak:
    """The most host memory held while it exists.

    A thread looks every few milliseconds. Where the system keeps a high-water mark and it rises meanwhile, that mark
    is exact and wins.
    """

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        self._mark = _peak_rss() or 0
        self._began = self._peak = self._rss()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="onward-memory")
        self._thread.start()

    def _rss(self) -> int:
        return int(self._process.memory_info().rss)

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            self._peak = max(self._peak, self._rss())

    def stop(self) -> tuple[int, int, int]:
        """Bytes held at the beginning, now and at most."""
        self._ended.set()
        self._thread.join()
        now, mark = self._rss(), _peak_rss() or 0
        return self._began, now, max(mark if mark > self._mark else 0, self._peak, now)
