"""One call of `Trainer.train`: open the run, prepare, fit, finish.

open     trial, seed, `model_init`, what is attached to the model, checkpoint
run      plan → start or resume → optimizer and model → fit → finish
"""

from __future__ import annotations

import inspect
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from onward import engine, engine_sharding, memory, model_setup
from onward.checkpoint import read_record
from onward.cursor import Cursor
from onward.data.columns import fingerprint
from onward.data.feed import Feed
from onward.data.order import has_length
from onward.errors import UsageError
from onward.loop.accidents import judge
from onward.loop.account import speed_account
from onward.loop.checks import check_states, check_training
from onward.loop.compilation import compile_model, open_compilation
from onward.loop.continuing import restore_run
from onward.loop.feeding import plan_run, share_of, strategy_name
from onward.loop.fit import Run, fit
from onward.loop.grow import grow
from onward.loop.leave import finish_saving, watch
from onward.loop.resuming import find_checkpoint
from onward.loop.shrink import Fitting
from onward.loop.step import mean_loss, settle_input_tokens
from onward.loop.undo import Buffers
from onward.meters import Meters, speed_metrics
from onward.seeding import enable_full_determinism, set_seed
from onward.state import TrainerState, exportable
from onward.types import TrainOutput

if TYPE_CHECKING:
    from torch import nn

    from onward.hooks.base import TrainerBase

logger = logging.getLogger(__name__)


def train(host: TrainerBase, resume: str | bool | None, trial: Any, ignore_keys: list[str] | None) -> TrainOutput:
    """Open the run, then hand over to `host._inner_training_loop`."""
    host._memory_tracker.start("train")
    memory.reset_peak()
    host.is_in_train = True
    try:
        check_training(host)
        host._hp_search_setup(trial)  # before the model, whose weights depend on the trial's seed
        _open_model(host, trial)
        checkpoint = find_checkpoint(host._fetch_checkpoint(resume), host._get_output_dir(host._trial))
        host._begin_saves(checkpoint)
        if checkpoint is not None:
            if host.is_fsdp_enabled:  # before the weights are loaded: sharding may widen their number format
                engine_sharding.shard(host.accelerator, host.model, host.optimizer)
            host._load_from_checkpoint(str(checkpoint))
        output: TrainOutput = host._inner_training_loop(
            batch_size=host._train_batch_size,
            args=host.args,
            resume_from_checkpoint=None if checkpoint is None else str(checkpoint),
            trial=trial,
            ignore_keys_for_eval=ignore_keys,
        )
        return output
    except BaseException as error:
        host._flush_saves(collective=False)  # what is being written can still be finished, and pushed
        host._push_committed_saves()
        host._tell_of_error(error)
        raise
    finally:
        _close_model(host)
        host.is_in_train = False


def _open_model(host: TrainerBase, trial: Any) -> None:
    args = host.args
    if host.model_init is not None:
        enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
        host.model = host.call_model_init(trial)
        host.optimizer = host.lr_scheduler = None
        if host.place_model_on_device:
            host._move_model_to_device(host.model, args.device)
        host.model_wrapped = host.model
    elif args.fp16_full_eval or args.bf16_full_eval:
        host._move_model_to_device(host.model, args.device)  # was left for evaluation to cast and move in one go
    if args.use_liger_kernel:
        model_setup.apply_liger_kernel(host.model, args.liger_kernel_config)
    if args.activation_checkpointing:
        options = args.activation_checkpointing_kwargs
        assert not isinstance(options, str), "the arguments turn JSON text into a dictionary"
        model_setup.enable_activation_checkpointing(host.model, options)
    if "underflow_overflow" in args.debug:
        model_setup.watch_overflow(host.model)
    if host.processing_class is not None:
        model_setup.align_special_tokens(host.model, host.processing_class)
    if host.neftune_noise_alpha is not None:
        base = engine.unwrapped(host.accelerator, host.model)
        host.neftune_hook_handle = model_setup.activate_neftune(base, host.neftune_noise_alpha)


def _close_model(host: TrainerBase) -> None:
    if host._compilation is not None:
        host._compilation.close()
        host._compilation = None
    # Or they would keep this model beside the next one that `model_init` makes.
    host._modules = host._gradients = host._buffers = host._settled = None
    if host.neftune_hook_handle is not None:
        model_setup.deactivate_neftune(engine.unwrapped(host.accelerator, host.model), host.neftune_hook_handle)
        host.neftune_hook_handle = None


