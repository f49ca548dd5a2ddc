"""Recipes for other packages pick the classes and options that transformers picks, on stand-ins of the packages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.optim.stand_ins import CLASSES, write
from tests.tiny import TinyRegression
from torch import nn
from transformers import Trainer  # before any stand-in can be imported: it would take them for the real packages
from transformers.training_args import OptimizerNames
from transformers.utils import import_utils

from onward.errors import NotSupported, UsageError
from onward.optim.optimizers import ELSEWHERE, build_optimizer, optimizer_class_and_kwargs
from onward.optim.schedulers import make_scheduler
from onward.types import ParallelMode

# What one may set; where transformers passes the text on as it stands, it is left out here and tested below.
SET = {
    "galore_adamw": "rank=4,update_proj_gap=9,scale=0.5,proj_type=right",
    "apollo_adamw": "rank=4,proj=svd,scale_type=tensor,update_proj_gap=9,scale=2,proj_type=left",
    "ademamix": "beta1=0.5,beta2=0.6,beta3=0.7,alpha=4,eps=1e-4,t_alpha=5,t_beta3=6",
    "grokadamw": "alpha_init=0.5,lamb=1,gamma=0.2,grokking_signal_decay_rate=0.3,gradient_clipping=2",
    "schedule_free_adamw": "weight_lr_power=1.5,r=0.5",
    "stable_adamw": "max_lr=0.1",
    "adamw_torch_4bit": "bf16_stochastic_round=True",
    "adamw_anyprecision": "use_kahan_summation=True,momentum_dtype=bfloat16",
}


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stand-ins can be imported while the test runs."""
    write(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield
    stand_ins = {module.partition(".")[0] for module in CLASSES}
    for name in [name for name in sys.modules if name.partition(".")[0] in stand_ins]:
        del sys.modules[name]


@pytest.fixture
def theirs(packages: None) -> Iterator[Any]:
    """The look-up of transformers, which remembers what is installed: it must forget before and after."""
    questions = [function for function in vars(import_utils).values() if hasattr(function, "cache_clear")]
    for question in questions:
        question.cache_clear()
    yield Trainer.get_optimizer_cls_and_kwargs
    for question in questions:
        question.cache_clear()


def plain(value: Any, model: nn.Module) -> Any:
    """What an optimizer was given, in values that compare: parameters by name, optimizers by what they were given."""
    if isinstance(value, nn.Parameter):
        return next(name for name, p in model.named_parameters() if p is value)
    if isinstance(value, dict):
        return {plain(key, model): plain(entry, model) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry, model) for entry in value]
    if isinstance(value, torch.optim.Optimizer):
        return [type(value), plain(value.param_groups, model), plain(value.options, model)]  # type: ignore[attr-defined]
    return value


# These two are backends: transformers looks for their devices when they are there, so they have no stand-in.
@pytest.mark.parametrize("name", sorted(ELSEWHERE.keys() - {"adamw_torch_xla", "adamw_torch_npu_fused"}))
def test_recipes_are_theirs(theirs: Any, name: str) -> None:
    model = TinyRegression()
    common = {"optim_target_modules": "all-linear", "warmup_steps": 12}
    our_class, ours = optimizer_class_and_kwargs(arguments(name, SET.get(name), **common), model)
    if name == "galore_adafactor_layerwise":
        # transformers leaves relative_step on here, beside a learning rate, which GaLoreAdafactor refuses.
        assert ours["relative_step"] is False
        return
    their_class, their_kwargs = theirs(arguments(OptimizerNames(name), SET.get(name), **common), model)
    if name.endswith("layerwise"):
        assert plain(ours["optimizer_dict"], model) == plain(their_kwargs["optimizer_dict"], model)
        assert len(ours["optimizer_dict"]) == 6
        return
    assert our_class is their_class
    assert plain(ours, model) == plain(their_kwargs, model)


