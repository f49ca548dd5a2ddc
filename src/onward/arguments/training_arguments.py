"""`TrainingArguments` and `Seq2SeqTrainingArguments`: everything that a run can be told, checked when it is said."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from onward.arguments import checks, devices
from onward.arguments.documented import documented
from onward.arguments.kinds import check_types, leave_numpy
from onward.arguments.resolve import resolve
from onward.arguments.serialised import SerialisedArguments
from onward.arguments.setters import ArgumentSetters
from onward.arguments.sharding import resolve_sharding
from onward.errors import SignatureOfInit, check_keywords

logger = logging.getLogger(__name__)

# Names that scripts written for older versions of transformers still use, and what does their work now.
FORMER_NAMES = {
    "evaluation_strategy": "eval_strategy",
    "evaluate_during_training": "eval_strategy='steps'",
    "no_cuda": "use_cpu",
    "use_mps_device": "nothing: the device is found",
    "warmup_ratio": "warmup_steps with a value below 1",
    "group_by_length": "train_sampling_strategy='group_by_length'",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "include_inputs_for_metrics": "include_for_metrics=['inputs']",
    "include_tokens_per_second": "nothing: tokens per second are always logged where tokens can be counted",
    "save_safetensors": "nothing: weights are always written as safetensors",
    "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR",
    "adafactor": "optim='adafactor'",
    "split_batches": "accelerator_config={'split_batches': ...}",
    "dispatch_batches": "accelerator_config={'dispatch_batches': ...}",
    "use_legacy_prediction_loop": "nothing: there is one evaluation loop",
    "overwrite_output_dir": "nothing: Trainer.train(resume_from_checkpoint=...) decides whether to go on",
    "fp16_backend": "fp16",
    "half_precision_backend": "fp16 or bf16",
    "jit_mode_eval": "torch_compile",
    "torchdynamo": "torch_compile_backend",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "fsdp_min_num_params": "fsdp_config={'min_num_params': ...}",
    "fsdp_transformer_layer_cls_to_wrap": "fsdp_config={'transformer_layer_cls_to_wrap': ...}",
}


@dataclass(repr=False)
class TrainingArguments(ArgumentSetters, SerialisedArguments):
    """Everything that a run can be told.

    Fields, order, types and defaults are those of ``transformers.TrainingArguments``, followed by onward's own
    (`onward.arguments.extras`). The fields stand, each with its unit, in the modules of this package:
    `optimization`, `reporting`, `saving`, `data`, `distributed` and `extras`.

    Raises:
        UsageError: a value cannot work, or two values contradict each other.
        UnknownArgument: a keyword is no argument; it is a `TypeError`, too.
        NotSupported: a path of transformers that onward does not have (DeepSpeed, FSDP1, TPU).
    """

    # Fields that may be given as a JSON object in text. Subclasses add theirs to this list.
    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        "accelerator_config",
        "fsdp_config",
        "deepspeed",
        "activation_checkpointing_kwargs",
        "gradient_checkpointing_kwargs",
        "lr_scheduler_kwargs",
    ]

    __signature__ = SignatureOfInit()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Check the names of arguments, which Python itself would refuse without a hint."""
        if not kwargs.keys() <= cls.__dataclass_fields__.keys():
            check_keywords(cls, kwargs, "fields", FORMER_NAMES)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Check and resolve all arguments; running it again changes nothing."""
        leave_numpy(self)
        check_types(self)
        checks.check_numbers(self)
        resolve(self)
        checks.check_words(self)
        checks.check_schedule(self)
        checks.check_supported(self)
        resolve_sharding(self)
        checks.check_precision(self)
        devices.apply_tf32(self)


@documented
@dataclass(repr=False)
class Seq2SeqTrainingArguments(TrainingArguments):
    """Arguments of `Seq2SeqTrainer`: those of `TrainingArguments`, and how to generate."""

    sortish_sampler: bool = False
    """Read by nothing, in transformers neither: ``train_sampling_strategy="group_by_length"`` sorts by length."""
    predict_with_generate: bool = False
    """Evaluate and predict with text that the model generates instead of its logits."""
    generation_max_length: int | None = None
    """Longest generated sequence in tokens; None takes the model's."""
    generation_num_beams: int | None = None
    """Beams while generating; None takes the model's."""
    # transformers' GenerationConfig is spelled Any: annotations must resolve without transformers
    generation_config: str | Path | Any | None = None
    """A GenerationConfig, or the model id, folder or file to load one from."""

    def __post_init__(self) -> None:
        """Check and resolve all arguments; running it again changes nothing."""
        super().__post_init__()
        if self.sortish_sampler:
            logger.warning("sortish_sampler=True does nothing. Use train_sampling_strategy='group_by_length'.")