def _found_batch_size(host: TrainerBase, checkpoint: str | None) -> int | None:
    """The size of micro-batches that the run so far found to fit; `None` if it did not look for what is asked now."""
    if checkpoint is None:
        return None
    size = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json").train_batch_size
    if host.args.auto_find_batch_size == "grow":
        record = read_record(checkpoint)
        extra = {} if record is None else record.of_rank(0).get("extra", {})
        return size if extra.get("arguments", {}).get("auto_find_batch_size") == "grow" else None
    return None if size is None else min(size, host.args.train_batch_size)


def run(host: TrainerBase, checkpoint: str | None, trial: Any, ignore_keys: list[str] | None) -> TrainOutput:
    """Plan, start or resume, prepare, fit, finish."""
    host.accelerator.free_memory()
    finds = bool(host.args.auto_find_batch_size)
    found = _found_batch_size(host, checkpoint) if finds else None
    if finds:
        host._train_batch_size = host.args.train_batch_size  # an earlier call may have found another one
    loader = host.get_train_dataloader()
    host.plan = plan_run(host, loader, host.args)
    feed = Feed(loader, share_of(host), engine.mover(host.accelerator, host.args.dataloader_pin_memory))
    host.feed = feed
    host._compilation = open_compilation(host)
    _start_state(host, trial)
    is_over = checkpoint is not None and restore_run(host, checkpoint)
    host.state.init_training_references(host, host.plan.max_steps, host.plan.num_epochs, trial)
    model = _prepare(host, checkpoint)
    host._settled = engine.Ways(host.accelerator)
    host._open_shortcuts()
    _hand_to_callbacks(host, loader)
    _announce(host, model, checkpoint)
    _start_counters(host)
    run = Run(host.plan, feed, model, trial, ignore_keys, time.time(), is_over=is_over)
    run.check_states = partial(check_states, host)
    if checkpoint is not None:
        run.restore_rng = partial(host._load_rng_state, checkpoint)
    model.zero_grad()
    host._rollback_due, host._loss_before, host._loss_finite = None, None, True
    host._buffers = run.buffers = Buffers(model) if any(each._buffers for each in model.modules()) else None
    host.state.train_batch_size = host._train_batch_size  # not that of the run which wrote the checkpoint
    if finds:
        run.fitting = Fitting(host, run, found)
        if host.args.auto_find_batch_size == "grow" and found is None:
            run.search = partial(grow, host, run)
    # accelerate's free_memory has just collected: what is frozen now is alive.
    with watch(host) as host._leaving, memory.old_objects_frozen():
        fit(host, run)
        finish_saving(host, model, trial)  # under watch: a signal must not cut off the last save
    host._leaving = None
    if run.fitting is not None:
        run.fitting.close()
    return _finish(host, run)


def _start_state(host: TrainerBase, trial: Any) -> None:
    args, plan = host.args, host.plan
    assert plan is not None
    host.state = TrainerState(stateful_callbacks=exportable([*host.callback_handler.callbacks, host.control]))
    host.state.is_hyper_param_search = trial is not None
    host.state.train_batch_size = host._train_batch_size
    host.state.compute_steps(args, plan.max_steps)
    host.meters = Meters()
    data = host.train_dataset
    host.cursor = Cursor(
        seed=share_of(host).seed,
        strategy=strategy_name(args),
        num_samples=len(data) if data is not None and has_length(data) else None,
        fingerprint=fingerprint(data) if data is not None else None,
        drop_last=args.dataloader_drop_last,
        micro_batch_size=plan.micro_batch_size,
        accumulation=plan.accumulation,
        world_size=plan.world_size,
    )
    host._tr_loss = torch.tensor(0.0, device=args.device)
    host._total_loss_scalar = 0.0
    host._globalstep_last_logged = 0
    host._saved_step = host._due_after_resume = None  # of an earlier call
    host._evaluated_at_start = False


def _prepare(host: TrainerBase, checkpoint: str | None) -> nn.Module:
    """Create the optimizer, wrap the model, create the schedule, and load the state of both."""
    plan = host.plan
    assert plan is not None
    if host._created_lr_scheduler:  # its length belonged to an earlier call
        host.lr_scheduler = None
        host._created_lr_scheduler = False
    if host.is_fsdp_enabled:  # before the optimizer is made: its state has the shape of the parts
        engine_sharding.shard(host.accelerator, host.model, host.optimizer)
    host.create_optimizer()
    model = host._wrap_model(host.model_wrapped)
    if model is host.model:
        model, host.optimizer = engine_sharding.prepare(host.accelerator, host.model, host.optimizer)
    else:
        host.optimizer = host.accelerator.prepare(host.optimizer)
    compile_model(host, model)
    host.create_scheduler(num_training_steps=plan.max_steps)
    host.model_wrapped = model
    if checkpoint is not None:
        host._load_optimizer_and_scheduler(checkpoint)
        host._load_scaler(checkpoint)
        host._retune(checkpoint)
    return model


