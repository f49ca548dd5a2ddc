"""From what was typed to what is meant: defaults that depend on other arguments, and words turned into values.

Each step may run again on its own result without changing it, because `dataclasses.replace` and subclasses that call
``super().__post_init__()`` twice do just that.
"""

from __future__ import annotations

import json
import logging
import os
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from onward.arguments.accelerator_config import AcceleratorConfig
from onward.arguments.reporting import passive_log_level
from onward.errors import UsageError
from onward.types import DebugOption, HubStrategy, IntervalStrategy, OptimizerNames, SaveStrategy, SchedulerType

if TYPE_CHECKING:
    from onward.arguments.training_arguments import TrainingArguments

ALIASES = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
"""Words for a flag, as a command line or a configuration has them."""
WATCHES_A_METRIC = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)


def resolve(args: TrainingArguments) -> None:
    """Bring every argument into the form in which the rest of onward reads it."""
    read_json_fields(args)
    resolve_aliases(args)
    resolve_enums(args)
    resolve_paths_and_display(args)
    resolve_intervals(args)
    resolve_best_model(args)
    args.report_to = resolve_report_to(args.report_to)
    resolve_compute(args)


def read_json_fields(args: TrainingArguments) -> None:
    """Turn JSON objects, as typed on a command line, into dicts. Other strings are paths and stay."""
    for name in args._VALID_DICT_FIELDS:
        given = getattr(args, name)
        if not (isinstance(given, str) and given.lstrip().startswith("{")):
            continue
        try:
            setattr(args, name, _typed(json.loads(given)))
        except ValueError as problem:
            raise UsageError(f"{name} got {given!r}; expected a dict or a JSON object: {problem}") from problem


def _typed(value: Any) -> Any:
    """Read numbers and truth values that were quoted inside a JSON object, as shells make people do."""
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, str):
        try:
            read = json.loads(value.lower())
        except ValueError:
            return value
        return read if isinstance(read, bool | int | float) else value
    return value


def resolve_aliases(args: TrainingArguments) -> None:
    """Let the newer name win, and the older one mirror it for code that still reads it."""
    for old, new in ALIASES.items():
        if getattr(args, new) is None:
            setattr(args, new, getattr(args, old))
        setattr(args, old, getattr(args, new))
    if args.activation_checkpointing is None:
        args.activation_checkpointing = args.gradient_checkpointing = False


def resolve_enums(args: TrainingArguments) -> None:
    """Turn words into members of their enumerations; an unknown word raises `UsageError`."""
    args.eval_strategy = IntervalStrategy(args.eval_strategy)
    args.logging_strategy = IntervalStrategy(args.logging_strategy)
    args.save_strategy = SaveStrategy(args.save_strategy)
    args.hub_strategy = HubStrategy(args.hub_strategy)
    args.lr_scheduler_type = SchedulerType(args.lr_scheduler_type)
    args.optim = OptimizerNames(args.optim)
    debug: Any = args.debug
    if debug is True:
        raise UsageError(f"debug got True; expected {' or '.join(DebugOption)}. Name what to look for.")
    args.debug = [DebugOption(word) for word in (debug.split() if isinstance(debug, str) else debug or [])]
    if not args.train_sampling_strategy:
        args.train_sampling_strategy = "random"
    if isinstance(args.auto_find_batch_size, str):
        args.auto_find_batch_size = FLAGS.get(args.auto_find_batch_size.lower(), args.auto_find_batch_size)
    if isinstance(args.include_num_input_tokens_seen, bool):
        args.include_num_input_tokens_seen = "all" if args.include_num_input_tokens_seen else "no"


def resolve_paths_and_display(args: TrainingArguments) -> None:
    """Settle the output folder and whether progress is shown."""
    # A literal "~" would become a folder of that name in the working directory.
    args.output_dir = os.path.expanduser("trainer_output" if args.output_dir is None else args.output_dir)
    if args.disable_tqdm is None:
        args.disable_tqdm = passive_log_level() > logging.WARNING


def resolve_intervals(args: TrainingArguments) -> None:
    """Settle how often to evaluate, and make whole numbers of steps integers."""
    if args.eval_strategy != IntervalStrategy.NO:
        args.do_eval = True
    if args.eval_strategy == IntervalStrategy.STEPS and not args.eval_steps:
        if args.logging_steps is None or args.logging_steps <= 0:
            raise UsageError(
                f"eval_strategy='steps' got eval_steps={args.eval_steps} and logging_steps={args.logging_steps}; "
                "expected one of them above 0: set eval_steps."
            )
        args.eval_steps = args.logging_steps
    for verb in ("logging", "eval", "save"):
        steps = getattr(args, f"{verb}_steps")
        if getattr(args, f"{verb}_strategy") != IntervalStrategy.STEPS or steps is None or steps <= 1:
            continue
        if steps != int(steps):
            raise UsageError(
                f"{verb}_steps got {steps}; expected an integer number of steps, or a share of all steps below 1."
            )
        setattr(args, f"{verb}_steps", int(steps))


def resolve_best_model(args: TrainingArguments) -> None:
    """Settle which metric decides, and in which direction."""
    watches = args.load_best_model_at_end or args.lr_scheduler_type in WATCHES_A_METRIC
    if watches and args.metric_for_best_model is None:
        args.metric_for_best_model = "loss"
    if args.greater_is_better is None and args.metric_for_best_model is not None:
        args.greater_is_better = not args.metric_for_best_model.endswith("loss")


def resolve_report_to(report_to: str | list[str] | None) -> list[str]:
    """Return the names of the trackers to report to."""
    if not isinstance(report_to, str | list | tuple | None):
        raise UsageError(f"report_to got {report_to!r}; expected the name of a tracker, a list of names, or 'none'.")
    named = [report_to] if isinstance(report_to, str) else list(report_to or [])
    if named == ["all"]:
        named = installed_trackers()
    elif named == ["none"]:
        named = []
    # A Kubeflow job sets this address to receive the progress of its runs.
    in_kubeflow = os.environ.get("KUBEFLOW_TRAINER_SERVER_URL") is not None
    switched_off = os.environ.get("DISABLE_KUBEFLOW_INTEGRATION", "").upper() == "TRUE"
    if in_kubeflow and not switched_off and "kubeflow" not in named:
        named.append("kubeflow")
    return named


def installed_trackers() -> list[str]:
    """Return the trackers that can be used here: those that transformers brings, or at least TensorBoard."""
    if find_spec("transformers") is not None:
        integrations: Any = import_module("transformers.integrations")
        return list(integrations.get_available_reporting_integrations())
    return ["tensorboard"] if find_spec("tensorboard") is not None else []


def resolve_compute(args: TrainingArguments) -> None:
    """Settle precision, compilation, pinned memory and accelerate's settings."""
    args.mixed_precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if args.fp16 or args.bf16:
        args.mixed_precision = "fp16" if args.fp16 else "bf16"
    if args.torch_compile_mode is not None or args.torch_compile_backend is not None:
        args.torch_compile = True
    if args.torch_compile and args.torch_compile_backend is None:
        args.torch_compile_backend = "inductor"
    if args.use_cpu:
        args.dataloader_pin_memory = False
    args.accelerator_config = AcceleratorConfig.build(args.accelerator_config)  # type: ignore[assignment]
