"""The part of the engine that shards models with accelerate (FSDP2): its settings, its state, the model itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from onward import sharding
from onward.arguments.checks import flag_in_environment
from onward.arguments.sharding import check_combinations
from onward.errors import NotSupported, UsageError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn


def sharding_plugin(args: Any) -> Any:
    """accelerate's settings of sharding, from the arguments or from its launcher; None where nobody asks for it.

    Raises:
        NotSupported: FSDP1, or together with what does not go with it.
        UsageError: there is only one process.
    """
    given = getattr(args, "fsdp_plugin_args", None)
    launched = flag_in_environment("ACCELERATE_USE_FSDP")
    if given is None and not (launched and args.world_size > 1):
        return None
    version = os.environ.get("FSDP_VERSION", "1") if given is None else given.get("fsdp_version")
    if str(version) != "2":
        raise NotSupported(
            "onward shards with FSDP2, the arguments or the launcher ask for FSDP1. Set fsdp_config={'version': 2}, or "
            "start with accelerate launch --fsdp_version 2."
        )
    if args.world_size == 1:
        raise UsageError(
            "fsdp shares a model out over processes, but there is only one. Start several (torchrun --nproc-per-node "
            "or accelerate launch), or leave fsdp out."
        )
    if args.device.type == "cpu" and torch.accelerator.is_available():
        raise NotSupported(
            "fsdp on the CPU of a machine with an accelerator: torch would share out on the accelerator. Hide it "
            "(CUDA_VISIBLE_DEVICES=''), or leave use_cpu out."
        )
    check_combinations(args)
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

    plugin = FullyShardedDataParallelPlugin(**(given or {}))
    if args.device.type == "cpu" and isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise NotSupported("fsdp_config's cpu_offload moves weights to host memory, where they are: leave it out.")
    if plugin.activation_checkpointing:
        # accelerate's own would draw other dropout masks when it recomputes, and change the names of the weights.
        plugin.activation_checkpointing = False
        args.activation_checkpointing = True
        if plugin.activation_checkpointing_offload:
            args.activation_checkpointing_kwargs = {**(args.activation_checkpointing_kwargs or {}), "offload": True}
    if args.mixed_precision != "no":
        # accelerate's own policy would exchange gradients and return the loss in 16 bits, too: unlike without shards.
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.float16 if args.mixed_precision == "fp16" else torch.bfloat16,
            reduce_dtype=torch.float32,
            output_dtype=torch.float32,
        )
    return plugin


def settle_sharding(accelerator: Accelerator, plugin: Any) -> None:
    """Make accelerate's state, which all trainers of a process share, say how this one shards.

    accelerate does so itself for the first trainer of a process, and on accelerators only.
    """
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    state = accelerator.state
    if plugin is not None:
        kind = DistributedType.FSDP
    elif state.distributed_type == DistributedType.FSDP:  # of another trainer
        kind = DistributedType["MULTI_" + {"cuda": "GPU"}.get(state.device.type, state.device.type.upper())]
    else:
        return
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    for shared in (AcceleratorState._shared_state, PartialState._shared_state):
        shared["distributed_type"] = kind


def is_sharding(accelerator: Accelerator) -> bool:
    """Whether models are to be sharded."""
    return getattr(accelerator.state, "fsdp_plugin", None) is not None


def shard(accelerator: Accelerator, model: nn.Module, optimizer: Any) -> None:
    """Share a model out over the processes, in place, unless that was done. All processes must call it.

    Args:
        accelerator: the trainer's.
        model: not wrapped.
        optimizer: one that was made for the whole weights, which shall update the parts, or None.
    """
    if sharding.is_sharded(model):
        sharding.reshard(model)  # behind an evaluation, or an optimizer would be made for what is still whole
    else:
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model
        from torch.distributed.fsdp import register_fsdp_forward_method

        plugin = accelerator.state.fsdp_plugin
        plugin.cpu_ram_efficient_loading = plugin.cpu_ram_efficient_loading and sharding.loads_on_first_only(model)
        if not plugin.cpu_ram_efficient_loading:
            sharding.from_first(model, accelerator.device)
        names = {} if optimizer is None else {parameter: name for name, parameter in model.named_parameters()}
        fsdp2_prepare_model(accelerator, model)
        if optimizer is not None:
            sharding.follow(optimizer, names, model)
        sharding.accept_whole(model)
        sharding.share_buffers(model)
        if hasattr(model, "generate"):
            register_fsdp_forward_method(model, "generate")
    if model not in accelerator._models:
        accelerator._models.append(model)


def prepare(accelerator: Accelerator, model: nn.Module, optimizer: Any) -> tuple[nn.Module, Any]:
    """Wrap model and optimizer for training; a sharded model is its own wrapper."""
    if not sharding.is_sharded(model):
        wrapped: tuple[nn.Module, Any] = accelerator.prepare(model, optimizer)
        return wrapped
    prepared = accelerator.prepare_optimizer(optimizer)
    prepared._is_accelerate_prepared = True
    return model, prepared
