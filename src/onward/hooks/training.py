"""Hooks about the step: batches, loss, backward, and what is due after it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch

from onward import engine, engine_sharding, model_setup
from onward.checkpoint import parts
from onward.data.collate import not_a_batch
from onward.errors import DataError
from onward.hooks.base import TrainerBase
from onward.loop import leave, step as steps, train as flow
from onward.loop.accidents import spread_accidents
from onward.loop.continuing import record_of_loop
from onward.loop.rollback import roll_back
from onward.loop.shortcuts import only_loss_is_read, open_shortcuts
from onward.loss import count_items, loss_of, unfit_loss, without_labels
from onward.speed.outputs import loss_alone

if TYPE_CHECKING:
    from torch import nn

    from onward.types import TrainOutput


class TrainingHooks(TrainerBase):
    """`train`, the step, the loss, and what is due after a step."""

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train the model.

        Args:
            resume_from_checkpoint: a checkpoint folder to go on from, or `True` for the newest whole one in
                ``args.output_dir``; `None` or `False` to start anew.
            trial: an `optuna.Trial`, or a dictionary of hyperparameters, to train with.
            ignore_keys_for_eval: keys of the model's output to leave out when evaluation gathers predictions.

        Returns:
            ``(global_step, training_loss, metrics)``: steps done in total, mean loss of the whole run, and speed,
            memory
            and floating point operations.

        Raises:
            UsageError: settings or data that cannot work, before any work is done.
            CheckpointError: nothing to resume from, or not from this run.
            TrainingFailed: the run cannot go on.
        """
        return flow.train(self, resume_from_checkpoint or None, trial, ignore_keys_for_eval)

    def _inner_training_loop(
        self,
        batch_size: int | None = None,
        args: Any = None,
        resume_from_checkpoint: str | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Plan, prepare, fit, finish: `train` without the opening."""
        return flow.run(self, resume_from_checkpoint, trial, ignore_keys_for_eval)

    # -- the step -------------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Pull the micro-batches of one step and count the items that its loss is averaged over.

        Returns:
            The micro-batches, fewer than `num_batches` where the data ends, and the number of label items over all of
            them and all processes (`None` where the loss does not take it).
        """
        samples = []
        for _ in range(num_batches):
            try:
                samples.append(next(epoch_iterator))
            except StopIteration:
                break
        counted = samples
        if self.feed is not None and self.feed.share.world_size > 1:
            weights = self.feed.weights(len(samples))
            counted = [s if weight else without_labels(s) for s, weight in zip(samples, weights, strict=True)]
        return samples, self._get_num_items_in_batch(counted, device)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Label items in the given micro-batches over all processes, or `None` where nothing asks for them."""
        if not (self.model_accepts_loss_kwargs or self.compute_loss_func is not None):
            return None
        count = count_items(batch_samples, shifted=self._loss_shifts_labels)
        if count is None or not torch.is_tensor(count):
            return count
        count = count.to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        # A float, as every count is behind the division by the size of model-parallel groups.
        return count / 1

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of one micro-batch.

        Args:
            model: the model as it is called.
            inputs: one collated micro-batch.
            num_items_in_batch: label items of the whole step.

        Returns:
            The loss that backward ran on, detached: a scalar on the training device.
        """
        self._to_training_mode(model)
        if callable(getattr(self.optimizer, "train", None)):  # schedule-free optimizers
            self.optimizer.train()
        inputs = self._prepare_inputs(inputs)
        if self._compilation is not None:  # shortcuts are closed
            with self._compilation.computing(self.state.global_step, model, inputs) as whole:
                return self._forward_and_backward(whole, inputs, num_items_in_batch)
        with _NOTHING if self._loss_giver is None else loss_alone(self._loss_giver):
            if self._shortcuts is None:
                return self._forward_and_backward(model, inputs, num_items_in_batch)
            with self._shortcuts.taking(inputs) as shorter:
                return self._forward_and_backward(model, shorter, num_items_in_batch)

    def _to_training_mode(self, model: nn.Module) -> None:
        """Undo what evaluation, or a callback that samples, did to the model or a part of it.

        Every module is asked: a wrapper around the model (DDP, for one) has a flag of its own. The list is made once,
        because walking through a deep model, let alone setting all flags, takes longer than this whole hook.
        """
        if self._modules is None or self._modules[0] is not model:
            self._modules = list(model.modules())
        if not all(map(_TRAINING, self._modules)):
            model.train()

    def _forward_and_backward(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any) -> torch.Tensor:
        with self.compute_loss_context_manager():
            loss: torch.Tensor = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        del inputs
        if not (isinstance(loss, torch.Tensor) and loss.requires_grad and loss.numel() == 1):
            raise unfit_loss(loss)
        args, ways = self.args, self._ways
        every = args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            engine.empty_cache()
        if not self._loss_is_scaled(num_items_in_batch):
            if self.current_gradient_accumulation_steps != 1:
                loss = loss / self.current_gradient_accumulation_steps
            if self._micro_batch_weight != 1.0:
                loss = loss * self._micro_batch_weight
        elif self._micro_batch_weight == 0.0:
            loss = loss * 0.0  # a phantom: it takes part in the exchange of gradients, and adds nothing
        if ways.several:
            loss = spread_accidents(args, loss)
        ways.backward(loss, {"learning_rate": self._get_learning_rate()} if args.optim in ("lomo", "adalomo") else {})
        return loss.detach()

    def _open_shortcuts(self) -> None:
        """Find out which shortcuts this run may take, and whether the model's outputs may lack all but the loss."""
        self._shortcuts = open_shortcuts(self, TrainingHooks)
        lacking = self.args.mixed_precision != "no" and only_loss_is_read(self, TrainingHooks)
        self._loss_giver = engine.unwrapped(self.accelerator, self.model) if lacking else None

    def _loss_is_scaled(self, num_items_in_batch: Any) -> bool:
        """Whether the loss is already an average over the whole step."""
        if self.loss_is_scaled_for_ga is not None:
            return self.loss_is_scaled_for_ga
        by_model = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        return by_model or self.compute_loss_func is not None

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one micro-batch.

        Args:
            model: the model as it is called.
            inputs: one collated micro-batch, on the training device.
            return_outputs: whether to return the model's outputs too.
            num_items_in_batch: label items of the whole step, for a loss that is averaged over them.

        Returns:
            The loss, or ``(loss, outputs)``. Who overrides this and computes a loss of their own says by the class
            attribute `loss_is_scaled_for_ga` whether it is already averaged over the whole step.

        Raises:
            UsageError: the model's outputs hold no loss.
        """
        labels = None
        if not hasattr(inputs, "keys"):
            raise not_a_batch(inputs)
        own_loss, is_counted = self.compute_loss_func, num_items_in_batch is not None
        if (own_loss is not None or self.label_smoother is not None) and "labels" in inputs:
            labels = inputs.pop("labels")
        if is_counted and self.model_accepts_loss_kwargs:
            inputs = {**inputs, "num_items_in_batch": num_items_in_batch}
        try:
            outputs = model(**inputs)
        except IndexError as error:
            base = engine.unwrapped(self.accelerator, model)
            model_setup.check_token_ids(base, inputs, error, partial(self._indices_at_work, model))
            raise
        if own_loss is not None:
            loss = own_loss(outputs, labels, num_items_in_batch=num_items_in_batch)
        elif labels is not None:
            base = engine.unwrapped(self.accelerator, model)
            loss = flow.smoothed_loss(self.label_smoother, base, (outputs, labels), num_items_in_batch)
        else:
            loss = loss_of(outputs, inputs, self.label_names)
        takes_count = is_counted and (self.model_accepts_loss_kwargs or own_loss is not None)
        if takes_count and self.args.average_tokens_across_devices:
            # Each process divided by the count of all of them, and DDP averages where a sum is wanted.
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """The context that the loss is computed in, to which an override may add.

        It is empty, because accelerate wraps the model's forward in autocast, unless `autocast_smart_context_manager`
        is overridden.
        """
        stack, autocast = _Contexts(), self.autocast_smart_context_manager()
        if autocast is not _NOTHING:
            stack.enter_context(autocast)
        return stack

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        """An autocast context to override; empty, because accelerate wraps the model's forward in one."""
        return _NOTHING

    def _prepare_input(self, data: Any) -> Any:
        """Move tensors to the training device, also nested ones, each of which an override sees."""
        again = self._prepare_input
        is_overridden = getattr(again, "__func__", None) is not TrainingHooks._prepare_input
        return engine.place(data, self.args.device, again if is_overridden else None)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Make a micro-batch ready for the model.

        Raises:
            DataError: it is empty.
        """
        inputs = self._prepare_input(inputs)
        if inputs is None:
            raise not_a_batch(inputs)
        if len(inputs) == 0:
            raise DataError(
                "The collator gave an empty batch: its samples have none of the keys that the model takes "
                f"({', '.join(self._signature_columns or [])}). Rename the keys or pass remove_unused_columns=False."
            )
        return inputs

    # -- around the step ------------------------------------------------------------------------------------------

    def _gradient_sync(self, model: nn.Module, is_last: bool) -> Any:
        """The context of one micro-batch: gradients are exchanged between processes behind the last one only."""
        state = self.accelerator.gradient_state
        if state.sync_gradients is not is_last:
            state._set_sync_gradients(is_last)
        if is_last or not self._ways.several or state.plugin_kwargs.get("sync_each_batch", False):
            return _NOTHING
        if self.is_fsdp_enabled:
            # Put off, whole gradients would pile up in each process, and out of reach of a step that is taken back.
            return _NOTHING
        return self.accelerator.no_sync(model=model)

    def _count_micro_batch(self, loss: torch.Tensor, inputs: Any) -> None:
        """Add up loss, floating point operations and tokens. Nothing here waits for an accelerator."""
        steps.count_micro_batch(self, loss, inputs)

    def _track_num_input_tokens(self, inputs: Any) -> None:
        """Count the input tokens of a micro-batch."""
        steps.count_input_tokens(self, inputs)

    def _step_optimizer(self, grad_norm: Any) -> None:
        """Step the optimizer, unless loss or gradients are not finite and `on_nonfinite` forbids it."""
        steps.step_optimizer(self, grad_norm)

    def _step_scheduler(self) -> None:
        """Advance the learning rate, except where it waits for a metric or a scaler skipped the step."""
        steps.step_scheduler(self)

    def _maybe_log_save_evaluate(
        self,
        tr_loss: torch.Tensor,
        grad_norm: Any,
        model: nn.Module,
        trial: Any,
        epoch: float,
        ignore_keys_for_eval: list[str] | None,
        start_time: float,
        learning_rate: float | None = None,
    ) -> None:
        """Do what `control` asks for: log, evaluate, save. Called behind every step and epoch, for who overrides it."""
        if not (self.control.should_log or self.control.should_evaluate or self.control.should_save):
            return
        self._push_committed_saves()
        if self.control.should_log and self.state.global_step > self._globalstep_last_logged:
            steps.log_interval(self, tr_loss, grad_norm, learning_rate, start_time)
            if self._rollback_due is not None:
                return  # what is evaluated or saved now would be thrown away
        if self.control.should_evaluate:
            with self.meters.paused():
                is_best = leave.evaluate_or_leave(self, model, trial, ignore_keys_for_eval)
            if self.args.save_strategy == "best":
                self.control.should_save = is_best
        if self.control.should_save:
            with self.meters.paused():
                leave.save(self, model, trial)

    def _evaluate_at_start(self, model: nn.Module, trial: Any, ignore_keys: list[str] | None) -> None:
        """Evaluate before the first step (`eval_on_start`), or leave if a signal or the time limit asks for it."""
        leave.evaluate_at_start(self, model, trial, ignore_keys)

    def _leave_inside_step(self, model: nn.Module, trial: Any, is_first: bool) -> Callable[[], None] | None:
        """A function that leaves from within the step that begins here, taking it back; None where that cannot be."""
        return leave.leave_inside(self, model, trial, is_first)

    def _roll_back(self, trial: Any) -> None:
        """Go back to the checkpoint before the steps that were left out, and on behind them."""
        roll_back(self, trial)

    def _leave_if_asked(self, model: nn.Module, trial: Any) -> None:
        """Save and leave if a signal or the time limit asks for it."""
        leave.leave_if_asked(self, model, trial)

    def _extra_record(self) -> dict[str, Any]:
        """What the loop needs in a checkpoint beside the files of transformers."""
        return record_of_loop(self)

    def _hold_rng(self) -> Callable[[], None]:
        """A function that puts the random number generators back to where they stand now."""
        return partial(parts.restore_rng_states, parts.rng_states(distributed=False))

    # -- the model ------------------------------------------------------------------------------------------------

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Make a new model with `model_init`, handing it the trial if it takes one.

        Raises:
            UsageError: `model_init` takes more than one argument or returns `None`.
        """
        return flow.call_model_init(self.model_init, trial)

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        """A place to wrap the model in a way that accelerate does not know."""
        return model

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        """Move the model, keeping tied weights tied."""
        if not model_setup.is_placed_by_itself(model):
            model.to(device)

    def create_accelerator_and_postprocess(self) -> None:
        """Make the accelerator."""
        self.accelerator = engine.create_accelerator(self.args, self._build_accelerator_args)
        self.gather_function = engine.gather_function(self.accelerator, self.args.eval_use_gather_object)
        self.is_fsdp_enabled = engine_sharding.is_sharding(self.accelerator)

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        """All keywords that the accelerator is made with; override this to add some."""
        return engine.accelerator_options(self.args, getattr(self, "model", None)) | kwargs

    def end(self) -> None:
        """Close trackers and the process group, at the very end of a script."""
        self.accelerator.end_training()


class _Contexts(contextlib.ExitStack):
    """A stack that is left at once while it is empty, as it is at nearly every micro-batch."""

    def __exit__(self, *details: Any) -> bool:
        return bool(self._exit_callbacks and super().__exit__(*details))  # type: ignore[attr-defined]


_NOTHING = contextlib.nullcontext()
_TRAINING = attrgetter("training")
