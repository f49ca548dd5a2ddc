"""onward: the training loop for PyTorch that never loses a step.

    from onward import Trainer, TrainingArguments

Names are resolved when they are first used, so importing the package costs next to nothing.
"""

from __future__ import annotations

import gc
import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

_HOMES = {
    "onward.trainer": ["Trainer"],
    "onward.seq2seq": ["Seq2SeqTrainer"],
    "onward.arguments": ["TrainingArguments", "Seq2SeqTrainingArguments"],
    "onward.callbacks": [
        "TrainerCallback",
        "CallbackHandler",
        "DefaultFlowCallback",
        "ProgressCallback",
        "PrinterCallback",
        "EarlyStoppingCallback",
        "LossSpikeCallback",
    ],
    "onward.state": ["TrainerState", "TrainerControl", "ExportableState"],
    "onward.types": [
        "TrainOutput",
        "EvalPrediction",
        "EvalLoopOutput",
        "PredictionOutput",
        "BestRun",
        "IntervalStrategy",
        "SaveStrategy",
        "HubStrategy",
        "HPSearchBackend",
        "SchedulerType",
    ],
    "onward.seeding": ["set_seed", "enable_full_determinism"],
    "onward.checkpoint": ["get_last_checkpoint"],
    "onward.data.collate": ["default_data_collator"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
__all__ = sorted(_HOME_OF)  # pyright: ignore[reportUnsupportedDunderAll]

# For type checkers and editors, which cannot follow __getattr__; "as" tells them that the name is meant for others.
if TYPE_CHECKING:
    from onward.arguments import (
        Seq2SeqTrainingArguments as Seq2SeqTrainingArguments,
        TrainingArguments as TrainingArguments,
    )
    from onward.callbacks import (
        CallbackHandler as CallbackHandler,
        DefaultFlowCallback as DefaultFlowCallback,
        EarlyStoppingCallback as EarlyStoppingCallback,
        LossSpikeCallback as LossSpikeCallback,
        PrinterCallback as PrinterCallback,
        ProgressCallback as ProgressCallback,
        TrainerCallback as TrainerCallback,
    )
    from onward.checkpoint import get_last_checkpoint as get_last_checkpoint
    from onward.data.collate import default_data_collator as default_data_collator
    from onward.seeding import enable_full_determinism as enable_full_determinism, set_seed as set_seed
    from onward.seq2seq import Seq2SeqTrainer as Seq2SeqTrainer
    from onward.state import (
        ExportableState as ExportableState,
        TrainerControl as TrainerControl,
        TrainerState as TrainerState,
    )
    from onward.trainer import Trainer as Trainer
    from onward.types import (
        BestRun as BestRun,
        EvalLoopOutput as EvalLoopOutput,
        EvalPrediction as EvalPrediction,
        HPSearchBackend as HPSearchBackend,
        HubStrategy as HubStrategy,
        IntervalStrategy as IntervalStrategy,
        PredictionOutput as PredictionOutput,
        SaveStrategy as SaveStrategy,
        SchedulerType as SchedulerType,
        TrainOutput as TrainOutput,
    )


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        from onward.errors import did_you_mean

        raise AttributeError(f"module 'onward' has no attribute '{name}'.{did_you_mean(name, _HOME_OF)}")
    value = getattr(_import(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def _import(module: str) -> ModuleType:
    # Without the pass of the garbage collector that an import sets off: it looks at every object of torch, which takes
    # a third as long as the import itself, and finds nothing.
    collects = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        if collects:
            gc.enable()


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
