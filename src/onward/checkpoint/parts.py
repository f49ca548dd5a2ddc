"""Optimizer, scheduler, scaler and random-number states to files and back.

Nothing is unpickled without `weights_only`.
"""

from __future__ import annotations

import copy
import io
import logging
import pickle
import random
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

from onward.checkpoint import layout, pickled
from onward.checkpoint.sink import Create, create_plain
from onward.errors import BrokenCheckpoint, CheckpointMismatch, UnreadableState
from onward.sharding import parts_of_state

logger = logging.getLogger(__name__)


def write_torch(data: Any, path: Path, create: Create = create_plain) -> None:
    """`torch.save` through a file object: measured to hold the interpreter lock 5 to 20 times shorter than by path.

    Raises:
        UnreadableState: something in `data` could not be read again.
    """
    with create(path) as handle:
        pickled.write(data, handle, path.name)


def read_torch(path: Path, map_location: Any = "cpu") -> Any:
    """Read a file of tensors and plain values, refusing everything else.

    Raises:
        UnreadableState: it holds objects of a class that is not allowed; the message names it.
        BrokenCheckpoint: the file cannot be read at all.
    """
    try:
        return pickled.read(path, map_location)
    except FileNotFoundError:
        raise
    except pickle.UnpicklingError as error:
        if names := pickled.not_allowed(path):
            raise UnreadableState(
                f"{path.parent}: {path.name} holds {', '.join(names)}, and a checkpoint is read without running what "
                "is in it. Is that a class of yours, and do you trust the file? Import the class and allow it with "
                "torch.serialization.add_safe_globals before you resume."
            ) from error
        raise _broken(path, error) from error
    except Exception as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> BrokenCheckpoint:
    # torch wraps its reason into advice to read the file in the unsafe way.
    reason = str(error).partition("WeightsUnpickler error:")[2].strip().partition("\n")[0] or str(error)
    return BrokenCheckpoint(f"{path.parent}: {path.name} cannot be loaded ({type(error).__name__}: {reason})")


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
    """Restore optimizer and scheduler, where both files are there; return whether they were.

    Raises:
        CheckpointMismatch: the optimizer that was saved has other parameter groups.
    """
    paths = folder / layout.OPTIMIZER, folder / layout.SCHEDULER
    if not all(path.is_file() for path in paths):
        logger.warning("%s has no optimizer or scheduler state (save_only_model?): both start anew.", folder)
        return False
    state = read_torch(paths[0], device)
    _check_groups(optimizer, state, folder)
    _load_optimizer_state(optimizer, parts_of_state(optimizer, state))
    scheduler.load_state_dict(read_torch(paths[1]))
    _follow(optimizer, scheduler)
    return True


def _check_groups(optimizer: Any, state: Mapping[str, Any], folder: Path) -> None:
    """Compare the parameter groups: torch says that they differ, but not in what."""
    before, now = (
        [len(group["params"]) for group in groups] for groups in (state["param_groups"], optimizer.param_groups)
    )
    if before == now or not before:  # a layer-wise optimizer keeps its groups in its parts
        return
    raise CheckpointMismatch(
        f"{folder}: the optimizer was saved with {_told(before)}, and there are {_told(now)} now. If a callback adds "
        "groups or thaws weights during training, they must be there again before the state is loaded: override "
        "create_optimizer (or pass optimizers=) so that it makes the groups that the run had at this checkpoint. "
        "Without the optimizer's state go on with the weights alone: from_pretrained of that folder, and no "
        "resume_from_checkpoint."
    )


def _told(sizes: list[int]) -> str:
    groups = "1 parameter group" if len(sizes) == 1 else f"{len(sizes)} parameter groups"
    return f"{groups} (of {' + '.join(map(str, sizes))} tensors)"


def _load_optimizer_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Hand an optimizer its state, past what `torch.optim.Optimizer` does to all that can be iterated over.

    It moves the tensors in there by making the container anew from a generator: a string becomes the text
    ``<generator object …>``, arrays and named tuples fail, a `deque` forgets its length.
    """
    kept = [
        (values, name, value)
        for values in state.get("state", {}).values()
        if isinstance(values, dict)
        for name, value in values.items()
        if isinstance(value, Iterable) and not isinstance(value, torch.Tensor) and not _holds_tensor(value)
    ]
    for values, name, value in kept:
        values[name] = _Kept(value)
    optimizer.load_state_dict(state)
    if kept:
        for values in optimizer.state.values():
            values.update({name: each.value for name, each in values.items() if isinstance(each, _Kept)})


@dataclass(frozen=True)
class _Kept:
    """A value that is not looked into."""

    value: Any


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple | set | frozenset | deque):
        return isinstance(value, torch.Tensor)
    return any(map(_holds_tensor, value))


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
