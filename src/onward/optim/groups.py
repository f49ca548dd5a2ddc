"""Which parameters weight decay pulls on, and the groups that an optimizer is given.

Biases and the gains of normalisation layers are left out: decay would pull a gain towards zero although its size says
nothing about how complex the model is.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn

from onward.sharding import is_part

_SPARED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def _walk(module: nn.Module, prefix: str, in_norm: bool) -> Iterator[tuple[str, bool]]:
    """Yield (name, lies in a LayerNorm) of each parameter, those of children before a module's own."""
    for name, child in module.named_children():
        yield from _walk(child, f"{prefix}{name}.", in_norm or isinstance(child, nn.LayerNorm))
    for name in module._parameters:
        yield prefix + name, in_norm


def decay_parameter_names(model: nn.Module) -> list[str]:
    """Return the names of the parameters that weight decay applies to.

    Left out are parameters inside an `nn.LayerNorm`, and those whose name, in lower case, holds ``bias``,
    ``layernorm``, ``rmsnorm``, or a part that is ``norm`` or ends in ``_norm``.
    """
    return [name for name, in_norm in _walk(model, "", False) if not in_norm and not _SPARED.search(name.lower())]


def parameter_groups(model: nn.Module, decay_names: Collection[str], weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters into one group that decays and one that does not.

    Both groups exist even when empty, because a saved optimizer state is matched by the number of groups. Parameters
    on different device meshes get groups of their own: no fused kernel can span meshes.
    """
    decays = set(decay_names)
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trainable if name in decays], "weight_decay": weight_decay},
        {"params": [p for name, p in trainable if name not in decays], "weight_decay": 0.0},
    ]
    return split_by_mesh(groups)


def mesh_of(tensor: Any) -> Any:
    """The device mesh of a distributed tensor, or None for a plain one."""
    return tensor.device_mesh if is_part(tensor) else None


def split_by_mesh(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Split each group by device mesh where there is more than one mesh in all."""
    if len({mesh_of(p) for group in groups for p in group["params"]}) <= 1:
        return groups
    split = []
    for group in groups:
        by_mesh: dict[Any, list[Any]] = {}
        for p in group["params"]:
            by_mesh.setdefault(mesh_of(p), []).append(p)
        split += [{**group, "params": params} for params in by_mesh.values()]
    return split
