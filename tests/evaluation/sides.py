"""Run the same evaluation with transformers and with onward, and compare."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from accelerate.state import AcceleratorState, GradientState, PartialState

import onward

_TIMED = ("_runtime", "_per_second", "_preparation_time")


def trainer(
    lib: Any, model: Any, folder: Any, *, cls: str = "Trainer", parts: dict[str, Any] | None = None, **changes: Any
) -> Any:
    """A trainer of one of the two libraries; each begins with fresh processes and the same generators."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()
    args_cls = getattr(lib, "Seq2SeqTrainingArguments" if cls.startswith("Seq2Seq") else "TrainingArguments")
    settings = {"per_device_eval_batch_size": 4, "report_to": [], "use_cpu": True, "disable_tqdm": True} | changes
    return getattr(lib, cls)(model=model, args=args_cls(output_dir=str(folder), **settings), **(parts or {}))


def timeless(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics without those that a clock decides, but with their names."""
    return {key: None if key.endswith(_TIMED) else value for key, value in metrics.items()}


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal to the bit: types, shapes and values, through every nest."""
    if isinstance(theirs, dict):
        assert sorted(ours) == sorted(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, (list, tuple)):
        assert isinstance(ours, type(theirs))
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(theirs, np.ndarray):
        np.testing.assert_array_equal(ours, theirs, strict=True)
    elif isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    elif theirs is None:
        assert ours is None
    else:
        assert ours == theirs or (ours != ours and theirs != theirs)


def both(scenario: Any, folder: Any) -> tuple[Any, Any]:
    """What `scenario(lib, folder)` returns for onward and for transformers."""
    results = []
    for lib, name in ((onward, "ours"), (transformers, "theirs")):
        torch.manual_seed(0)
        results.append(scenario(lib, folder / name))
    return results[0], results[1]
