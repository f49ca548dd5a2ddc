"""GaLore and APOLLO: gradients of chosen linear layers are projected to a low rank before the moments are kept.

Layer-wise variants update each weight as soon as its gradient is complete and free it at once, so that no two
gradients are alive together. `LayerwiseOptimizer` makes the many small optimizers look like one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from onward.errors import NotSupported, UsageError
from onward.optim.request import Request, require

log = logging.getLogger(__name__)

Built = tuple[Any, dict[str, Any]]


def galore(request: Request) -> Built:
    """Gradient low-rank projection. Source: Zhao et al. 2024, arXiv 2403.03507."""
    source = "git+https://github.com/jiaweizzhao/GaLore"
    package = require("galore_torch", source, f"optim={request.name!r}")
    get = request.options.get
    projection = {
        "rank": get("rank", int, 128),
        "update_proj_gap": get("update_proj_gap", int, 200),
        "scale": get("scale", float, 0.25),
        "proj_type": get("proj_type", str, "std"),
    }
    kind = request.name.removeprefix("galore_").removesuffix("_layerwise")
    classes = {"adamw": "GaLoreAdamW", "adamw_8bit": "GaLoreAdamW8bit", "adafactor": "GaLoreAdafactor"}
    kwargs = dict(request.lr)
    if kind == "adafactor":
        kwargs |= {"scale_parameter": False, "relative_step": False}
    return _projected(request, getattr(package, classes[kind]), kwargs, projection)


def apollo(request: Request) -> Built:
    """Gradient scaling in a random low-rank space. Source: Zhu et al. 2024, arXiv 2412.05270."""
    source = "git+https://github.com/zhuhanqing/APOLLO"
    package = require("apollo_torch", source, f"optim={request.name!r}")
    get = request.options.get
    projection = {
        "rank": get("rank", int, 128),
        "proj": get("proj", str, "random"),
        "scale_type": get("scale_type", str, "channel"),
        "update_proj_gap": get("update_proj_gap", int, 200),
        "scale": get("scale", float, 1.0),
        "proj_type": get("proj_type", str, "std"),
        "betas": request.betas,
        "eps": request.args.adam_epsilon,
    }
    return _projected(request, package.APOLLOAdamW, dict(request.lr), projection)


def _projected(request: Request, cls: Any, kwargs: dict[str, Any], projection: dict[str, Any]) -> Built:
    """Split the parameters into plain and projected ones, and for layer-wise variants into one optimizer each."""
    model = request.needs_model()
    targets = set(target_weights(model, request.args.optim_target_modules, request.name))
    plain = [p for name, p in model.named_parameters() if name not in targets]
    projected = [p for name, p in model.named_parameters() if name in targets]
    if not request.name.endswith("layerwise"):
        groups = [{"params": plain}, {"params": projected, **projection}]
        return cls, {**kwargs, "params": groups}
    _check_layerwise(request)
    parts = {p: cls([{"params": [p]}], **kwargs) for p in plain}
    parts |= {p: cls([{"params": [p], **projection}], **kwargs) for p in projected}
    return LayerwiseOptimizer, {**kwargs, "optimizer_dict": parts}


def _check_layerwise(request: Request) -> None:
    if str(getattr(request.args.parallel_mode, "value", "")) == "distributed":
        raise NotSupported(f"optim={request.name!r} updates inside the backward pass, before processes have averaged")
    if request.args.gradient_accumulation_steps != 1:
        raise UsageError(
            f"optim={request.name!r} updates inside the backward pass: got gradient_accumulation_steps="
            f"{request.args.gradient_accumulation_steps}, expected 1"
        )


def target_weights(model: nn.Module, wanted: list[str] | str | None, optimizer: str) -> list[str]:
    """Return the names of the linear weights that ``optim_target_modules`` selects.

    ``wanted`` is ``"all-linear"``, one regular expression for whole module names, or a list whose entries are names,
    parts of names, or regular expressions.
    """
    if wanted is None:
        raise UsageError(f"optim={optimizer!r} needs optim_target_modules: got none, expected for example 'all-linear'")
    if not isinstance(wanted, list | tuple | str):
        raise UsageError(f"optim_target_modules: got {wanted!r}, expected a list of names, a pattern or 'all-linear'")
    everything = isinstance(wanted, str) and wanted.replace("_", "-") == "all-linear"
    chosen = []
    for name, module in model.named_modules():
        if not everything and not selects(wanted, name):
            continue
        if isinstance(module, nn.Linear):
            chosen.append(f"{name}.weight")
        elif not everything and name in ([wanted] if isinstance(wanted, str) else wanted):
            log.warning("optim_target_modules: %s is no linear layer, %s leaves it as it is", name, optimizer)
    if not chosen:
        raise UsageError(f"optim_target_modules: got {wanted!r}, which matches no linear layer of the model")
    return chosen


def selects(wanted: list[str] | tuple[str, ...] | str, name: str) -> bool:
    """Whether ``wanted`` selects the module called ``name``."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(entry in name or re.fullmatch(entry, name) is not None for entry in wanted)


class LayerwiseOptimizer(torch.optim.Optimizer):
    """Many one-weight optimizers behind one face. `step` does nothing: each weight was updated in the backward pass.

    ``param_groups`` are the very groups of the parts, so any ordinary schedule drives them all.
    """

    def __init__(self, optimizer_dict: dict[nn.Parameter, torch.optim.Optimizer], **defaults: Any) -> None:
        super().__init__([{"params": list(optimizer_dict)}], defaults)
        self.parts = optimizer_dict
        self._share_groups()
        for parameter in optimizer_dict:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._update)  # type: ignore[no-untyped-call]

    def _share_groups(self) -> None:
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]

    def _update(self, parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            part = self.parts[parameter]  # type: ignore[index]
            part.step()
            part.zero_grad()

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Do nothing: the hooks have stepped already."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing: each gradient was freed when it had been used."""

    def state_dict(self) -> dict[str, Any]:
        """The states of all parts, in the order of the parameters."""
        return {"state": {}, "param_groups": [], "parts": [part.state_dict() for part in self.parts.values()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give each part its state back, then share the groups again, because loading replaced them."""
        for part, state in zip(self.parts.values(), state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()
