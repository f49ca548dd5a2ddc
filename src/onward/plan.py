"""How long a run is: every count that the loop needs, computed once before it starts."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from onward.errors import UsageError


@dataclass(frozen=True)
class RunPlan:
    """The counts of a run. Nothing in it changes while the run lasts, except by a new plan.

    A *step* is one optimizer step. It consumes `accumulation` micro-batches on each of `world_size` processes.
    """

    micro_batch_size: int
    """Samples per micro-batch and process."""
    accumulation: int
    """Micro-batches per step and process."""
    world_size: int
    """Data-parallel processes."""
    batches_per_epoch: int
    """Micro-batches per epoch and process; for data without a length, those of the whole run."""
    steps_per_epoch: int
    """Optimizer steps per epoch; for data without a length, those of the whole run."""
    max_steps: int
    """Optimizer steps of the whole run."""
    num_epochs: int
    """Epochs that the run enters, the last one perhaps only in part; `sys.maxsize` for data without a length."""
    num_examples: int
    """Samples in one epoch."""
    num_train_samples: float
    """Samples that the whole run sees."""
    has_length: bool
    """Whether the end of an epoch is known beforehand."""

    @property
    def global_batch_size(self) -> int:
        """Samples per step, over all processes."""
        return self.micro_batch_size * self.accumulation * self.world_size

    def batches_in_step(self, step: int) -> int:
        """Micro-batches of the given step of an epoch (counted from 0); the last one may have fewer."""
        if not self.has_length or step != self.steps_per_epoch - 1:
            return self.accumulation
        return self.batches_per_epoch % self.accumulation or self.accumulation


@dataclass(frozen=True)
class RunLength:
    """What the user asked for."""

    max_steps: int
    num_train_epochs: float


def make_plan(
    wanted: RunLength,
    *,
    micro_batch_size: int,
    accumulation: int,
    world_size: int,
    batches_per_epoch: int | None,
    num_examples: int | None,
) -> RunPlan:
    """Compute the counts of a run.

    Args:
        wanted: `max_steps` wins over `num_train_epochs` when it is positive.
        micro_batch_size: samples per micro-batch and process.
        accumulation: micro-batches per optimizer step.
        world_size: data-parallel processes.
        batches_per_epoch: length of the loader in micro-batches; `None` if it has none.
        num_examples: samples in the data set; `None` if unknown.

    Raises:
        UsageError: the data has no length and `max_steps` is not set.
    """
    global_batch = micro_batch_size * accumulation * world_size
    sizes = {"micro_batch_size": micro_batch_size, "accumulation": accumulation, "world_size": world_size}
    if not batches_per_epoch:
        if wanted.max_steps <= 0:
            raise UsageError(
                f"The training data has no length (or is empty) and max_steps is {wanted.max_steps}, so the end of "
                "training "
                "is unknown. Set max_steps to the number of optimizer steps to train for."
            )
        steps = wanted.max_steps
        return RunPlan(
            **sizes,
            batches_per_epoch=steps * accumulation,
            steps_per_epoch=steps,
            max_steps=steps,
            num_epochs=sys.maxsize,
            num_examples=global_batch * steps,
            num_train_samples=global_batch * steps,
            has_length=False,
        )

    steps_per_epoch = math.ceil(batches_per_epoch / accumulation)
    examples = num_examples if num_examples is not None else batches_per_epoch * micro_batch_size * world_size
    if wanted.max_steps > 0:
        max_steps = wanted.max_steps
        num_epochs = math.ceil(max_steps / steps_per_epoch)
        samples: float = max_steps * global_batch
    else:
        max_steps = math.ceil(wanted.num_train_epochs * steps_per_epoch)
        num_epochs = math.ceil(wanted.num_train_epochs)
        samples = examples * wanted.num_train_epochs
    return RunPlan(
        **sizes,
        batches_per_epoch=batches_per_epoch,
        steps_per_epoch=steps_per_epoch,
        max_steps=max_steps,
        num_epochs=num_epochs,
        num_examples=examples,
        num_train_samples=samples,
        has_length=True,
    )
