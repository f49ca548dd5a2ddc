"""Which optimizer a name means, and how it is built.

A recipe turns a `Request` into a class and its keyword arguments. The ones of torch and our Adafactor stand here; those
of other packages in `third_party` and `lowrank`, imported when one of their names is asked for.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from onward.errors import UsageError, did_you_mean
from onward.optim.request import OptimArgs, Request, flag

log = logging.getLogger(__name__)

Recipe = Callable[[Request], tuple[Any, dict[str, Any]]]


def _adamw(request: Request) -> tuple[Any, dict[str, Any]]:
    fused = {"fused": True} if request.name == "adamw_torch_fused" else {}
    return torch.optim.AdamW, {**request.adam, **fused}


def _adafactor(request: Request) -> tuple[Any, dict[str, Any]]:
    from onward.optim.adafactor import Adafactor

    # The run brings its own schedule, so Adafactor's built-in step size and scaling are off.
    return Adafactor, {**request.lr, "scale_parameter": False, "relative_step": False}


def _sgd(request: Request) -> tuple[Any, dict[str, Any]]:
    given = request.options.given
    numbers = given(float, "momentum", "dampening", "weight_decay")
    return torch.optim.SGD, {**request.lr, **numbers, **given(flag, "nesterov")}


def _adagrad(request: Request) -> tuple[Any, dict[str, Any]]:
    return torch.optim.Adagrad, {**request.lr, **request.options.given(float, "lr_decay", "weight_decay", "eps")}


def _rmsprop(request: Request) -> tuple[Any, dict[str, Any]]:
    given = request.options.given
    numbers = given(float, "momentum", "alpha", "eps", "weight_decay")
    return torch.optim.RMSprop, {**request.lr, **numbers, **given(flag, "centered")}


RECIPES: dict[str, Recipe] = {
    "adamw_torch": _adamw,
    "adamw_torch_fused": _adamw,
    "adafactor": _adafactor,
    "sgd": _sgd,
    "adagrad": _adagrad,
    "rmsprop": _rmsprop,
}
"""Recipes that need nothing but torch."""

_BITSANDBYTES = (
    "adamw_bnb_8bit adamw_8bit paged_adamw_32bit paged_adamw_8bit ademamix ademamix_8bit paged_ademamix_32bit "
    "paged_ademamix_8bit lion_32bit lion_8bit paged_lion_32bit paged_lion_8bit rmsprop_bnb rmsprop_bnb_8bit "
    "rmsprop_bnb_32bit"
).split()
_GALORE = (
    "galore_adamw galore_adamw_8bit galore_adafactor galore_adamw_layerwise galore_adamw_8bit_layerwise "
    "galore_adafactor_layerwise"
).split()

ELSEWHERE: dict[str, tuple[str, str]] = {
    "adamw_torch_xla": ("third_party", "adamw_xla"),
    "adamw_torch_npu_fused": ("third_party", "adamw_npu"),
    "adamw_anyprecision": ("third_party", "adamw_anyprecision"),
    "adamw_torch_4bit": ("third_party", "torchao"),
    "adamw_torch_8bit": ("third_party", "torchao"),
    "grokadamw": ("third_party", "grokadamw"),
    "lomo": ("third_party", "lomo"),
    "adalomo": ("third_party", "lomo"),
    "schedule_free_radam": ("third_party", "schedule_free"),
    "schedule_free_adamw": ("third_party", "schedule_free"),
    "schedule_free_sgd": ("third_party", "schedule_free"),
    "stable_adamw": ("third_party", "stable_adamw"),
    **dict.fromkeys(_BITSANDBYTES, ("third_party", "bitsandbytes")),
    **dict.fromkeys(_GALORE, ("lowrank", "galore")),
    **dict.fromkeys(("apollo_adamw", "apollo_adamw_layerwise"), ("lowrank", "apollo")),
}
"""Names whose recipe lives in another file of this folder: (file, function)."""


def optimizer_names() -> list[str]:
    """Every name that `optim` may have."""
    return [*RECIPES, *ELSEWHERE]


def _recipe(name: str) -> Recipe:
    if name in RECIPES:
        return RECIPES[name]
    if name in ELSEWHERE:
        file, function = ELSEWHERE[name]
        recipe: Recipe = getattr(importlib.import_module(f"onward.optim.{file}"), function)
        return recipe
    known = optimizer_names()
    raise UsageError(f"optim: got {name!r}, expected one of {', '.join(sorted(known))}.{did_you_mean(name, known)}")


def optimizer_class_and_kwargs(args: Any, model: nn.Module | None = None) -> tuple[Any, dict[str, Any]]:
    """Return the optimizer class (or factory) that ``args.optim`` names, and its keyword arguments.

    Besides ordinary options, the keyword arguments may hold ``params`` (groups that replace the usual two),
    ``model`` or ``optimizer_dict``: `build_optimizer` knows what to do with them.

    Raises `UsageError` for an unknown name or a bad option, `MissingDependency` for a package that is not installed.
    """
    name = str(getattr(args.optim, "value", args.optim))
    request = Request(name, args, model, OptimArgs(args.optim_args))
    optimizer_class, kwargs = _recipe(name)(request)
    request.options.report_unread(name)
    return optimizer_class, kwargs


def is_factory(optimizer_class: Any) -> bool:
    """Whether the class makes optimizers from a whole model (Muon, Dion) instead of being one."""
    return not (isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer))


def build_optimizer(
    model: nn.Module, groups: list[dict[str, Any]], optimizer_class: Any, kwargs: dict[str, Any]
) -> Any:
    """Build the optimizer over ``groups``, or over what the recipe put in their place.

    ``kwargs`` is left as it was: it may be the user's own dictionary, needed again for the next trial of a search.
    """
    kwargs = dict(kwargs)
    if is_factory(optimizer_class):
        return optimizer_class()(model, **kwargs)
    over: Any = groups
    for replacement in ("params", "model", "optimizer_dict"):
        if replacement in kwargs:
            over = kwargs.pop(replacement)
    optimizer = optimizer_class(over, **kwargs)
    if kwargs.get("optim_bits") == 8 and "bitsandbytes" in str(optimizer_class):
        from onward.optim.third_party import keep_embeddings_in_32_bits

        keep_embeddings_in_32_bits(model)
    return optimizer
