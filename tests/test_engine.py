"""What the accelerator is made with is honoured, or said to have no effect."""

from __future__ import annotations

import logging

import pytest
import torch
from accelerate import Accelerator

from onward import engine
from onward.arguments import TrainingArguments
from onward.errors import UsageError


def test_an_order_that_could_not_be_resumed_is_not_had(caplog: pytest.LogCaptureFixture) -> None:
    settings = {"use_seedable_sampler": False}
    with caplog.at_level(logging.WARNING, "onward"):
        engine.create_accelerator(TrainingArguments(use_cpu=True, accelerator_config=settings), dict)
    assert "use_seedable_sampler=False has no effect" in caplog.text


def test_an_unknown_compiler_backend_is_told() -> None:
    with pytest.raises(UsageError, match=r"torch_compile_backend got 'inducter'; expected one of .*inductor"):
        engine.accelerator_options(TrainingArguments(use_cpu=True, torch_compile_backend="inducter"), None)


def test_backward_is_the_losss_own_until_somebody_puts_theirs_in_the_accelerator() -> None:
    accelerator, weight = Accelerator(cpu=True), torch.nn.Parameter(torch.ones(()))
    ways = engine.Ways(accelerator)
    assert not ways.several
    ways.backward(2 * weight, {})
    assert weight.grad == 2
    seen = []
    accelerator.backward = lambda loss, **options: seen.append((loss.item(), options))
    ways.backward(3 * weight, {"learning_rate": 0.1})
    assert seen == [(3.0, {"learning_rate": 0.1})]
    assert weight.grad == 2


def test_a_batch_that_is_in_its_place_comes_as_a_new_dictionary_of_the_same_tensors() -> None:
    batch = {"x": torch.ones(2), "more": {"y": (torch.ones(1), "name")}}
    placed = engine.place(batch, torch.device("cpu"))
    assert placed is not batch
    assert placed["x"] is batch["x"]
    assert placed["more"]["y"][0] is batch["more"]["y"][0]
    assert engine.place(batch, torch.device("meta"))["more"]["y"][0].device.type == "meta"
