"""Models whose weights lie in parts on several processes (torch's ``fully_shard``, FSDP2), and their whole weights.

A sharded weight is a `DTensor`, of which each process holds a part. Checkpoints hold whole tensors, so that any number
of processes, sharded or not, goes on from them: what is saved is put together here, tensor by tensor, and what is
loaded is taken apart. Both copy bits.

Importing DTensor takes longer than all of onward. Nobody who trains without sharding waits for it: a tensor cannot be
one if nobody has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from onward.errors import NotSupported

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
"""Those whose state has the shape of the weights, and is shared out like them."""


def check_optimizer(name: Any) -> None:
    """Raise `NotSupported` for a name of `optim` whose optimizer cannot be shared out, or not be saved then."""
    name = str(getattr(name, "value", name))
    if name not in OPTIMIZERS:
        raise NotSupported(
            f"optim={name!r} does not work for a model that is sharded (fsdp); expected one of {', '.join(OPTIMIZERS)}."
        )


def is_part(tensor: Any) -> bool:
    """Whether a tensor lies in parts on several processes."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor: all of a plain one."""
    return tensor.to_local() if is_part(tensor) else tensor  # type: ignore[attr-defined]


def is_sharded(model: nn.Module) -> bool:
    """Whether ``fully_shard`` was applied to the model."""
    module = sys.modules.get("torch.distributed.fsdp")
    return module is not None and isinstance(model, module.FSDPModule)


def class_of(model: nn.Module) -> type[nn.Module]:
    """The class that the model was made of. Sharding puts one in its place that is named after it."""
    return type(model).__bases__[1] if is_sharded(model) else type(model)


# -- parts and wholes -------------------------------------------------------------------------------------------------


