"""What cannot work is said before anything starts: got, expected, remedy."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterable
from fractions import Fraction
from typing import TYPE_CHECKING

import torch

from onward.arguments.data import SAMPLING_STRATEGIES, START_METHODS
from onward.arguments.distributed import DDP_BACKENDS
from onward.arguments.extras import NONFINITE_POLICIES, PACKINGS, PUSH_FAILURES, TRIALS_KEPT, option, value_of
from onward.arguments.optimization import COMPILE_MODES
from onward.arguments.reporting import LOG_LEVELS, METRIC_EXTRAS
from onward.errors import NotSupported, UsageError, did_you_mean
from onward.types import DebugOption, IntervalStrategy, SaveStrategy, SchedulerType

if TYPE_CHECKING:
    from onward.arguments.training_arguments import TrainingArguments

logger = logging.getLogger(__name__)

CHOICES: dict[str, Iterable[str]] = {
    "include_num_input_tokens_seen": ("all", "non_padding", "no"),
    "log_level": LOG_LEVELS,
    "log_level_replica": LOG_LEVELS,
    "train_sampling_strategy": SAMPLING_STRATEGIES,
    "dataloader_multiprocessing_context": START_METHODS,
    "ddp_backend": DDP_BACKENDS,
    "on_nonfinite": NONFINITE_POLICIES,
    "packing": PACKINGS,
    "torch_compile_mode": COMPILE_MODES,
    "keep_trials": TRIALS_KEPT,
    "push_failure": PUSH_FAILURES,
}

# name: (lowest, highest) value that can work; None for no bound
RANGES: dict[str, tuple[float | None, float | None]] = {
    "per_device_train_batch_size": (1, None),
    "per_device_eval_batch_size": (1, None),
    "gradient_accumulation_steps": (1, None),
    "learning_rate": (0, None),
    "weight_decay": (0, None),
    "warmup_steps": (0, None),
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
    "adam_epsilon": (0, None),
    "max_grad_norm": (None, None),
    "label_smoothing_factor": (0, 1),
    "neftune_noise_alpha": (0, None),
    "logging_steps": (-1, None),
    "eval_steps": (-1, None),
    "eval_delay": (0, None),
    "save_steps": (-1, None),
    "eval_accumulation_steps": (1, None),
    "torch_empty_cache_steps": (1, None),
    "seed": (0, 2**32 - 1),
    "data_seed": (-(2**63), 2**64 - 1),
    "dataloader_num_workers": (0, None),
    "dataloader_prefetch_factor": (1, None),
    "ddp_timeout": (1, None),
    "max_failed_saves": (0, None),
    "preemption_exit_code": (0, 255),
    "max_train_seconds": (0, None),
    "max_nonfinite_steps": (1, None),
    "max_rollbacks": (0, None),
    "max_tokens_per_batch": (1, None),
    "length_aware_window": (1, None),
    "push_wait_seconds": (0, None),
}


def check_numbers(args: TrainingArguments) -> None:
    """Raise `UsageError` for a number that lies outside of what can work."""
    for name, (low, high) in RANGES.items():
        value = value_of(args, name)
        if value is not None and ((low is not None and value < low) or (high is not None and value > high)):
            bounds = f"at least {low}" if high is None else f"from {low} to {high}"
            raise UsageError(f"{name} got {value}; expected a value {bounds}.")
    for name in ("adam_beta1", "adam_beta2"):
        if getattr(args, name) == 1:  # no optimizer takes it
            raise UsageError(f"{name} got {getattr(args, name)}; expected a value from 0 to below 1.")
    if args.max_steps <= 0 and (args.num_train_epochs is None or args.num_train_epochs < 0):
        raise UsageError(
            f"num_train_epochs got {args.num_train_epochs} and max_steps {args.max_steps}; expected one of them to say "
            "how long to train: at least 0 epochs, or at least 1 step."
        )


def check_words(args: TrainingArguments) -> None:
    """Raise `UsageError` for a word that is not one of the choices."""
    for name, choices in CHOICES.items():
        value = value_of(args, name)
        if value is not None and value not in choices:
            hint = did_you_mean(value, choices)
            raise UsageError(f"{name} got {value!r}; expected one of {', '.join(choices)}.{hint}")
    if args.auto_find_batch_size not in (True, False, None, "grow"):
        raise UsageError(f"auto_find_batch_size got {args.auto_find_batch_size!r}; expected True, False or 'grow'.")
    for name in ("padding_free", "chunked_loss"):
        if option(args, name) not in (True, False, "auto"):
            raise UsageError(f"{name} got {option(args, name)!r}; expected True, False or 'auto'.")
    for name in ("lr_scheduler_kwargs", "activation_checkpointing_kwargs"):
        if isinstance(getattr(args, name), str):
            raise UsageError(f"{name} got the text {getattr(args, name)!r}; expected a dict or a JSON object.")
    for word in args.include_for_metrics:
        if word not in METRIC_EXTRAS:
            hint = did_you_mean(word, METRIC_EXTRAS)
            raise UsageError(f"include_for_metrics got {word!r}; expected some of {', '.join(METRIC_EXTRAS)}.{hint}")
    known = signal.Signals.__members__
    for word in args.preemption_signals.replace(",", " ").split():
        if word not in known:
            raise UsageError(f"preemption_signals got {word!r}; expected names of signals.{did_you_mean(word, known)}")
    if args.enable_jit_checkpoint and "SIGTERM" not in args.preemption_signals:
        raise UsageError(
            f"enable_jit_checkpoint=True saves on SIGTERM, but got preemption_signals={args.preemption_signals!r}; "
            "add SIGTERM to these, or leave enable_jit_checkpoint out."
        )


def check_schedule(args: TrainingArguments) -> None:
    """Raise `UsageError` where logging, evaluating, saving and the schedule contradict each other."""
    for verb in ("logging", "save"):
        steps, strategy = f"{verb}_steps", f"{verb}_strategy"
        if getattr(args, strategy) == IntervalStrategy.STEPS and getattr(args, steps) is None:
            raise UsageError(f"{strategy}='steps' got {steps}=None; expected a number, or {strategy}='no' or 'epoch'.")
    if args.logging_strategy == IntervalStrategy.STEPS and args.logging_steps == 0:
        raise UsageError("logging_strategy='steps' got logging_steps=0; expected more, or logging_strategy='no'.")
    if args.load_best_model_at_end and args.save_strategy != SaveStrategy.BEST:
        _check_saves_fall_on_evaluations(args)
    watching = args.lr_scheduler_type in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)
    if watching and args.eval_strategy == IntervalStrategy.NO:
        raise UsageError(
            f"lr_scheduler_type='{args.lr_scheduler_type}' follows an evaluation metric, but got eval_strategy='no'; "
            "set eval_strategy to 'steps' or 'epoch'."
        )
    if args.dataloader_num_workers == 0 and args.dataloader_prefetch_factor is not None:
        raise UsageError(
            f"dataloader_prefetch_factor got {args.dataloader_prefetch_factor} with dataloader_num_workers=0; "
            "expected at least one worker, or no prefetch factor."
        )
    if args.dataloader_num_workers == 0 and args.dataloader_persistent_workers:
        raise UsageError(
            "dataloader_persistent_workers got True with dataloader_num_workers=0; expected at least one worker, or "
            "dataloader_persistent_workers=False."
        )


def _check_saves_fall_on_evaluations(args: TrainingArguments) -> None:
    eval_strategy, save_strategy = IntervalStrategy(args.eval_strategy), SaveStrategy(args.save_strategy)
    if eval_strategy.value != save_strategy.value:
        raise UsageError(
            f"load_best_model_at_end got eval_strategy='{eval_strategy}' and save_strategy='{save_strategy}'; "
            "expected both to be the same, or save_strategy='best'."
        )
    if eval_strategy != IntervalStrategy.STEPS:
        return
    assert args.eval_steps is not None
    mixed = (args.save_steps < 1) != (args.eval_steps < 1)
    # Decimal fractions, since 0.3 is no multiple of 0.1 in binary floating point.
    if mixed or Fraction(str(args.save_steps)) % Fraction(str(args.eval_steps)) != 0:
        raise UsageError(
            f"load_best_model_at_end got save_steps={args.save_steps} and eval_steps={args.eval_steps}; expected "
            "save_steps to be a multiple of eval_steps (both in steps or both as a share), so that every checkpoint "
            "has a metric."
        )


def has_accelerator(args: TrainingArguments) -> bool:
    """Return whether the run would use something other than the CPU."""
    return not (args.use_cpu or flag_in_environment("ACCELERATE_USE_CPU")) and torch.accelerator.is_available()


def flag_in_environment(name: str) -> bool:
    """Return whether a variable of the environment switches something on."""
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "y", "on", "t")


def check_precision(args: TrainingArguments) -> None:
    """Raise `UsageError` for number formats that contradict each other or that this machine lacks."""
    if args.fp16 and args.bf16:
        raise UsageError("got fp16=True and bf16=True; expected at most one of them. bf16 needs no loss scaler.")
    if args.fp16_full_eval and args.bf16_full_eval:
        raise UsageError("got fp16_full_eval=True and bf16_full_eval=True; expected at most one of them.")
    accelerated = has_accelerator(args)
    if args.fp16 and not accelerated:
        logger.warning("fp16=True does nothing on the CPU: training is in float32. For less memory use bf16=True.")
    on_cuda = accelerated and torch.cuda.is_available()
    if (args.bf16 or args.bf16_full_eval) and on_cuda and not torch.cuda.is_bf16_supported():
        raise UsageError("got bf16 on a GPU without bfloat16; expected an Ampere GPU or newer. Use fp16 or use_cpu.")
    if args.tf32 and not tf32_available():
        raise UsageError("got tf32=True; expected an NVIDIA GPU of the Ampere generation or newer. Leave tf32 out.")


def tf32_available() -> bool:
    """Return whether the current GPU has TensorFloat-32."""
    return torch.cuda.is_available() and torch.version.cuda is not None and torch.cuda.get_device_capability()[0] >= 8


def check_supported(args: TrainingArguments) -> None:
    """Raise `NotSupported` for what transformers has and onward does not."""
    if args.deepspeed or flag_in_environment("ACCELERATE_USE_DEEPSPEED"):
        raise NotSupported("onward does not run on DeepSpeed; leave it out, and shard a large model with fsdp=True.")
    if getattr(args.parallelism_config, "total_size", 1 if args.parallelism_config is None else 0) != 1:
        raise NotSupported(
            "onward trains with data parallelism alone, which needs no parallelism_config: leave it out, and start one "
            "process per device (torchrun or accelerate launch)."
        )
    if DebugOption.TPU_METRICS_DEBUG in args.debug:
        raise NotSupported("onward does not run on TPUs: debug='tpu_metrics_debug' has nothing to show; leave it out.")
