"""What the accelerator is made with is honoured, or said to have no effect."""

from __future__ import annotations

import logging

import pytest

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
