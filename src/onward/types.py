"""The words of onward: enumerations of allowed values, and the tuples that the public methods return.

Every string enumeration compares equal to its plain value (``IntervalStrategy.STEPS == "steps"``) and therefore to
the member of the same value in transformers. A value that does not exist raises `UsageError` and names the nearest one.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, StrEnum
from typing import Any, NamedTuple

from onward.errors import UsageError, did_you_mean
from onward.kin import Kin

# An array or a (nested) tuple of arrays: numpy is not imported here, to keep the words free of weight.
Arrays = Any


class Word(StrEnum):
    """A string enumeration whose look-up of an unknown value says what would have been right."""

    @classmethod
    def _missing_(cls, value: object) -> Word:
        known = [member.value for member in cls]
        raise UsageError(
            f"{value!r} is not a valid {cls.__name__}; expected one of {', '.join(known)}."
            f"{did_you_mean(str(value), known)}"
        )


class IntervalStrategy(Word):
    """When something that repeats happens: never, every so many optimizer steps, or at the end of each epoch."""

    NO = "no"
    STEPS = "steps"
    EPOCH = "epoch"


class SaveStrategy(Word):
    """When a checkpoint is written; ``best`` means whenever the watched metric improves."""

    NO = "no"
    STEPS = "steps"
    EPOCH = "epoch"
    BEST = "best"


class HubStrategy(Word):
    """What goes to the Hub, and when."""

    END = "end"
    EVERY_SAVE = "every_save"
    CHECKPOINT = "checkpoint"
    ALL_CHECKPOINTS = "all_checkpoints"


class HPSearchBackend(Word):
    """Which library proposes the hyperparameters of a search."""

    OPTUNA = "optuna"
    RAY = "ray"
    WANDB = "wandb"


class SchedulerType(Word):
    """Shape of the learning rate over the run."""

    LINEAR = "linear"
    COSINE = "cosine"
    COSINE_WITH_RESTARTS = "cosine_with_restarts"
    POLYNOMIAL = "polynomial"
    CONSTANT = "constant"
    CONSTANT_WITH_WARMUP = "constant_with_warmup"
    INVERSE_SQRT = "inverse_sqrt"
    REDUCE_ON_PLATEAU = "reduce_lr_on_plateau"
    COSINE_WITH_MIN_LR = "cosine_with_min_lr"
    COSINE_WARMUP_WITH_MIN_LR = "cosine_warmup_with_min_lr"
    WARMUP_STABLE_DECAY = "warmup_stable_decay"
    GREEDY = "greedy"


class OptimizerNames(Word):
    """Optimizers that ``optim`` can name."""

    ADAMW_TORCH = "adamw_torch"
    ADAMW_TORCH_FUSED = "adamw_torch_fused"
    ADAMW_TORCH_XLA = "adamw_torch_xla"
    ADAMW_TORCH_NPU_FUSED = "adamw_torch_npu_fused"
    ADAFACTOR = "adafactor"
    ADAMW_ANYPRECISION = "adamw_anyprecision"
    ADAMW_TORCH_4BIT = "adamw_torch_4bit"
    ADAMW_TORCH_8BIT = "adamw_torch_8bit"
    ADEMAMIX = "ademamix"
    SGD = "sgd"
    ADAGRAD = "adagrad"
    ADAMW_BNB = "adamw_bnb_8bit"
    ADAMW_8BIT = "adamw_8bit"
    ADEMAMIX_8BIT = "ademamix_8bit"
    LION_8BIT = "lion_8bit"
    LION = "lion_32bit"
    PAGED_ADAMW = "paged_adamw_32bit"
    PAGED_ADAMW_8BIT = "paged_adamw_8bit"
    PAGED_ADEMAMIX = "paged_ademamix_32bit"
    PAGED_ADEMAMIX_8BIT = "paged_ademamix_8bit"
    PAGED_LION = "paged_lion_32bit"
    PAGED_LION_8BIT = "paged_lion_8bit"
    RMSPROP = "rmsprop"
    RMSPROP_BNB = "rmsprop_bnb"
    RMSPROP_8BIT = "rmsprop_bnb_8bit"
    RMSPROP_32BIT = "rmsprop_bnb_32bit"
    GALORE_ADAMW = "galore_adamw"
    GALORE_ADAMW_8BIT = "galore_adamw_8bit"
    GALORE_ADAFACTOR = "galore_adafactor"
    GALORE_ADAMW_LAYERWISE = "galore_adamw_layerwise"
    GALORE_ADAMW_8BIT_LAYERWISE = "galore_adamw_8bit_layerwise"
    GALORE_ADAFACTOR_LAYERWISE = "galore_adafactor_layerwise"
    LOMO = "lomo"
    ADALOMO = "adalomo"
    GROKADAMW = "grokadamw"
    SCHEDULE_FREE_RADAM = "schedule_free_radam"
    SCHEDULE_FREE_ADAMW = "schedule_free_adamw"
    SCHEDULE_FREE_SGD = "schedule_free_sgd"
    APOLLO_ADAMW = "apollo_adamw"
    APOLLO_ADAMW_LAYERWISE = "apollo_adamw_layerwise"
    STABLE_ADAMW = "stable_adamw"


class DebugOption(Word):
    """Diagnostics that ``debug`` can name."""

    UNDERFLOW_OVERFLOW = "underflow_overflow"
    TPU_METRICS_DEBUG = "tpu_metrics_debug"


class ParallelMode(Enum):
    """How the run is spread over devices. The last three are transformers' words; onward never returns them."""

    NOT_PARALLEL = "not_parallel"
    NOT_DISTRIBUTED = "not_distributed"
    DISTRIBUTED = "distributed"
    SAGEMAKER_MODEL_PARALLEL = "sagemaker_model_parallel"
    SAGEMAKER_DATA_PARALLEL = "sagemaker_data_parallel"
    TPU = "tpu"


