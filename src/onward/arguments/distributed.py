"""How processes work together, what is watched, and flags for the surrounding script."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from onward.arguments.documented import documented
from onward.types import DebugOption

DDP_BACKENDS = ["nccl", "gloo", "mpi", "xccl", "hccl", "cncl", "mccl"]


@documented
@dataclass(init=False, repr=False, eq=False)
class DistributedArguments:
    """Data parallelism, diagnostics, and flags that onward itself does not read."""

    ddp_find_unused_parameters: bool | None = None
    """Let DistributedDataParallel look for parameters without gradient; None decides by the model."""
    ddp_bucket_cap_mb: int | None = None
    """Size in MiB of the buckets in which DistributedDataParallel sends gradients; None takes torch's default."""
    ddp_broadcast_buffers: bool | None = None
    """Let DistributedDataParallel send module buffers from the first process; None decides by the model."""
    ddp_static_graph: bool | None = None
    """Promise DistributedDataParallel that the graph never changes; None makes no promise."""
    ddp_backend: str | None = field(default=None, metadata={"choices": DDP_BACKENDS})
    """Library that processes talk through; None takes nccl on CUDA and gloo on the CPU."""
    ddp_timeout: int = 1800
    """Seconds that a collective operation may take before it fails."""

    fsdp: str | None = field(default=None, metadata={"nargs": "?", "const": True})
    """Share the weights out over processes (FSDP2): True, or words for it like ``full_shard`` or ``offload``."""
    fsdp_config: dict[str, Any] | str | None = None
    """How: a dict or a JSON file with ``auto_wrap_policy``, ``reshard_after_forward`` and others; see the docs."""
    deepspeed: dict | str | None = None  # type: ignore[type-arg]
    """Not supported here: anything but None is an error that names the alternative."""

    debug: str | list[DebugOption] = ""
    """Diagnostics to switch on, separated by spaces, of `DebugOption`."""
    skip_memory_metrics: bool = True
    """Leave the detailed memory report of each stage out of the metrics."""

    do_train: bool = False
    """For your script: whether it should train."""
    do_eval: bool = False
    """For your script: whether it should evaluate; set when ``eval_strategy`` is not ``no``."""
    do_predict: bool = False
    """For your script: whether it should predict."""
    resume_from_checkpoint: str | None = None
    """For your script: the checkpoint to hand to ``Trainer.train``."""
    local_rank: int = -1
    """Kept for launchers that pass it; the rank comes from the environment."""
