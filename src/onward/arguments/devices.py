"""Where a process runs: its device and its place among the processes, found on first use.

This is the only module of the arguments that touches accelerate, and it does so when somebody asks for a device, a rank
or the world size: arguments can be built, printed and compared without starting anything.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from onward.arguments.checks import has_accelerator, tf32_available
from onward.errors import UsageError

if TYPE_CHECKING:
    from accelerate import PartialState

    from onward.arguments.training_arguments import TrainingArguments


class Placement(NamedTuple):
    """Where this process runs."""

    device: torch.device
    n_gpu: int
    """GPUs that this process uses: 0 or 1."""
    state: PartialState
    """accelerate's view of the processes: ranks, world size, barriers."""


def place(args: TrainingArguments) -> Placement:
    """Start or find the process group, and return where this process runs in it."""
    state = _configured_state(args) if args.accelerator_config.use_configured_state else _fresh_state(args)  # type: ignore[union-attr]
    device = state.device
    if device.type not in ("cpu", "mps") and device.index is None:
        # A tensor's device always has an index, and "cuda" != "cuda:0" in comparisons.
        device = torch.device(device.type, 0)
        torch.accelerator.set_device_index(0)
    return Placement(device, 0 if device.type == "cpu" else 1, state)


def launched_as_many() -> bool:
    """Return whether a launcher (torchrun, accelerate launch, MPI) started this process as one of several."""
    counts = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    return int(os.environ.get("LOCAL_RANK", -1)) != -1 or any(int(os.environ.get(name, 1)) > 1 for name in counts)


def _configured_state(args: TrainingArguments) -> PartialState:
    """Return the state that the script has set up itself."""
    from accelerate import PartialState

    if not PartialState._shared_state:
        raise UsageError(
            "accelerator_config got use_configured_state=True, but there is no state yet; "
            "create an accelerate.Accelerator or PartialState before the arguments, or leave it out."
        )
    return PartialState(cpu=args.use_cpu)


def _fresh_state(args: TrainingArguments) -> PartialState:
    """Set up accelerate's state for these arguments."""
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    # The state is shared by the whole process. What arguments before left in it (a precision, a device) would
    # contradict these and make the next Accelerator raise.
    AcceleratorState._reset_state(reset_partial_state=True)
    settings: dict[str, Any] = {}
    if launched_as_many():
        # In a single process, accelerate takes a backend for a sign that a process group exists, and fails.
        settings = {"backend": args.ddp_backend, "timeout": timedelta(seconds=args.ddp_timeout)}
    with environment_kept("ACCELERATE_USE_FSDP", "FSDP_OFFLOAD_PARAMS"):
        if (args.fsdp_plugin_args or {}).get("cpu_offload", False):
            # Then accelerate opens a way for tensors on the CPU beside that for the accelerators.
            os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_OFFLOAD_PARAMS="true")
        # Without an accelerator, processes must be told to meet on the CPU: each would train alone otherwise.
        return PartialState(cpu=not has_accelerator(args), **settings)


@contextlib.contextmanager
def environment_kept(*names: str) -> Iterator[None]:
    """Put these variables of the environment back behind the block, whatever it sets them to."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def apply_tf32(args: TrainingArguments) -> None:
    """Set torch's precision of float32 matrix products, where the arguments ask for one."""
    wanted = args.tf32
    if wanted is None and args.torch_compile and not args.fp16 and tf32_available():
        # Compiled float32 kernels gain little over eager ones without it.
        wanted = True
    if wanted is not None and tf32_available():
        torch.backends.fp32_precision = "tf32" if wanted else "ieee"  # type: ignore[attr-defined]
