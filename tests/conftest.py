"""What holds for every test: offline, one thread, no state that leaks from one test into the next."""

from __future__ import annotations

import logging
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Set before torch or transformers is imported, and inherited by every subprocess that a test starts.
os.environ.update(
    {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "WANDB_MODE": "offline",
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "PYTHONPATH": os.pathsep.join(
            [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])],
        ),
    }
)

import numpy as np
import pytest
import torch

OBSERVED = ("onward", "transformers", "accelerate")
"""Packages whose loggers a trainer or a test turns louder or quieter."""


def _loggers() -> list[logging.Logger]:
    """The root logger, and those of the observed packages that exist by now."""
    made = logging.root.manager.loggerDict.items()
    ours = [log for name, log in made if name.split(".")[0] in OBSERVED and isinstance(log, logging.Logger)]
    return [logging.root, *ours]


def _put_back_logging(known: dict[logging.Logger, tuple[int, bool, bool, list[logging.Handler]]], disable: int) -> None:
    """Undo levels, handlers and switches: `log_level="error"` of one test would leave the next without warnings."""
    logging.disable(disable)
    for log in _loggers():
        level, log.disabled, log.propagate, handlers = known.get(log, (logging.NOTSET, False, True, []))
        log.setLevel(level)
        log.handlers[:] = handlers


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Seed the generators, put the test into an empty folder, and undo what trainers leave in the process.

    accelerate keeps its state in process-wide singletons, both trainers set environment variables (mixed precision,
    for one), and arguments set the level of the logger "onward" and torch's precision. Without this a bf16 test would
    turn its neighbour into one, and a quiet one would silence it.
    """
    environment, precision = dict(os.environ), torch.backends.fp32_precision
    loggers = {log: (log.level, log.disabled, log.propagate, list(log.handlers)) for log in _loggers()}
    disable = logging.root.manager.disable
    monkeypatch.chdir(tmp_path)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState, PartialState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        PartialState._reset_state()
    torch.use_deterministic_algorithms(False)
    if torch.backends.fp32_precision != precision:
        torch.backends.fp32_precision = precision
    torch.set_default_dtype(torch.float32)
    _put_back_logging(loggers, disable)
    os.environ.clear()
    os.environ.update(environment)
