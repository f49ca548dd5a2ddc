"""Checkpoints go both ways between transformers' trainer and ours, and the loss curve goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.tiny import RegressionData, TinyRegression, tiny_llama, token_data
from torch import nn

import onward
from onward.checkpoint import layout, problems

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
Make = Callable[[str], Any]


def plain() -> tuple[nn.Module, Any]:
    return TinyRegression(), RegressionData(20)


def pretrained() -> tuple[nn.Module, Any]:
    return tiny_llama(), token_data(20)


def trainer_of(package: Any, parts: Callable[[], tuple[nn.Module, Any]], folder: str, **changes: Any) -> Any:
    model, data = parts()
    settings: dict[str, Any] = {
        "output_dir": folder, "max_steps": 8, "save_steps": 3, "logging_steps": 1, "report_to": [], "use_cpu": True,
        "per_device_train_batch_size": 4, "disable_tqdm": True, "learning_rate": 0.01,
    }  # fmt: skip
    return package.Trainer(model=model, args=package.TrainingArguments(**{**settings, **changes}), train_dataset=data)


def losses(trainer: Any) -> dict[int, float]:
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


@pytest.mark.parametrize("parts", [plain, pretrained])
@pytest.mark.parametrize(("writer", "reader"), [(onward, transformers), (transformers, onward)])
@pytest.mark.parametrize("step", [3, 6])
def test_the_curve_goes_on(parts: Any, writer: Any, reader: Any, step: int) -> None:
    whole = trainer_of(writer, parts, "written")
    whole.train()
    checkpoint = Path("written", layout.name_of(step))
    shutil.copytree(checkpoint, Path("copied", layout.name_of(step)))
    resumed = trainer_of(reader, parts, "copied", save_strategy="no")
    resumed.train(resume_from_checkpoint=str(Path("copied", layout.name_of(step))))
    assert losses(resumed) == losses(whole)
    for (name, a), (_, b) in zip(whole.model.state_dict().items(), resumed.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("parts", [plain, pretrained])
def test_the_structure_of_what_transformers_writes_is_accepted(parts: Any) -> None:
    trainer_of(transformers, parts, "written").train()
    for step in (3, 6):
        assert problems(Path("written", layout.name_of(step))) == []
    assert onward.get_last_checkpoint("written") == transformers.trainer_utils.get_last_checkpoint("written")


def test_a_resume_in_the_folder_of_transformers_rotates_its_checkpoints_away() -> None:
    trainer_of(transformers, plain, "run").train()
    trainer_of(onward, plain, "run", max_steps=14, save_total_limit=2).train(resume_from_checkpoint=True)
    assert sorted(each.name for each in Path("run").glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-14"]


def test_a_sharded_checkpoint_of_transformers_is_read() -> None:
    model = tiny_llama()
    model.save_pretrained("written/checkpoint-3", max_shard_size="20KB")
    transformers.trainer_callback.TrainerState(global_step=3).save_to_json("written/checkpoint-3/trainer_state.json")
    trainer = trainer_of(onward, pretrained, "written", max_steps=3, save_strategy="no")
    with torch.no_grad():
        for tensor in trainer.model.parameters():
            tensor.zero_()
    trainer._load_from_checkpoint("written/checkpoint-3")
    for (name, a), (_, b) in zip(model.state_dict().items(), trainer.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
