"""The hooks around checkpoints, under transformers' names."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from onward import model_setup, sharding
from onward.arguments import option
from onward.checkpoint import layout, parts, weights
from onward.checkpoint.snapshot import to_host
from onward.hooks.base import TrainerBase
from onward.loop import beside, resuming, saving


class CheckpointHooks(TrainerBase):
    """Verbs of saving and resuming: `save_model`, `_save_checkpoint`, the `_save_*` and `_load_*` hooks."""

    _desk_or_none: beside.SaveDesk | None = None

    # --- saving

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint of the current step, rotate old ones; asynchronously where nobody can tell."""
        saving.save_checkpoint(self, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model (and tokenizer, and arguments) to `output_dir`, so that `from_pretrained` can read it.

        All processes must call it for a model that is sharded: each hands in its part.
        """
        folder = self.args.output_dir if output_dir is None else output_dir
        if self.is_fsdp_enabled:
            model = self._model_to_save()
            choose = partial(weights.saved_entries, model)
            self._save(folder, state_dict=sharding.whole_weights(model, self.args.should_save, choose))
        else:
            self._save(folder)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write weights, configuration, tokenizer and arguments; does nothing on ranks that do not save."""
        if not self.args.should_save:
            return
        folder = Path(str(self.args.output_dir) if output_dir is None else output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        weights.save_weights(self._model_to_save(), folder, state_dict, option(self.args, "max_shard_size"))
        if (tokenizer := beside.tokenizer_of(self)) is not None:
            tokenizer.save_pretrained(os.fspath(folder))
        (folder / layout.TRAINING_ARGS).write_bytes(parts.training_args(self.args))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Write ``optimizer.pt`` and ``scheduler.pt``."""
        saves = self.args.should_save
        if not (saves or self.is_fsdp_enabled):
            return
        state = sharding.whole_state(self.optimizer, saves) if self.is_fsdp_enabled else self.optimizer.state_dict()
        if not saves:
            return
        parts.write_torch(to_host(state), Path(output_dir, layout.OPTIMIZER))
        parts.write_torch(self.lr_scheduler.state_dict(), Path(output_dir, layout.SCHEDULER))

    def _save_scaler(self, output_dir: str) -> None:
        """Write ``scaler.pt`` where fp16 has a gradient scaler."""
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None and self.args.should_save:
            parts.write_torch(scaler.state_dict(), Path(output_dir, layout.SCALER))

    def _save_rng_state(self, output_dir: str) -> None:
        """Write this rank's random-number states."""
        os.makedirs(output_dir, exist_ok=True)
        name = layout.rng_name(self.args.process_index, self.args.world_size)
        parts.write_torch(parts.rng_states(self.args.world_size > 1), Path(output_dir, name))

    def _tune_save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write model, state, optimizer and schedule below `checkpoint_dir`, for who hands checkpoints to Ray Tune."""
        folder = os.path.join(checkpoint_dir, f"checkpoint-{self.state.global_step}")
        self.save_model(folder, _internal_call=True)
        if self.args.should_save:
            self.state.stateful_callbacks["TrainerControl"] = self.control.state()
            self.state.save_to_json(os.path.join(folder, "trainer_state.json"))
        self._save_optimizer_and_scheduler(folder)

    def _get_output_dir(self, trial: Any) -> str:
        """Return the folder of the run: `output_dir`, or a trial's own folder in it."""
        backend = getattr(self.hp_search_backend, "value", self.hp_search_backend)
        if backend is None or trial is None:
            return str(self.args.output_dir)
        name = self.hp_name(trial) if self.hp_name is not None else f"run-{_trial_id(backend, trial)}"
        return os.path.join(str(self.args.output_dir), name)

    # --- saves in flight

    def _begin_saves(self, checkpoint: Path | None) -> None:
        """Begin a run's saving, as a continuation of `checkpoint` or afresh; sweeps what crashed saves left."""
        resuming.open_run(self, checkpoint, self._get_output_dir(self._trial))

    def _committed_saves(self) -> list[Path]:
        """Return the checkpoints committed since the last call (waits for nothing; hands them to the Hub)."""
        return saving.committed_saves(self)

    def _push_committed_saves(self) -> None:
        """Hand checkpoints that were committed since the last call to the Hub (waits for nothing)."""
        saving.hand_over_committed(self)

    def _save_just_failed(self) -> bool:
        """True once after a `_save_checkpoint` that wrote nothing: then there is no `on_save`."""
        failed, self._desk().just_failed = self._desk().just_failed, False
        return failed

    def _save_failed(self) -> bool:
        """Whether the last save that is settled (see `_flush_saves`) failed; the same on all ranks."""
        return self._desk().failures_in_a_row > 0

    def _flush_saves(self, collective: bool = True) -> None:
        """Return once no save is in flight; raises `SaveFailed` for one failure too many.

        `collective=False` only waits: for a rank that leaves alone, on an exception.
        """
        if collective:
            saving.settle_saves(self)
        self._desk().writer.wait()

    def _free_saves(self) -> None:
        """Wait for the save in flight and give back the host memory that it holds: on a rank that ran out of it."""
        self._flush_saves(collective=False)
        self._desk().writer.buffers.release()

    def _end_saves(self) -> None:
        """Flush, rotate, then give back the host memory that saves used: the end of training."""
        self._flush_saves()
        saving.rotate_at_the_end(self)
        self._desk().writer.buffers.release()

    if TYPE_CHECKING:

        def _extra_record(self) -> dict[str, Any]:
            """Return what else this rank needs in ``onward_state.json``; JSON-able."""

    # --- resuming

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the weights of a checkpoint into `model`, or into the trainer's own."""
        resuming.load_model(self, resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """Load the weights of the best checkpoint."""
        resuming.load_best_model(self)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load optimizer and scheduler states, where the checkpoint has them."""
        if checkpoint is None:
            return
        # Of a sharded model the whole state may not fit on the device.
        several = self.args.world_size > 1 and self.args.device.type != "cpu" and not self.is_fsdp_enabled
        device = self.args.device if several else "cpu"
        parts.load_optimizer(self.optimizer, self.lr_scheduler, Path(checkpoint), device)

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Load the gradient scaler's state, where the checkpoint has one."""
        if checkpoint is not None:
            parts.load_scaler(getattr(self.accelerator, "scaler", None), Path(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Set the random-number generators as they stood at the checkpoint."""
        if checkpoint is not None:
            resuming.load_rng(checkpoint, self.args.process_index, self.args.world_size)

    def _load_callback_state(self) -> None:
        """Restore the states of callbacks from `state.stateful_callbacks`."""
        resuming.restore_callbacks(self)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Say which names were missing or unexpected when weights were loaded."""
        resuming.warn_of_names(self.model, load_result)

    # --- shared by the above

    def _desk(self) -> beside.SaveDesk:
        if self._desk_or_none is None:
            self._desk_or_none = beside.SaveDesk()
        return self._desk_or_none

    def _model_to_save(self) -> nn.Module:
        """Return the model without what was wrapped around it for training."""
        model_setup.check_present(self.model)
        return self._unwrapped(self.model)

    def _unwrapped(self, model: nn.Module) -> nn.Module:
        unwrapped: nn.Module = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        return unwrapped


def _trial_id(backend: str, trial: Any) -> Any:
    """Return the id of a trial by the search backend that made it."""
    if backend == "optuna":
        return trial.number
    if backend == "ray":
        import ray.tune

        return ray.tune.get_context().get_trial_id()
    import wandb

    assert wandb.run is not None
    return wandb.run.id
