"""The trainer's verbs about optimizer, schedule and gradient answer as transformers' do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from tests.tiny import RegressionData, TinyRegression

from onward import Trainer, TrainerCallback, TrainingArguments
from onward.errors import UsageError
from onward.hooks.optimization import OptimizationHooks

SETTINGS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1, "lr_scheduler_type": "cosine", "warmup_steps": 3},
    {"optim": "sgd", "optim_args": "momentum=0.9", "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.25},
    {"optim": "adafactor", "lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0}},
    {"optim": "rmsprop", "lr_scheduler_type": "greedy", "lr_scheduler_kwargs": {"min_lr": 1e-6}},
    {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"factor": 0.5}},
]
STEPS = 12


class Host(OptimizationHooks):
    """A trainer with nothing but these verbs."""

    def __init__(self, args: Any) -> None:
        self.args, self.model, self.accelerator = args, TinyRegression(), Accelerator(cpu=True)


def arguments(folder: Path, **settings: Any) -> transformers.TrainingArguments:
    settings = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "eval_strategy": "steps"} | settings
    return transformers.TrainingArguments(str(folder), **settings)


def drive(trainer: Any) -> list[Any]:
    """Train a little through the verbs, noting what they answer."""
    trainer.create_optimizer_and_scheduler(STEPS)
    data, seen = RegressionData(8), []
    for step in range(STEPS):
        loss = trainer.model(data.x * (step + 1), data.labels)["loss"]
        loss.backward()
        norm = trainer._get_grad_norm(trainer.model, trainer._clip_grad_norm(trainer.model) if step % 2 else None)
        trainer.optimizer.step()
        seen.append((norm.item(), trainer._get_learning_rate(), trainer.get_learning_rates()))
        trainer.lr_scheduler.step(*[loss.item()] * (not hasattr(trainer.lr_scheduler, "lr_lambdas")))
        trainer.model.zero_grad()
    return seen


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_run_through_the_verbs_is_equal_to_the_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    args = arguments(tmp_path, learning_rate=1e-2, **settings)
    data = RegressionData(8)
    theirs = transformers.Trainer(TinyRegression(), args, train_dataset=data, eval_dataset=data)
    ours = Host(args)
    assert drive(ours) == drive(theirs)
    for p, q in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert ours._created_lr_scheduler
    assert ours.get_num_trainable_parameters() == theirs.get_num_trainable_parameters()
    assert ours.get_decay_parameter_names(ours.model) == theirs.get_decay_parameter_names(theirs.model)
    assert len(ours.get_optimizer_group()) == len(theirs.get_optimizer_group()) == 2
    assert ours.get_optimizer_group(ours.model.head.weight) is ours.optimizer.param_groups[0]


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    host = Host(arguments(tmp_path))
    optimizer = host.optimizer = torch.optim.SGD(host.model.parameters(), lr=0.5)
    host.lr_scheduler = schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    host.create_optimizer_and_scheduler(10)
    assert host.optimizer is optimizer
    assert host.lr_scheduler is schedule
    assert not host._created_lr_scheduler


def test_a_class_that_was_passed_in_goes_before_the_arguments(tmp_path: Path) -> None:
    host = Host(arguments(tmp_path, optim="sgd"))
    host.optimizer_cls_and_kwargs = (torch.optim.RMSprop, {"lr": 0.25})
    other = TinyRegression(seed=1)
    optimizer = host.create_optimizer(other)
    assert type(optimizer) is torch.optim.RMSprop
    assert host.get_learning_rates() == [0.25, 0.25]
    assert optimizer.param_groups[0]["params"][0] is other.body.weight


def test_an_overridden_choice_of_names_is_heard(tmp_path: Path) -> None:
    class Own(Host):
        def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
            return ["head.bias"]

    host = Own(arguments(tmp_path, weight_decay=0.3))
    host.create_optimizer()
    assert [id(p) for p in host.optimizer.param_groups[0]["params"]] == [id(host.model.head.bias)]


def test_before_there_is_an_optimizer(tmp_path: Path) -> None:
    host = Host(arguments(tmp_path))
    with pytest.raises(UsageError, match="no optimizer yet"):
        host.get_learning_rates()
    with pytest.raises(UsageError, match="no optimizer yet"):
        host.get_optimizer_group()


def test_another_model_is_listed_anew(tmp_path: Path) -> None:
    host = Host(arguments(tmp_path))
    first, second = TinyRegression(), TinyRegression()
    for p in second.parameters():
        p.grad = torch.ones_like(p)
    assert host._get_grad_norm(first) == 0
    assert host._get_grad_norm(second) > 0


class Looks(TrainerCallback):
    """At the optimizer and the gradients behind each step."""

    seen: list[Any]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        (group,) = {bool(group.get("fused")) for group in kwargs["optimizer"].param_groups}
        self.seen.append((group, {p.grad for p in kwargs["model"].parameters()}))


def test_the_default_optimizer_is_fused_and_gradients_go_back_to_none(tmp_path: Path) -> None:
    looks = Looks()
    looks.seen = []
    args = TrainingArguments(str(tmp_path), max_steps=2, report_to="none", use_cpu=True, save_strategy="no")
    Trainer(TinyRegression(), args, train_dataset=RegressionData(16), callbacks=[looks]).train()
    assert looks.seen == [(True, {None})] * 2
