"""Seeds, the device, and how samples reach the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from onward.arguments.documented import documented

START_METHODS = ["fork", "spawn", "forkserver"]
SAMPLING_STRATEGIES = ["random", "sequential", "group_by_length", "batch_rebalance", "length_aware"]


@documented
@dataclass(init=False, repr=False, eq=False)
class DataArguments:
    """Seeds, the device, accelerate's settings, and the loader."""

    full_determinism: bool = False
    """Use only deterministic algorithms: slower, for debugging."""
    seed: int = 42
    """Seed of every generator at the start of a run."""
    data_seed: int | None = None
    """Seed of the order of samples; ``seed`` when left out."""

    use_cpu: bool = False
    """Run on the CPU even where there is an accelerator."""

    accelerator_config: dict | str | None = None  # type: ignore[type-arg]
    """Settings for accelerate: an `AcceleratorConfig`, a dict, a JSON object or the path of a JSON file."""
    # accelerate's ParallelismConfig; importing it for an annotation would cost more than a second
    parallelism_config: Any | None = None
    """Not supported here: one that asks for more than one process is an error that names the alternative."""

    dataloader_drop_last: bool = False
    """Leave out the last batch of an epoch when it is short."""
    dataloader_num_workers: int = 0
    """Processes that load data; 0 loads in the training process."""
    dataloader_pin_memory: bool = True
    """Page-lock batches in host memory, so that copies to a GPU overlap with work."""
    dataloader_persistent_workers: bool = False
    """Keep the loading processes alive between epochs."""
    dataloader_prefetch_factor: int | None = None
    """Batches that each loading process prepares ahead; needs at least one worker."""
    dataloader_multiprocessing_context: str | None = field(default=None, metadata={"choices": START_METHODS})
    """How loading processes start: ``fork``, ``spawn`` or ``forkserver``; None takes the platform's way."""
    dataloader_in_order: bool = True
    """Take batches in their order, even if a later one is ready first."""

    remove_unused_columns: bool = True
    """Drop the columns that the model's forward has no parameter for."""
    label_names: list[str] | None = None
    """Keys of a batch that are labels; found in the model's forward when left out."""
    train_sampling_strategy: str = field(default="random", metadata={"choices": SAMPLING_STRATEGIES})
    """Order of training samples: ``random``, ``sequential``, ``group_by_length`` or ``length_aware``."""
    length_column_name: str = "length"
    """Column that holds each sample's length in tokens, for the strategies that go by length."""
