"""Telling an error that means "out of memory" from every other one."""

from __future__ import annotations

import torch

_MESSAGES = (
    "out of memory",  # CUDA, HIP, XPU and MPS word it alike
    "CUBLAS_STATUS_ALLOC_FAILED",
    "HIPBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",  # what cuDNN says when its workspace cannot be had
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",  # the same on Windows
    "std::bad_alloc",
)

_SPOKEN_BY = (RuntimeError, torch.AcceleratorError)  # the second is what CUDA's own errors are


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether `error`, or an error that it was raised from, says that host or accelerator memory ran out."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            return True
        # Our own errors may quote such a message, and are final.
        if type(error) in _SPOKEN_BY and any(message in str(error) for message in _MESSAGES):
            return True
        error = error.__cause__
    return False
