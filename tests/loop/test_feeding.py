"""Loaders from a trainer's settings, and the batch of any step without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.resume.data import Augmented, OngoingStream, SizedStatefulStream, SizedStream, Stream
from tests.tiny import TinyRegression
from torch import Tensor, nn

from onward import Trainer, TrainerCallback, TrainingArguments
from onward.data.loader import TrainLoader
from onward.errors import UsageError


class Remembers(Trainer):
    """Keeps what each step trained on."""

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        self.__dict__.setdefault("seen", []).append(inputs["x"].clone())
        return super().training_step(model, inputs, num_items_in_batch)


def trainer(folder: Path, data: Any, **settings: Any) -> Remembers:
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    return Remembers(TinyRegression(dropout=0.2), args, train_dataset=data)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_batch_of_a_step_without_training(workers: int, tmp_path: Path) -> None:
    settings = {"num_train_epochs": 2, "gradient_accumulation_steps": 2, "dataloader_num_workers": workers}
    trained = trainer(tmp_path, Augmented("numpy"), **settings)
    trained.train()
    looking = trainer(tmp_path, Augmented("numpy"), **settings)
    stream = torch.get_rng_state()
    found = [batch["x"] for step in range(1, 7) for batch in looking.batch_at(step)]
    assert torch.equal(torch.get_rng_state(), stream)
    assert len(found) == len(trained.seen)
    assert all(torch.equal(a, b) for a, b in zip(found, trained.seen, strict=True))


def test_the_batch_of_a_step_of_a_stream(tmp_path: Path) -> None:
    trained = trainer(tmp_path, Stream(40), max_steps=6)
    trained.train()
    found = trainer(tmp_path, Stream(40), max_steps=6).batch_at(5)
    assert torch.equal(found[0]["x"], trained.seen[4])


class Looks(TrainerCallback):
    """Looks at an earlier step behind each step."""

    trainer: Trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.batch_at((state.global_step + 1) // 2)


@pytest.mark.parametrize("kind", [SizedStream, SizedStatefulStream, OngoingStream])
def test_the_batch_of_a_step_of_a_stream_with_a_length(kind: type, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"num_train_epochs": 3, "gradient_accumulation_steps": 4}
    trained = trainer(tmp_path, kind(), **settings)
    trained.train()
    looking = trainer(tmp_path, kind(), **settings)
    for step in (6, 1, 4, 5, 2):
        first = (step - 1) // 2 * 6 + (step - 1) % 2 * 4
        found = [batch["x"] for batch in looking.batch_at(step)]
        assert len(found) == (4 if step % 2 else 2)
        assert all(torch.equal(a, b) for a, b in zip(found, trained.seen[first:], strict=False)), step
    undisturbed = trainer(tmp_path, kind(), **settings)
    undisturbed.add_callback(looks := Looks())
    looks.trainer = undisturbed
    undisturbed.train()
    assert all(torch.equal(a, b) for a, b in zip(undisturbed.seen, trained.seen, strict=True))


def test_a_step_that_the_run_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="steps 1 to 6"):
        trainer(tmp_path, Augmented("torch"), num_train_epochs=1).batch_at(7)


def test_the_training_loader_is_ours_and_the_others_are_accelerates(tmp_path: Path) -> None:
    own = trainer(tmp_path, Augmented("torch"))
    loader = own.get_train_dataloader()
    assert isinstance(loader, TrainLoader)
    assert own.num_examples(loader) == 22
    assert len(loader) == 6
    assert type(own.get_eval_dataloader(Augmented("torch"))).__name__ == "DataLoaderShard"


def test_dispatched_batches_go_through_accelerate(tmp_path: Path) -> None:
    dispatched = trainer(tmp_path, Augmented("torch"), accelerator_config={"dispatch_batches": True}, max_steps=3)
    assert type(dispatched.get_train_dataloader()).__name__ == "DataLoaderDispatcher"
    assert dispatched.train().global_step == 3
