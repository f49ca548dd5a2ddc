"""The face of onward: `Trainer`, with the names that people know from transformers.

Read on in `loop/train.py` for what `train()` does, and in `loop/fit.py` for the loop.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from onward import engine, model_setup
from onward.arguments import TrainingArguments
from onward.arguments.kinds import leave_numpy
from onward.callbacks import CallbackHandler
from onward.data.causal import NextTokenCollator
from onward.data.collate import choose_collator
from onward.errors import SignatureOfInit, UsageError, check_keywords
from onward.hooks.checkpointing import CheckpointHooks
from onward.hooks.data import DataHooks
from onward.hooks.evaluation import EvaluationHooks
from onward.hooks.hub import HubHooks
from onward.hooks.optimization import OptimizationHooks
from onward.hooks.reporting import ReportingHooks, set_log_level
from onward.hooks.searching import SearchHooks
from onward.hooks.training import TrainingHooks
from onward.loop.checks import check_parts, check_trainer
from onward.loss import LabelSmoother
from onward.memory import MemoryTracker
from onward.meters import Meters
from onward.seeding import enable_full_determinism, set_seed
from onward.state import TrainerControl, TrainerState, exportable

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

# Names that scripts written for older versions of transformers still use, and what does their work now.
FORMER_PARTS = {"tokenizer": "processing_class", "feature_extractor": "processing_class"}


class Trainer(
    TrainingHooks,
    DataHooks,
    OptimizationHooks,
    EvaluationHooks,
    CheckpointHooks,
    ReportingHooks,
    HubHooks,
    SearchHooks,
):
    """Trains, evaluates and saves a PyTorch model, and never loses a step.

    Args:
        model: a module whose forward returns a dictionary with ``loss``, or a tuple that starts with it. Models of
            transformers and PEFT are at home here.
        args: `TrainingArguments`, onward's or transformers'.
        data_collator: makes a batch from a list of samples. Default: padding by the processing class if it is a
            tokenizer, else stacking.
        train_dataset: map-style, iterable, or a `datasets.Dataset`.
        eval_dataset: the same, or a dictionary of several.
        processing_class: tokenizer or processor; saved beside the model.
        model_init: makes a new model for each `train()`; instead of `model`.
        compute_loss_func: ``(outputs, labels, num_items_in_batch) -> loss``.
        compute_metrics: ``EvalPrediction -> dict``.
        callbacks: in addition to the default ones.
        optimizers: optimizer and schedule to use instead of those that the arguments name.
        optimizer_cls_and_kwargs: class and keyword arguments of the optimizer to make.
        preprocess_logits_for_metrics: ``(logits, labels) -> logits``, before they are kept for metrics.

    Raises:
        UsageError: settings that cannot work together, or a model or data that cannot be trained.
    """

    __signature__ = SignatureOfInit()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Check the names of arguments, which Python itself would refuse without a hint."""
        check_keywords(cls, kwargs, "arguments", FORMER_PARTS)
        return super().__new__(cls)

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., nn.Module] | None = None,
        compute_loss_func: Callable[..., Any] | None = None,
        compute_metrics: Callable[..., Any] | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[Any], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[..., Any] | None = None,
    ) -> None:
        check_parts(model, args, callbacks, optimizers)
        self.args = TrainingArguments(output_dir="tmp_trainer") if args is None else args
        leave_numpy(self.args)  # those of transformers' class have not been through it
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.processing_class = processing_class
        self.model_init = model_init
        self.compute_loss_func, self.compute_metrics = compute_loss_func, compute_metrics
        self.preprocess_logits_for_metrics = preprocess_logits_for_metrics
        self.optimizer, self.lr_scheduler = optimizers
        self.optimizer_cls_and_kwargs = optimizer_cls_and_kwargs
        self.data_collator = choose_collator(processing_class) if data_collator is None else data_collator
        self._set_seed()
        self._open_engine(model)
        self._take_model(model)
        if data_collator is None and model_setup.is_causal_language_model(self.model):
            self.data_collator = NextTokenCollator(self.data_collator)
        self._validate_args()
        self._open_callbacks(callbacks or [])
        self._open_output()
        self._open_state()
        self._memory_tracker.stop_and_update_metrics(stage="init")

    def _validate_args(self) -> None:
        """Check the arguments of the constructor against each other.

        Raises:
            UsageError: they cannot work together.
        """
        check_trainer(self)

    def _set_seed(self) -> None:
        # Before `model_init` makes a model.
        enable_full_determinism(self.args.seed) if self.args.full_determinism else set_seed(self.args.seed)

    def _open_engine(self, model: nn.Module | None) -> None:
        if model is not None:
            self.model = model  # looked at to choose DDP's settings
        self.create_accelerator_and_postprocess()
        self._memory_tracker = MemoryTracker(self.args.skip_memory_metrics)
        self._memory_tracker.start("init")
        set_log_level(self.args)

    def _take_model(self, model: nn.Module | None) -> None:
        args = self.args
        if (model is None) == (self.model_init is None):
            got = "neither" if model is None else "both"
            raise UsageError(
                f"`Trainer` requires either a `model` or `model_init` argument, got {got}. Pass exactly one."
            )
        model = self.call_model_init() if model is None else model
        model_setup.check_trainable(model)
        devices = engine.devices_of(model)
        self.is_model_parallel = len(devices) > 1
        asked = getattr(args, "place_model_on_device", None)
        casts_later = args.fp16_full_eval or args.bf16_full_eval
        moves_later = casts_later or self.is_fsdp_enabled  # sharding moves one layer after the other
        self.place_model_on_device = not (self.is_model_parallel or moves_later) if asked is None else asked
        if self.place_model_on_device:
            self._move_model_to_device(model, args.device)
        self.model = self.model_wrapped = model
        self._read_model(model)

    def _read_model(self, model: nn.Module) -> None:
        """Find out what the model takes and returns."""
        args = self.args
        base = model_setup.without_peft(engine.unwrapped(self.accelerator, model))
        self.model_accepts_loss_kwargs = model_setup.accepts_loss_kwargs(base)
        self._loss_shifts_labels = model_setup.loss_shifts_labels(base)
        self.label_names = model_setup.label_names(type(base)) if args.label_names is None else args.label_names
        self.can_return_loss = model_setup.can_return_loss(type(base))
        self.neftune_noise_alpha = args.neftune_noise_alpha
        self.label_smoother = None
        if args.label_smoothing_factor != 0:
            if getattr(getattr(model, "config", None), "problem_type", None) == "multi_label_classification":
                logger.warning("Label smoothing does not apply to multi-label classification and is left out.")
            else:
                self.label_smoother = LabelSmoother(epsilon=args.label_smoothing_factor)
        if getattr(model, "config", None) is not None:
            model.config.use_cache = args.use_cache  # type: ignore[union-attr]

    def _open_callbacks(self, callbacks: list[Any]) -> None:
        self.callback_handler = CallbackHandler(
            [*self._default_callbacks(), *callbacks],
            self.model,
            self.processing_class,
            self.optimizer,
            self.lr_scheduler,
        )
        self._attend()
        self.add_callback(self._progress_callback())

    def _open_output(self) -> None:
        if self.args.push_to_hub:
            self.init_hf_repo()
        if self.args.should_save:
            os.makedirs(str(self.args.output_dir), exist_ok=True)

    def _open_state(self) -> None:
        self.control = TrainerControl()
        self.state = TrainerState(
            is_local_process_zero=self.is_local_process_zero(),
            is_world_process_zero=self.is_world_process_zero(),
            stateful_callbacks=exportable([*self.callback_handler.callbacks, self.control]),
        )
        self.meters = Meters()
        self._signature_columns = None
        self._train_batch_size = self.args.train_batch_size
        self._created_lr_scheduler = False
        self.control = self.callback_handler.on_init_end(self.args, self.state, self.control)
