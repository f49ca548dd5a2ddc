# ruff: noqa: D102  (the signatures below are documented where they are implemented)
"""What every hook may read: the attributes of a trainer, with the values they have before anything happened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from onward.engine import Ways
from onward.types import StepFigures

if TYPE_CHECKING:
    import weakref
    from pathlib import Path

    import torch
    from accelerate import Accelerator
    from torch import nn
    from torch.utils.data import DataLoader

    from onward.arguments import TrainingArguments
    from onward.callbacks import CallbackHandler
    from onward.cursor import Cursor
    from onward.data.feed import Feed
    from onward.leaving import Leaving
    from onward.loop.accidents import Rollback
    from onward.loop.undo import Buffers
    from onward.meters import Meters
    from onward.optim.clip import Gradients
    from onward.plan import RunPlan
    from onward.speed.compiling import Compilation
    from onward.speed.shortcuts import Shortcuts
    from onward.state import TrainerControl, TrainerState


class TrainerBase:
    """The attributes that hooks share.

    They have class-level defaults because subclasses exist that never call ``Trainer.__init__``.
    """

    # What the user handed in
    args: TrainingArguments
    model: nn.Module
    model_init: Callable[..., nn.Module] | None = None
    data_collator: Callable[[list[Any]], Any] | None = None
    train_dataset: Any = None
    eval_dataset: Any = None
    processing_class: Any = None
    compute_loss_func: Callable[..., torch.Tensor] | None = None
    compute_metrics: Callable[..., Any] | None = None
    preprocess_logits_for_metrics: Callable[..., Any] | None = None
    optimizer_cls_and_kwargs: tuple[type[Any], dict[str, Any]] | None = None

    # What a run is made of
    accelerator: Accelerator
    model_wrapped: nn.Module
    optimizer: Any = None
    lr_scheduler: Any = None
    callback_handler: CallbackHandler
    control: TrainerControl
    state: TrainerState
    plan: RunPlan | None = None
    cursor: Cursor | None = None
    meters: Meters
    feed: Feed | None = None
    gather_function: Callable[[Any], Any]
    _settled: Ways | None = None
    _shortcuts: Shortcuts | None = None
    _loss_giver: nn.Module | None = None
    """The model as accelerate wrapped it, where training reads nothing but the loss of what it returns."""
    _compilation: Compilation | None = None

    # What the model can do
    label_names: list[str] = []  # noqa: RUF012  replaced, never mutated
    can_return_loss: bool = False
    label_smoother: Any = None
    model_accepts_loss_kwargs: bool = False
    loss_is_scaled_for_ga: bool | None = None
    is_model_parallel: bool = False
    place_model_on_device: bool = True
    neftune_noise_alpha: float | None = None
    neftune_hook_handle: Any = None
    is_distributed_loading_by_transformers: bool = False
    _loss_shifts_labels: bool = False
    _signature_columns: list[str] | None = None

    # Where the run stands
    is_in_train: bool = False
    current_gradient_accumulation_steps: int = 1
    current_flos: float = 0
    _train_batch_size: int = 0
    _tr_loss: torch.Tensor | None = None
    _total_loss_scalar: float = 0.0
    _globalstep_last_logged: int = 0
    _initial_global_step: int = 0
    _initial_num_input_tokens_seen: int = 0
    _created_lr_scheduler: bool = False
    _leaving: Leaving | None = None
    _saved_step: int | None = None
    _due_after_resume: dict[str, bool] | None = None
    _evaluated_at_start: bool = False
    _micro_batch: int = 0
    _may_leave_evaluation: bool = False
    _micro_batch_weight: float = 1.0
    _data_step: int = 0
    _loss_before: torch.Tensor | float | None = None
    _loss_finite: Any = True
    _rollback_due: Rollback | None = None
    _eval_limit: int | None = None
    _step_figures: StepFigures = StepFigures()
    _interval_rates: dict[str, float] | None = None
    _open_tokens: Any = 0
    _told_uncountable: bool = False
    _modules: list[nn.Module] | None = None
    _gradients: Gradients | None = None
    _buffers: Buffers | None = None
    _main_input: tuple[weakref.ref[nn.Module], str] | None = None
    _loggers_initialized: bool = False
    _memory_tracker: Any = None
    _eval_dataloaders: dict[str, DataLoader[Any]]
    model_preparation_time: float
    _warned_of_predictions: bool = False

    # Optional backends
    deepspeed: Any = None
    is_deepspeed_enabled: bool = False
    is_fsdp_enabled: bool = False
    is_fsdp_xla_enabled: bool = False
    is_fsdp_xla_v1_enabled: bool = False
    is_fsdp_xla_v2_enabled: bool = False
    hub_model_id: str | None = None
    push_in_progress: Any = None

    # Hyperparameter search
    hp_name: Callable[[Any], str] | None = None
    hp_search_backend: Any = None
    hp_space: Callable[[Any], Any] | None = None
    compute_objective: Callable[[dict[str, float]], Any] | None = None
    objective: Any = None
    _trial: Any = None

    @property
    def _ways(self) -> Ways:
        """What a step has to ask of the accelerator: settled while a run lasts, asked anew outside of one."""
        return self._settled or Ways(self.accelerator)

    if TYPE_CHECKING:
        # Hooks that rooms call across mixins. Each is implemented in exactly one of them.
        def train(
            self,
            resume_from_checkpoint: str | bool | None = None,
            trial: Any = None,
            ignore_keys_for_eval: list[str] | None = None,
        ) -> Any: ...
        def training_step(
            self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
        ) -> torch.Tensor: ...
        def compute_loss(
            self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any: ...
        def compute_loss_context_manager(self) -> Any: ...
        def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]: ...
        def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any: ...
        def _prepare_input(self, data: Any) -> Any: ...
        def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]: ...
        def _open_shortcuts(self) -> None: ...
        def _gradient_sync(self, model: nn.Module, is_last: bool) -> Any: ...
        def _indices_at_work(self, model: nn.Module) -> list[int] | None: ...
        def _count_micro_batch(self, loss: torch.Tensor, inputs: Any) -> None: ...
        def _step_optimizer(self, grad_norm: Any) -> None: ...
        def _step_scheduler(self) -> None: ...
        def _leave_inside_step(self, model: nn.Module, trial: Any, is_first: bool) -> Callable[[], None] | None: ...
        def _roll_back(self, trial: Any) -> None: ...
        def _hold_rng(self) -> Callable[[], None]: ...
        def _leave_if_asked(self, model: nn.Module, trial: Any) -> None: ...
        def _evaluate_at_start(self, model: nn.Module, trial: Any, ignore_keys: list[str] | None) -> None: ...
        def _maybe_log_save_evaluate(
            self,
            tr_loss: Any,
            grad_norm: Any,
            model: nn.Module,
            trial: Any,
            epoch: float,
            ignore_keys_for_eval: list[str] | None,
            start_time: float,
            learning_rate: float | None = None,
        ) -> None: ...
        def _inner_training_loop(
            self,
            batch_size: int | None = None,
            args: Any = None,
            resume_from_checkpoint: str | None = None,
            trial: Any = None,
            ignore_keys_for_eval: list[str] | None = None,
        ) -> Any: ...
        def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module: ...
        def _move_model_to_device(self, model: nn.Module, device: Any) -> None: ...
        def call_model_init(self, trial: Any = None) -> nn.Module: ...
        def get_total_train_batch_size(self, args: Any) -> int: ...
        def set_initial_training_values(
            self, args: Any, dataloader: Any
        ) -> tuple[int, int, int, float, int, int, int]: ...
        def create_accelerator_and_postprocess(self) -> None: ...

        def get_train_dataloader(self) -> DataLoader[Any]: ...
        def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]: ...
        def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]: ...
        def num_examples(self, dataloader: Any) -> int: ...
        def _set_signature_columns_if_needed(self) -> None: ...

        def create_optimizer(self, model: nn.Module | None = None) -> Any: ...
        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any: ...
        def _get_learning_rate(self) -> float: ...
        def _clip_grad_norm(self, model: nn.Module) -> Any: ...
        def _clear_gradients(self, model: nn.Module) -> None: ...
        def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any: ...

        def evaluate(
            self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
        ) -> dict[str, float]: ...
        def evaluation_loop(
            self,
            dataloader: Any,
            description: str,
            prediction_loss_only: bool | None = None,
            ignore_keys: list[str] | None = None,
            metric_key_prefix: str = "eval",
        ) -> Any: ...
        def prediction_step(
            self,
            model: nn.Module,
            inputs: dict[str, Any],
            prediction_loss_only: bool,
            ignore_keys: list[str] | None = None,
        ) -> tuple[Any, Any, Any]: ...
        def _evaluate(
            self, trial: Any, ignore_keys_for_eval: list[str] | None, skip_scheduler: bool = False
        ) -> dict[str, float]: ...
        def _determine_best_metric(self, metrics: Mapping[str, float], trial: Any) -> bool: ...

        def _save_checkpoint(self, model: nn.Module, trial: Any) -> None: ...
        def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None: ...
        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None: ...
        def _save_optimizer_and_scheduler(self, output_dir: str) -> None: ...
        def _unwrapped(self, model: nn.Module) -> nn.Module: ...
        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None: ...
        def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None: ...
        def _load_scaler(self, checkpoint: str | None) -> None: ...
        def _load_rng_state(self, checkpoint: str | None) -> None: ...
        def _load_callback_state(self) -> None: ...
        def _load_best_model(self) -> None: ...
        def _get_output_dir(self, trial: Any) -> str: ...
        def _push_committed_saves(self) -> None: ...
        def _flush_saves(self, collective: bool = True) -> None: ...
        def _free_saves(self) -> None: ...
        def _end_saves(self) -> None: ...
        def _begin_saves(self, checkpoint: Path | None) -> None: ...
        def _save_just_failed(self) -> bool: ...
        def _save_failed(self) -> bool: ...

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None: ...
        def _default_callbacks(self) -> list[Any]: ...
        def _progress_callback(self) -> Any: ...
        def _attend(self) -> None: ...
        def _track_num_input_tokens(self, inputs: Any) -> None: ...
        def store_flos(self) -> None: ...
        def _main_input_name(self) -> str: ...
        def floating_point_ops(self, inputs: dict[str, Any]) -> float: ...
        def is_local_process_zero(self) -> bool: ...
        def is_world_process_zero(self) -> bool: ...
        def add_callback(self, callback: Any) -> None: ...
        def _tell_of_error(self, error: BaseException) -> None: ...

        def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None: ...
        def push_to_hub(
            self,
            commit_message: str | None = "End of training",
            blocking: bool = True,
            token: str | None = None,
            revision: str | None = None,
            private: bool | None = None,
            **kwargs: Any,
        ) -> Any: ...
        def _push_from_checkpoint(self, checkpoint_folder: str) -> None: ...
        def _withdraw_push(self, checkpoint_folder: str, reason: str, may_be_there: bool) -> bool: ...
        def _finish_current_push(self) -> None: ...
        def _fetch_checkpoint(self, resume_from_checkpoint: str | bool | None) -> str | bool | None: ...

        def _hp_search_setup(self, trial: Any) -> None: ...
        def _trial_name(self) -> str | None: ...
        def _retune(self, checkpoint: str) -> None: ...
        def _report_to_hp_search(self, trial: Any, step: int, metrics: dict[str, float]) -> None: ...
