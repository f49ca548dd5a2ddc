"""Compiling block by block."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from onward import Trainer, TrainingArguments
from onward.speed.compiling import missing_compiler
from tests.tiny import pad_tokens, tiny_llama, token_data


def trained(folder: Path, **options: Any) -> Trainer:
    args = TrainingArguments(
        str(folder), max_steps=2, logging_steps=1, report_to="none", use_cpu=True, disable_tqdm=True, **options
    )
    trainer = Trainer(tiny_llama(), args, pad_tokens, train_dataset=token_data(32, 12))
    trainer.train()
    return trainer


def losses(trainer: Trainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.slow
# The compiler asks every tensor for its gradient, and hides the warning by a way that an error takes around.
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_blocks_train_and_save_as_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = trained(tmp_path / "plain")
    with caplog.at_level(logging.INFO, "onward.loop.account"):
        # The eager backend traces and guards as any other, and needs no C++ compiler.
        blocks = trained(
            tmp_path / "blocks", torch_compile_mode="blocks", torch_compile_backend="eager", log_level="info"
        )
    assert losses(blocks) == pytest.approx(losses(plain), rel=1e-6)
    assert blocks.model_wrapped is not blocks.model
    assert "graphs were compiled" in caplog.text
    names = []
    for folder in ("plain", "blocks"):
        with safe_open(tmp_path / folder / "checkpoint-2" / "model.safetensors", "pt") as file:
            names.append(sorted(file.keys()))
    assert names[0] == names[1]


def test_without_a_compiler_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    assert missing_compiler("inductor", "cpu") is not None
    assert missing_compiler("eager", "cpu") is None
    with caplog.at_level(logging.WARNING, "onward"):
        trainer = trained(tmp_path, torch_compile=True)
    assert "no C++ compiler" in caplog.text
    assert losses(trainer) == losses(trained(tmp_path))