def _hand_to_callbacks(host: TrainerBase, loader: Any) -> None:
    handler = host.callback_handler
    host._attend()
    handler.model, handler.optimizer, handler.lr_scheduler = host.model, host.optimizer, host.lr_scheduler
    handler.train_dataloader = loader


def _announce(host: TrainerBase, model: nn.Module, checkpoint: str | None) -> None:
    plan = host.plan
    assert plan is not None
    logger.info(
        "Training: %s examples, %s epochs, %s optimizer steps of %s samples (%s per device x %s accumulated x %s "
        "processes), "
        "%s trainable parameters.",
        f"{plan.num_examples:,}", f"{plan.num_epochs:,}", f"{plan.max_steps:,}", f"{plan.global_batch_size:,}",
        plan.micro_batch_size, plan.accumulation, plan.world_size,
        f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,}",
    )  # fmt: skip
    if checkpoint is not None:
        assert host.cursor is not None
        logger.info(
            "Resuming from %s: step %s, epoch %s, %s steps into it.",
            checkpoint, host.state.global_step, host.cursor.epoch, host.cursor.step,
        )  # fmt: skip


def _start_counters(host: TrainerBase) -> None:
    host._initial_num_input_tokens_seen = host.state.num_input_tokens_seen
    host._initial_global_step = host.state.global_step
    host.meters.start()


def call_model_init(model_init: Any, trial: Any) -> nn.Module:
    """Make a new model, handing `model_init` the trial if it takes one.

    Raises:
        UsageError: it takes more than one argument, or returns `None`.
    """
    parameters = inspect.signature(model_init).parameters.values()
    takes = len(parameters)
    if takes > 1:  # a function or class with settings of its own
        takes = sum(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
    if takes > 1:
        raise UsageError(
            f"model_init should have 0 or 1 argument, got one with {takes}. Use functools.partial for the rest."
        )
    model: nn.Module | None = model_init(trial) if takes else model_init()
    if model is None:
        raise UsageError("model_init should not return None. Return the model that it makes.")
    return model


def smoothed_loss(smoother: Any, model: nn.Module, scored: tuple[Any, Any], num_items: Any) -> torch.Tensor:
    """Label-smoothed loss of `(outputs, labels)`."""
    shift = model_setup.is_causal_language_model(model)
    loss: torch.Tensor = smoother(*scored, shift_labels=shift, num_items_in_batch=num_items)
    return loss


# -- the end ----------------------------------------------------------------------------------------------------------


def _finish(host: TrainerBase, run: Run) -> TrainOutput:
    """Compute the run's figures, load the best model, tidy up."""
    assert host._tr_loss is not None
    assert host.plan is not None
    state = host.state
    rest = host.accelerator.gather(host._tr_loss).mean().item()
    host._total_loss_scalar += rest
    host.meters.close_interval(engine.sums_over_processes(host.accelerator))
    host.meters.stop()
    judge(host, state.global_step)  # of an accelerator, what came behind the last log line
    train_loss = mean_loss(host, host._total_loss_scalar, max(state.global_step, 0.001), host.meters.left_out_steps)
    steps_now = state.global_step - host._initial_global_step
    metrics = speed_metrics(
        "train",
        run.start_time,
        num_samples=host.plan.num_train_samples * steps_now / max(state.max_steps, 1),
        num_steps=steps_now,
    )
    host.store_flos()
    settle_input_tokens(host)
    metrics["total_flos"] = state.total_flos
    metrics["train_loss"] = train_loss
    host._memory_tracker.stop_and_update_metrics(metrics, stage="train")
    host.log(metrics)
    # Behind the log line: what no two runs share stays out of the history, which a resumed run shares with a whole one.
    metrics |= _whole_run_figures(host) | memory.peak_figures("train") | speed_account(host, run.start_time)
    host._end_saves()
    if host.args.load_best_model_at_end and state.best_model_checkpoint is not None:
        host._load_best_model()
    host.control = host.callback_handler.on_train_end(host.args, state, host.control)
    host._finish_current_push()
    return TrainOutput(state.global_step, train_loss, metrics)


def _whole_run_figures(host: TrainerBase) -> dict[str, float]:
    """Tokens per second of the whole run, without evaluation and saving, where they can be counted."""
    rates = host.meters.figures()
    return {"train_tokens_per_second": rates["tokens_per_second"]} if "tokens_per_second" in rates else {}
