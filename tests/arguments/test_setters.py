"""Setters: the same fields change to the same values as in transformers."""

import dataclasses
import inspect

import pytest
import transformers

from onward.arguments import TrainingArguments
from onward.errors import UsageError

CALLS = [
    ("set_training", {}),
    ("set_training", {"learning_rate": 1e-4, "batch_size": 32, "activation_checkpointing": True, "seed": 5}),
    ("set_evaluate", {"delay": 0}),
    ("set_evaluate", {"strategy": "steps", "steps": 100, "delay": 2, "loss_only": True}),
    ("set_testing", {"batch_size": 32, "loss_only": True}),
    ("set_save", {"strategy": "best", "steps": 100, "total_limit": 3}),
    ("set_logging", {"strategy": "epoch", "report_to": ["wandb"], "level": "info"}),
    ("set_push_to_hub", {"model_id": "me/model", "strategy": "end", "token": "secret"}),
    ("set_optimizer", {"name": "sgd", "beta1": 0.8, "args": "momentum=0.9"}),
    ("set_lr_scheduler", {"name": "cosine", "warmup_steps": 0.05, "max_steps": 10}),
    ("set_dataloader", {"train_batch_size": 16, "num_workers": 2, "sampler_seed": 1, "prefetch_factor": 3}),
]


@pytest.mark.parametrize(("name", "given"), CALLS, ids=str)
def test_setter_does_what_it_does_in_transformers(name, given):
    ours, theirs = TrainingArguments(use_cpu=True), transformers.TrainingArguments(use_cpu=True)
    assert getattr(ours, name)(**given) is ours
    getattr(theirs, name)(**given)
    for field in dataclasses.fields(theirs):
        if field.name != "accelerator_config":
            assert getattr(ours, field.name) == getattr(theirs, field.name), field.name


@pytest.mark.parametrize("name", sorted({name for name, _ in CALLS}))
def test_setters_take_the_parameters_of_transformers(name):
    def parameters(cls):
        return [(item.name, item.default) for item in inspect.signature(getattr(cls, name)).parameters.values()]

    assert parameters(TrainingArguments) == parameters(transformers.TrainingArguments)


def test_every_setter_of_transformers_is_there():
    setters = {name for name in dir(transformers.TrainingArguments) if name.startswith("set_")}
    assert setters == {name for name, _ in CALLS}


def test_old_name_and_left_out_values():
    args = TrainingArguments()
    assert args.set_training(gradient_checkpointing=True).activation_checkpointing is True
    assert args.set_evaluate("epoch").eval_delay == 0  # a delay of None would break the first comparison with a step
    assert args.set_logging(report_to="none").report_to == []


@pytest.mark.parametrize("name", ["set_evaluate", "set_save", "set_logging"])
def test_steps_need_a_number(name):
    with pytest.raises(UsageError, match="expected more optimizer steps"):
        getattr(TrainingArguments(), name)(strategy="steps", steps=0)
