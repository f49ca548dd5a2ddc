"""Seeds for every generator that a run may draw from."""

from __future__ import annotations

import os
import random

import numpy as np
import torch


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Seed the generators of Python, numpy and torch (all devices).

    Args:
        seed: from 0 to 2**32 - 1.
        deterministic: also ask torch for deterministic algorithms, which may be slower.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # seeds the CPU and every accelerator that torch knows
    if deterministic:
        torch.use_deterministic_algorithms(True)


def enable_full_determinism(seed: int, warn_only: bool = False) -> None:
    """Seed everything and use deterministic algorithms only.

    Args:
        seed: from 0 to 2**32 - 1.
        warn_only: warn about an operation that has no deterministic algorithm, instead of raising.
    """
    set_seed(seed)
    # Read by the CUDA libraries when they start: cuBLAS is deterministic only with a fixed workspace.
    os.environ["CUDA_LAUNCH_BLOCKING"] = "1"
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":16:8"
    os.environ["FLASH_ATTENTION_DETERMINISTIC"] = "1"
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
