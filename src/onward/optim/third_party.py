"""Recipes for optimizers of other packages. Each package is imported by the recipe that needs it."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from onward.errors import MissingDependency, UsageError
from onward.optim.request import Request, flag, require

log = logging.getLogger(__name__)

Built = tuple[Any, dict[str, Any]]


def adamw_xla(request: Request) -> Built:
    """AdamW of torch_xla, which decides on overflow without leaving the device."""
    package = require("torch_xla.amp.syncfree", "torch_xla", f"optim={request.name!r}")
    return package.AdamW, request.adam


def adamw_npu(request: Request) -> Built:
    """Fused AdamW for Ascend devices."""
    package = require("torch_npu.optim", "torch_npu", f"optim={request.name!r}")
    return package.NpuFusedAdamW, request.adam


def adamw_anyprecision(request: Request) -> Built:
    """AdamW with a chosen dtype for each of its states."""
    source = "git+https://github.com/pytorch/torchdistx"
    package = require("torchdistx.optimizers", source, f"optim={request.name!r}")
    get = request.options.get
    dtypes = {
        "momentum_dtype": torch.float32,
        "variance_dtype": torch.float32,
        "compensation_buffer_dtype": torch.bfloat16,
    }
    return package.AnyPrecisionAdamW, {
        **request.adam,
        "use_kahan_summation": get("use_kahan_summation", flag, False),
        **{name: get(name, _dtype, default) for name, default in dtypes.items()},
    }


def _dtype(text: str) -> torch.dtype:
    found = getattr(torch, text, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{text!r} is no dtype of torch")
    return found


def torchao(request: Request) -> Built:
    """AdamW with states in 4 or 8 bits."""
    wanted_by = f"optim={request.name!r}"
    try:
        package = require("torchao.optim", "torchao", wanted_by)
    except ImportError:
        # Before torchao 0.11 they were prototypes.
        package = require("torchao.prototype.low_bit_optim", "torchao", wanted_by)
    get = request.options.get
    return package.AdamW4bit if request.name.endswith("4bit") else package.AdamW8bit, {
        **request.adam,
        "block_size": get("block_size", int, 256),
        "bf16_stochastic_round": get("bf16_stochastic_round", flag, False),
    }


def bitsandbytes(request: Request) -> Built:
    """AdamW, AdEMAMix, Lion and RMSprop with states in 8 or 32 bits, paged to the host if asked."""
    package = require("bitsandbytes.optim", "-U bitsandbytes", f"optim={request.name!r}")
    name, get = request.name, request.options.get
    common = {**request.lr, "optim_bits": 8 if "8bit" in name else 32}
    if "rmsprop" in name:
        numbers = request.options.given(float, "alpha", "eps", "weight_decay", "momentum")
        return package.RMSprop, {**common, **numbers, **request.options.given(flag, "centered")}
    common["is_paged"] = "paged" in name
    if "lion" in name:
        return package.Lion, {**common, "betas": request.betas}
    if "ademamix" not in name:
        return package.AdamW, {**common, **request.adam}
    beta1, beta2 = request.betas
    return package.AdEMAMix, {
        **common,
        "betas": (get("beta1", float, beta1), get("beta2", float, beta2), get("beta3", float, 0.9999)),
        "alpha": get("alpha", float, 5.0),
        "eps": get("eps", float, request.args.adam_epsilon),
        **request.options.given(int, "t_alpha", "t_beta3"),
    }


def keep_embeddings_in_32_bits(model: nn.Module) -> None:
    """Ask bitsandbytes for 32-bit states of embeddings: rare tokens' statistics do not survive 8 bits."""
    package = require("bitsandbytes", "-U bitsandbytes", "an 8-bit optimizer")
    manager = package.optim.GlobalOptimManager.get_instance()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})


def lomo(request: Request) -> Built:
    """LOMO and AdaLOMO, which update each weight inside the backward pass and keep no gradient."""
    model = request.needs_model()
    package = require("lomo_optim", "lomo-optim", f"optim={request.name!r}")
    return package.AdaLomo if request.name == "adalomo" else package.Lomo, {**request.lr, "model": model}


def grokadamw(request: Request) -> Built:
    """AdamW that amplifies slow gradients."""
    package = require("grokadamw", "grokadamw", f"optim={request.name!r}")
    defaults = {
        "alpha_init": 0.98,
        "lamb": 2.0,
        "gamma": 0.1,
        "grokking_signal_decay_rate": 0.1,
        "gradient_clipping": 1.0,
    }
    chosen = {name: request.options.get(name, float, default) for name, default in defaults.items()}
    log.warning(
        "optim='grokadamw' files its moments under the weights themselves, so that no checkpoint can give them back: "
        "a resumed run starts them anew."
    )
    return package.GrokAdamW, {**request.lr, **chosen}


def schedule_free(request: Request) -> Built:
    """Optimizers that average weights instead of following a schedule."""
    package = require("schedulefree", "schedulefree", f"optim={request.name!r}")
    get, args = request.options.get, request.args
    kwargs = {
        **(request.lr if request.name == "schedule_free_sgd" else request.adam),
        "weight_decay": args.weight_decay,
        "weight_lr_power": get("weight_lr_power", float, 2.0),
        "r": get("r", float, 0.0),
    }
    if request.name == "schedule_free_radam":
        if not hasattr(package, "RAdamScheduleFree"):
            raise MissingDependency(f"optim={request.name!r} needs schedulefree 1.4.0: pip install -U schedulefree")
        return package.RAdamScheduleFree, kwargs
    kwargs["warmup_steps"] = _warmup_in_steps(args)
    return package.AdamWScheduleFree if request.name == "schedule_free_adamw" else package.SGDScheduleFree, kwargs


def _warmup_in_steps(args: Any) -> Any:
    """Turn a warm-up given as a ratio into steps: taken as a number of steps, 0.1 would be no warm-up at all."""
    if not 0 < args.warmup_steps < 1:
        return args.warmup_steps
    if args.max_steps > 0:
        return args.get_warmup_steps(args.max_steps)
    raise UsageError(
        f"{args.optim}: got warmup_steps={args.warmup_steps} (a ratio) without max_steps, expected a number of steps, "
        "because this optimizer does its own warm-up; set warmup_steps to a whole number or give max_steps"
    )


def stable_adamw(request: Request) -> Built:
    """AdamW with per-tensor update clipping, from torch-optimi."""
    package = require("optimi", "torch-optimi", f"optim={request.name!r}")
    get = request.options.get
    return package.StableAdamW, {
        **request.adam,
        "weight_decay": request.args.weight_decay,
        "decouple_lr": get("decouple_lr", flag, False),
        "max_lr": get("max_lr", float, None),
        "kahan_sum": get("kahan_sum", flag, None),
    }
