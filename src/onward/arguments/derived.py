"""What follows from the arguments: batch sizes, the place among the processes, steps and log levels."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch

from onward.arguments import devices
from onward.arguments.fields import ArgumentFields
from onward.arguments.reporting import LOG_LEVELS, passive_log_level
from onward.types import ParallelMode

if TYPE_CHECKING:
    from accelerate import PartialState

    from onward.arguments.training_arguments import TrainingArguments

logger = logging.getLogger("onward")

PLACE = ("_placement", "_n_gpu")
"""Attributes that describe this process rather than the run."""


class DerivedArguments(ArgumentFields):
    """Properties computed from the arguments. The first look at a device or a rank starts accelerate."""

    # DeepSpeed is not supported, and these names are how callers ask whether it is on.
    deepspeed_plugin: ClassVar[None] = None
    hf_deepspeed_config: ClassVar[None] = None

    fsdp_plugin_args: dict[str, Any] | None = None
    """Keywords of accelerate's FullyShardedDataParallelPlugin, where `fsdp` asks for it."""

    mixed_precision = "no"

    @property
    def train_batch_size(self) -> int:
        """Samples in one training micro-batch of this process."""
        return self.per_device_train_batch_size * max(1, self.n_gpu)

    @property
    def eval_batch_size(self) -> int:
        """Samples in one evaluation batch of this process."""
        return self.per_device_eval_batch_size * max(1, self.n_gpu)

    @property
    def ddp_timeout_delta(self) -> timedelta:
        """`ddp_timeout` as a time difference."""
        return timedelta(seconds=self.ddp_timeout)

    @property
    def _setup_devices(self) -> torch.device:
        if "_placement" not in self.__dict__:
            self._placement = devices.place(cast("TrainingArguments", self))
        return self._placement.device

    @property
    def device(self) -> torch.device:
        """Device of this process."""
        return self._setup_devices

    @property
    def distributed_state(self) -> PartialState:
        """accelerate's view of the processes."""
        _ = self._setup_devices
        return self._placement.state

    @property
    def n_gpu(self) -> int:
        """GPUs that this process uses: 0 on the CPU, else 1. More GPUs take more processes (torchrun)."""
        if "_n_gpu" not in self.__dict__:
            _ = self._setup_devices
            self._n_gpu = self._placement.n_gpu
        return self._n_gpu

    @property
    def parallel_mode(self) -> ParallelMode:
        """`DISTRIBUTED` with several processes, else `NOT_PARALLEL`."""
        many = self.distributed_state.distributed_type.value != "NO"
        return ParallelMode.DISTRIBUTED if many else ParallelMode.NOT_PARALLEL

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return int(self.distributed_state.num_processes)

    @property
    def process_index(self) -> int:
        """Rank of this process among all."""
        return int(self.distributed_state.process_index)

    @property
    def local_process_index(self) -> int:
        """Rank of this process on its machine."""
        return int(self.distributed_state.local_process_index)

    @property
    def should_log(self) -> bool:
        """Whether this process writes log lines."""
        return (self.local_process_index if self.log_on_each_node else self.process_index) == 0

    @property
    def should_save(self) -> bool:
        """Whether this process writes checkpoints."""
        return (self.local_process_index if self.save_on_each_node else self.process_index) == 0

    @property
    def place_model_on_device(self) -> bool | None:
        """Whether the trainer moves the model to the device; None lets it decide. Subclasses may override."""
        return None

    @property
    def _no_sync_in_gradient_accumulation(self) -> bool:
        return True

    def get_process_log_level(self) -> int:
        """Return the level of `logging` for this process."""
        level = LOG_LEVELS[self.log_level if self.should_log else self.log_level_replica]
        return passive_log_level() if level == LOG_LEVELS["passive"] else level

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Return the optimizer steps of the warm-up in a run of `num_training_steps`."""
        if self.warmup_steps >= 1:
            return int(self.warmup_steps)
        return math.ceil(num_training_steps * self.warmup_steps)

    @contextlib.contextmanager
    def main_process_first(self, local: bool = True, desc: str = "work") -> Iterator[None]:
        """Run the block on the main process first, and on the others when it is done there.

        Args:
            local: there is one main process on each machine; False for one in total, where machines share storage.
            desc: what the block does, for the debug log.
        """
        if self.world_size == 1:
            yield
            return
        is_main = (self.local_process_index if local else self.process_index) == 0
        try:
            if not is_main:
                logger.debug("rank %d waits for the main process: %s", self.process_index, desc)
                torch.distributed.barrier()
            yield
        finally:
            # Also after an error in the block, or the others would wait until the timeout.
            if is_main:
                logger.debug("main process is done: %s", desc)
                torch.distributed.barrier()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the place of this process: whoever loads the arguments is somewhere else."""
        return {name: value for name, value in self.__dict__.items() if name not in PLACE}

    def __copy__(self) -> Self:
        """Copy, and stay in place: finding it anew would reset the accelerate state of a run under way."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy everything but the place, for the same reason."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        for name, value in self.__dict__.items():
            twin.__dict__[name] = value if name in PLACE else copy.deepcopy(value, memo)
        return twin