class TrainOutput(NamedTuple):
    """What `Trainer.train` returns."""

    global_step: int
    """Optimizer steps done over the whole run."""
    training_loss: float
    """Mean training loss over the whole run."""
    metrics: dict[str, float]
    """Speed, memory, floating point operations and loss, each with the prefix ``train_``."""


class EvalLoopOutput(NamedTuple):
    """What `Trainer.evaluation_loop` returns; arrays span all samples of the set."""

    predictions: Arrays
    label_ids: Arrays
    metrics: dict[str, float] | None
    num_samples: int | None


class PredictionOutput(NamedTuple):
    """What `Trainer.predict` returns; arrays span all samples of the set."""

    predictions: Arrays
    label_ids: Arrays
    metrics: dict[str, float] | None


class BestRun(NamedTuple):
    """The winner of a hyperparameter search."""

    run_id: str
    objective: float | list[float]
    hyperparameters: dict[str, Any]
    run_summary: Any | None = None


class EvalPrediction(Kin):
    """What ``compute_metrics`` receives.

    It unpacks and indexes like a tuple: always ``predictions`` and ``label_ids``, then ``inputs`` and ``losses`` where
    ``include_for_metrics`` asked for them.
    """

    def __init__(self, predictions: Arrays, label_ids: Arrays, inputs: Arrays = None, losses: Arrays = None) -> None:
        self.predictions = predictions
        self.label_ids = label_ids
        self.inputs = inputs
        self.losses = losses
        optional = tuple(part for part in (inputs, losses) if part is not None)
        self.elements: tuple[Arrays, ...] = (predictions, label_ids, *optional)

    def __iter__(self) -> Iterator[Arrays]:
        return iter(self.elements)

    def __getitem__(self, index: int) -> Arrays:
        if index < 0 or index >= len(self.elements):
            raise IndexError(f"EvalPrediction index {index} out of range, it has {len(self.elements)} parts")
        return self.elements[index]


class StepFigures(NamedTuple):
    """What the latest optimizer step of an epoch was taken with."""

    grad_norm: Any = None
    """Norm of the gradients before clipping, perhaps still on the device."""
    learning_rate: float | None = None


class StepPlace(NamedTuple):
    """Where an optimizer step is, counted from 1. Behind a rollback the data is ahead of the run."""

    in_data: int | None = None
    """Its number in the data, as `batch_at` takes it."""
    in_run: int | None = None
    """Its number in the run: `global_step` behind it."""