def arguments(optim: str, optim_args: str | None = None, **others: Any) -> Any:
    defaults: dict[str, Any] = {
        "learning_rate": 0.1,
        "adam_beta1": 0.9,
        "adam_beta2": 0.9,
        "adam_epsilon": 0.1,
        "weight_decay": 0.1,
        "warmup_steps": 0.1,
        "max_steps": 200,
        "get_warmup_steps": lambda steps: steps // 10,
        "optim_target_modules": ["body", "head"],
        "gradient_accumulation_steps": 1,
        "parallel_mode": ParallelMode.NOT_DISTRIBUTED,
    }
    return SimpleNamespace(optim=optim, optim_args=optim_args, **(defaults | others))


def train(model: nn.Module, optimizer: Any, steps: int) -> list[float]:
    schedule = make_scheduler("linear", optimizer, 0, 10)
    rates = []
    for seed in range(steps):
        rates.append(optimizer.param_groups[-1]["lr"])
        generator = torch.Generator().manual_seed(seed)
        model(torch.randn(8, 4, generator=generator), torch.randn(8, generator=generator))["loss"].backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return rates


def test_a_layerwise_optimizer_follows_the_schedule_and_trains_as_one(packages: None) -> None:
    model, reference = TinyRegression(), TinyRegression()
    cls, kwargs = optimizer_class_and_kwargs(arguments("galore_adamw_layerwise"), model)
    optimizer = build_optimizer(model, [], cls, kwargs)
    optimizer.load_state_dict(optimizer.state_dict())  # as accelerate does when it wraps it
    rates = train(model, optimizer, 4)
    assert rates == train(reference, torch.optim.SGD(reference.parameters(), lr=0.1), 4)
    assert all(p.grad is None for p in model.parameters())  # freed in the backward pass already
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("bad", "error", "needle"),
    [
        ({"gradient_accumulation_steps": 2}, UsageError, "expected 1"),
        ({"parallel_mode": ParallelMode.DISTRIBUTED}, NotSupported, "before processes have averaged"),
        ({"optim_target_modules": None}, UsageError, "got none"),
        ({"optim_target_modules": 3}, UsageError, "got 3"),
        ({"optim_target_modules": "nothing"}, UsageError, "matches no linear layer"),
    ],
)
def test_what_layerwise_cannot_do(packages: None, bad: Any, error: type[Exception], needle: str) -> None:
    with pytest.raises(error, match=needle):
        optimizer_class_and_kwargs(arguments("galore_adamw_layerwise", **bad), TinyRegression())


def test_options_arrive_as_numbers_and_truth_values(packages: None) -> None:
    """transformers passes "128" and takes "False" for true."""
    _, rmsprop = optimizer_class_and_kwargs(arguments("rmsprop_bnb", "alpha=0.5,centered=true"))
    assert rmsprop == {"lr": 0.1, "optim_bits": 32, "alpha": 0.5, "centered": True}
    _, low_bit = optimizer_class_and_kwargs(arguments("adamw_torch_8bit", "block_size=128"))
    assert low_bit["block_size"] == 128
    _, stable = optimizer_class_and_kwargs(arguments("stable_adamw", "kahan_sum=False,decouple_lr=false"))
    assert (stable["kahan_sum"], stable["decouple_lr"]) == (False, False)


def test_a_warm_up_given_as_a_ratio_becomes_steps(packages: None) -> None:
    """Taken for a number of steps, as transformers does, 0.1 would be no warm-up at all."""
    _, kwargs = optimizer_class_and_kwargs(arguments("schedule_free_sgd"))
    assert kwargs["warmup_steps"] == 20
    with pytest.raises(UsageError, match=r"warmup_steps=0\.1"):
        optimizer_class_and_kwargs(arguments("schedule_free_sgd", max_steps=-1))


def test_a_recipe_that_needs_the_model_says_so(packages: None) -> None:
    with pytest.raises(UsageError, match="got no model"):
        optimizer_class_and_kwargs(arguments("lomo"))
