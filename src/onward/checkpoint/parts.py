"""Optimizer, scheduler, scaler and random-number states to files and back.

Nothing is unpickled without `weights_only`.
"""

from __future__ import annotations

import copy
import io
import logging
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

from onward.checkpoint import layout
from onward.checkpoint.sink import Create, create_plain
from onward.errors import BrokenCheckpoint

logger = logging.getLogger(__name__)


def write_torch(data: Any, path: Path, create: Create = create_plain) -> None:
    """`torch.save` through a file object: measured to hold the interpreter lock 5 to 20 times shorter than by path."""
    with create(path) as handle:
        torch.save(data, handle)  # type: ignore[arg-type]  # it only writes and flushes


def read_torch(path: Path, map_location: Any = "cpu") -> Any:
    """Read a file of tensors and plain values, refusing everything else.

    Raises:
        BrokenCheckpoint: the file cannot be read that way.
    """
    try:
        with torch.serialization.safe_globals([*_numpy_globals(), *_projectors()]):
            return torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise BrokenCheckpoint(f"{path.parent}: {path.name} cannot be loaded ({what})") from error


def training_args(args: Any) -> bytes:
    """Return the content of ``training_args.bin``: the arguments without tokens, since that file is pushed."""
    public = copy.copy(args)
    for name in vars(args):
        if name.endswith("_token"):
            setattr(public, name, None)
    buffer = io.BytesIO()
    torch.save(public, buffer)
    return buffer.getvalue()


def rng_states(distributed: bool) -> dict[str, Any]:
    """Return the states of all global generators, in transformers' layout (CUDA: of all devices when distributed)."""
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all() if distributed else torch.cuda.get_rng_state()
    return states


def restore_rng_states(states: dict[str, Any]) -> None:
    """Set the global generators to what `rng_states` returned (here or in transformers)."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(states["numpy"])
    torch.random.set_rng_state(states["cpu"])
    cuda = states.get("cuda")
    if cuda is None or not torch.cuda.is_available():
        return
    if isinstance(cuda, torch.Tensor):
        torch.cuda.set_rng_state(cuda)
    elif len(cuda) <= torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
    else:
        logger.warning(
            "The checkpoint has random-number states of %d CUDA devices, here are %d: they are not restored.",
            len(cuda), torch.cuda.device_count(),
        )  # fmt: skip


def load_rng_file(folder: Path, rank: int, world_size: int) -> dict[str, Any] | None:
    """Return a rank's random-number states, or None when the checkpoint was made by another number of processes."""
    path = folder / layout.rng_name(rank, world_size)
    if not path.is_file():
        logger.info("No %s in %s: the random numbers of this process do not go on exactly.", path.name, folder)
        return None
    states: dict[str, Any] = read_torch(path)
    return states


def load_optimizer(optimizer: Any, scheduler: Any, folder: Path, device: Any = "cpu") -> bool:
    """Restore optimizer and scheduler, where both files are there; return whether they were."""
    paths = folder / layout.OPTIMIZER, folder / layout.SCHEDULER
    if not all(path.is_file() for path in paths):
        logger.warning("%s has no optimizer or scheduler state (save_only_model?): both start anew.", folder)
        return False
    optimizer.load_state_dict(read_torch(paths[0], device))
    scheduler.load_state_dict(read_torch(paths[1]))
    _follow(optimizer, scheduler)
    return True


def _follow(optimizer: Any, scheduler: Any) -> None:
    """Take the next step at the rate that the schedule has for it: the loaded one is that of a run of another length.

    Where the length is the same, so is the rate, to the bit.
    """
    if not isinstance(scheduler, LambdaLR):
        return
    rates = [base * at(scheduler.last_epoch) for base, at in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, rate in zip(optimizer.param_groups, rates, strict=False):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    scheduler._last_lr = rates


def load_scaler(scaler: Any, folder: Path) -> None:
    """Restore the gradient scaler, where there is one and its file is there."""
    path = folder / layout.SCALER
    if scaler is not None and path.is_file():
        scaler.load_state_dict(read_torch(path))


def _numpy_globals() -> list[Any]:
    """Return what numpy's generator state, and a rate that was computed with numpy, are made of; all of it is data."""
    kinds = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"}
    multiarray = np._core.multiarray  # type: ignore[attr-defined]
    return [multiarray._reconstruct, multiarray.scalar, np.ndarray, np.dtype, *kinds]


_PROJECTORS = (
    ("galore_torch.galore_projector", "GaLoreProjector"),
    ("apollo_torch.svd_projector", "GaLoreProjector"),
    ("apollo_torch.random_projector", "GradientProjector"),
)


def _projectors() -> list[Any]:
    """Return the classes that GaLore and APOLLO keep in their state: numbers and a matrix each.

    Only where the package is imported already, by the optimizer that the state is for.
    """
    return [getattr(sys.modules[module], name) for module, name in _PROJECTORS if module in sys.modules]
