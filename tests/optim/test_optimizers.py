"""Names mean the optimizers that transformers means by them, with the same options."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.tiny import TinyRegression

from onward.errors import MissingDependency, UsageError
from onward.optim.optimizers import build_optimizer, optimizer_class_and_kwargs, optimizer_names
from onward.optim.request import OptimArgs, flag
from onward.types import OptimizerNames

TORCH_NATIVE = [
    ("adamw_torch", None),
    ("adamw_torch_fused", None),
    ("sgd", None),
    ("sgd", "momentum=0.9, dampening=0.0, weight_decay=0.01, nesterov=True"),
    ("adagrad", "lr_decay=0.1,weight_decay=0.2,eps=1e-9"),
    ("rmsprop", "momentum=0.9,alpha=0.8,eps=1e-7,weight_decay=0.1,centered=yes"),
    ("adafactor", None),
]


def arguments(optim: Any, optim_args: str | None = None, **others: Any) -> Any:
    defaults = {
        "learning_rate": 3e-4,
        "adam_beta1": 0.85,
        "adam_beta2": 0.98,
        "adam_epsilon": 1e-7,
        "weight_decay": 0.1,
        "max_steps": -1,
        "warmup_steps": 0,
        "optim_target_modules": None,
    }
    return SimpleNamespace(optim=optim, optim_args=optim_args, **(defaults | others))


def test_every_name_of_transformers_has_a_recipe() -> None:
    from transformers.training_args import OptimizerNames as Theirs

    names = {member.value for member in Theirs}
    assert set(optimizer_names()) == names == {member.value for member in OptimizerNames}


@pytest.mark.parametrize(("name", "options"), TORCH_NATIVE)
def test_recipes_are_theirs(name: str, options: str | None) -> None:
    from transformers import Trainer
    from transformers.training_args import OptimizerNames as Theirs

    ours, our_kwargs = optimizer_class_and_kwargs(arguments(OptimizerNames(name), options))
    theirs, their_kwargs = Trainer.get_optimizer_cls_and_kwargs(arguments(Theirs(name), options))
    assert our_kwargs == their_kwargs
    assert ours.__name__ == theirs.__name__
    assert ours is theirs or name == "adafactor"


@pytest.mark.parametrize(("name", "options"), TORCH_NATIVE)
def test_they_train(name: str, options: str | None) -> None:
    model = TinyRegression()
    before = model.body.weight.detach().clone()
    groups = [{"params": list(model.parameters()), "weight_decay": 0.1}]
    optimizer = build_optimizer(model, groups, *optimizer_class_and_kwargs(arguments(name, options)))
    model(torch.randn(8, 4), torch.randn(8))["loss"].backward()
    optimizer.step()
    assert not torch.equal(before, model.body.weight)
    assert torch.isfinite(model.body.weight).all()


def test_unknown_name() -> None:
    with pytest.raises(UsageError, match="Did you mean 'adamw_torch_fused'"):
        optimizer_class_and_kwargs(arguments("adamw_torch_fuzed"))


@pytest.mark.parametrize(
    ("name", "installs"),
    [
        ("adamw_bnb_8bit", "pip install -U bitsandbytes"),
        ("galore_adamw", "pip install git+https://github.com/jiaweizzhao/GaLore"),
        ("apollo_adamw", "pip install git+https://github.com/zhuhanqing/APOLLO"),
        ("lomo", "pip install lomo-optim"),
        ("grokadamw", "pip install grokadamw"),
        ("adamw_torch_4bit", "pip install torchao"),
        ("schedule_free_adamw", "pip install schedulefree"),
        ("stable_adamw", "pip install torch-optimi"),
        ("adamw_anyprecision", "pip install git+https://github.com/pytorch/torchdistx"),
        ("adamw_torch_xla", "pip install torch_xla"),
        ("adamw_torch_npu_fused", "pip install torch_npu"),
    ],
)
def test_a_missing_package_is_named_with_its_command(name: str, installs: str) -> None:
    with pytest.raises(MissingDependency) as caught:
        optimizer_class_and_kwargs(arguments(name), TinyRegression())
    assert installs in str(caught.value)
    assert name in str(caught.value)


def test_options_are_read_by_type() -> None:
    options = OptimArgs("rank = 64, scale=2.5,centered=False")
    assert options.get("rank", int, 1) == 64
    assert options.get("scale", float, 1.0) == 2.5
    assert options.get("centered", flag, True) is False
    assert options.get("proj", str, "std") == "std"
    assert options.given(float, "scale", "missing") == {"scale": 2.5}


@pytest.mark.parametrize("text", ["rank", "rank=", "=3", "rank:3"])
def test_broken_options_are_shown(text: str) -> None:
    with pytest.raises(UsageError, match="expected name=value"):
        OptimArgs(text)


def test_options_of_the_wrong_type_are_shown() -> None:
    with pytest.raises(UsageError, match="momentum=high"):
        optimizer_class_and_kwargs(arguments("sgd", "momentum=high"))
    with pytest.raises(UsageError, match="true or false"):
        optimizer_class_and_kwargs(arguments("sgd", "nesterov=maybe"))


def test_options_that_nobody_reads_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    optimizer_class_and_kwargs(arguments("sgd", "momentumm=0.9"))
    assert "Did you mean 'momentum'" in caplog.text


def test_a_factory_is_given_the_model() -> None:
    class Factory:
        def __call__(self, model: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
            return torch.optim.SGD(model.parameters(), lr=lr)

    model = TinyRegression()
    optimizer = build_optimizer(model, [], Factory, {"lr": 0.5})
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_the_users_kwargs_survive() -> None:
    model = TinyRegression()
    kwargs = {"params": [{"params": [model.head.weight]}], "lr": 0.5}
    optimizer = build_optimizer(model, [], torch.optim.SGD, kwargs)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]
    assert set(kwargs) == {"params", "lr"}