def whole_weights(
    model: nn.Module, keep: bool, choose: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """A copy of the model's state dict with whole weights, in host memory. All processes must call it.

    Args:
        model: sharded, or not yet.
        keep: whether this process wants them; the others only hand in their parts, and get an empty dictionary.
        choose: returns the entries of the state dict that are wanted.
    """
    # Tied weights are one parameter under two names, which shall share memory in the result, too.
    state = model.state_dict(keep_vars=True)
    return _put_together(state if choose is None else choose(state), keep)


def whole_state(optimizer: Any, keep: bool) -> dict[str, Any]:
    """A copy of the optimizer's state dict with whole tensors: like `whole_weights`.

    Raises:
        NotSupported: it keeps something that has another shape than the weights, and could not be loaded again.
    """
    state = optimizer.state_dict()
    shapes = {number: p.shape for number, p in _numbered(optimizer, state).items()}
    whole = {}
    for number, values in state["state"].items():
        for name, value in values.items():
            _check_shape(optimizer, name, value, shapes[number])
        whole[number] = _put_together(values, keep)
    return {**state, "state": whole} if keep else {}


def parts_of_state(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
    """A saved state dict as `optimizer` can load it: where its weights lie in parts, so does their state."""
    weights = _numbered(optimizer, state)
    if not any(map(is_part, weights.values())):
        return state
    parts = {}
    for number, values in state["state"].items():
        weight = weights.get(number)
        if weight is not None:
            for name, value in values.items():
                _check_shape(optimizer, name, value, weight.shape)
        parts[number] = {name: part_like(weight, value) for name, value in values.items()}
    return {**state, "state": parts}


def part_like(weight: Any, value: Any) -> Any:
    """This process's part of `value`, a whole tensor that belongs to `weight`; as it is where there are no parts."""
    is_whole = isinstance(value, torch.Tensor) and not is_part(value)
    if not (is_whole and is_part(weight) and value.shape == weight.shape):
        return value
    from torch.distributed.tensor import distribute_tensor

    # Every process has the whole and cuts its own part from it (no source rank): nothing is sent.
    return distribute_tensor(value.detach(), weight.device_mesh, weight.placements, src_data_rank=None)


def _put_together(state: Mapping[str, Any], keep: bool) -> dict[str, Any]:
    seen: dict[int, Any] = {}
    for value in state.values():
        if id(value) not in seen:
            seen[id(value)] = _whole(value, keep)
    return {name: seen[id(value)] for name, value in state.items()} if keep else {}


def _whole(value: Any, keep: bool) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach()
    if is_part(value):
        value = value.full_tensor()  # the processes exchange parts
    return value.to("cpu", copy=True) if keep else None


def _numbered(optimizer: Any, state: Mapping[str, Any]) -> dict[int, Any]:
    """The optimizer's weights by the numbers that they have in a state dict."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    return dict(zip(numbers, weights, strict=False))  # loading says what does not match


def _check_shape(optimizer: Any, name: str, value: Any, shape: torch.Size) -> None:
    if isinstance(value, torch.Tensor) and value.numel() > 1 and value.shape != shape:
        raise NotSupported(
            f"{type(optimizer).__name__} keeps a state '{name}' of shape {tuple(value.shape)} for a weight of shape "
            f"{tuple(shape)}; a sharded model can only be resumed where each state has the shape of its weight. Use "
            f"one of optim={', '.join(OPTIMIZERS)}, or save_only_model=True."
        )


# -- a model that was just sharded ------------------------------------------------------------------------------------


def loads_on_first_only(model: nn.Module) -> bool:
    """Whether accelerate can hand the weights out from the first process while it shards.

    It can for transformers' models, which know how to tie weights again, and cannot for buffers that are saved.
    """
    return hasattr(model, "tie_weights") and not _saves_buffers(model)


def _saves_buffers(model: nn.Module) -> bool:
    return any(not isinstance(value, nn.Parameter) for value in model.state_dict(keep_vars=True).values())


def from_first(model: nn.Module, device: torch.device) -> None:
    """Take weights and buffers of the first process, as DistributedDataParallel does. All processes must call it.

    Each process will keep a part of what it has: of models that were made from different seeds, the parts would not
    belong together.
    """
    import torch.distributed as dist

    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            there = tensor.detach().to(device).contiguous()
            dist.broadcast(there, src=0)
            if there.data_ptr() != tensor.data_ptr():
                tensor.copy_(there)


def accept_whole(model: nn.Module) -> None:
    """Let ``model.load_state_dict``, called by whomever on all processes, take whole tensors as well as parts."""
    model.register_load_state_dict_pre_hook(_take_apart)  # type: ignore[no-untyped-call]


def _take_apart(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    reshard(model)
    for name, weight in model.state_dict(keep_vars=True).items():
        if prefix + name in state:
            state[prefix + name] = part_like(weight, state[prefix + name])


def reshard(model: nn.Module) -> None:
    """Give up what is still whole of a sharded model: behind a forward without backward that is its outermost part."""
    if is_sharded(model):
        from torch.distributed.fsdp import FSDPModule

        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def share_buffers(model: nn.Module) -> None:
    """Before each forward in training take the saved buffers (running statistics) of the first process, like DDP.

    A checkpoint holds those of the first process, and a run that goes on from it shall be the one that it was.
    """
    if _saves_buffers(model):
        model.register_forward_pre_hook(_buffers_from_first)


def _buffers_from_first(model: nn.Module, _: Any) -> None:
    if not (model.training and torch.is_grad_enabled()):
        return
    import torch.distributed as dist

    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                dist.broadcast(buffer.detach(), src=0)


def follow(optimizer: Any, names: Mapping[nn.Parameter, str], model: nn.Module) -> None:
    """Let an optimizer that was made before the model was sharded update its parts.

    Args:
        optimizer: as it was handed in.
        names: of the parameters that the model had.
        model: sharded now.
    """
    now = dict(model.named_parameters())
    moved = {old: now[name] for old, name in names.items()}
    for group in optimizer.param_groups:
        group["params"] = [moved.get(p, p) for p in group["params"]]
    for old in list(optimizer.state):
        if old in moved:
            values = optimizer.state.pop(old)
            optimizer.state[moved[old]] = {name: part_like(moved[old], value) for name, value in values.items()}
