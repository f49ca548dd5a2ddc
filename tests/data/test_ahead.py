"""Moving batches one ahead: in which order, and that training cannot tell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.resume.data import Augmented, Stream
from tests.tiny import RegressionStream, TinyRegression
from torch.utils.data import DataLoader

from onward import Trainer, TrainingArguments
from onward.data.ahead import Transfer, one_ahead
from onward.data.loader import TrainLoader


class Noted(Transfer):
    """Moves nothing, and notes when it was asked to."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def start(self, batch: Any) -> Any:
        self.notes.append(f"start {batch if isinstance(batch, int) else ''}".strip())
        return [batch]

    def finish(self, started: Any) -> Any:
        (batch,) = started
        self.notes.append(f"finish {batch if isinstance(batch, int) else ''}".strip())
        return batch


def test_the_next_move_begins_before_a_batch_is_given_out() -> None:
    transfer = Noted()
    for batch in one_ahead(iter(range(3)), transfer):
        transfer.notes.append(f"train {batch}")
    assert transfer.notes == [
        "start 0", "start 1", "finish 0", "train 0",
        "start 2", "finish 1", "train 1",
        "finish 2", "train 2",
    ]  # fmt: skip
    assert list(one_ahead(iter(()), transfer)) == []


def test_an_error_comes_behind_the_last_good_batch() -> None:
    def failing() -> Iterator[int]:
        yield 0
        yield 1
        raise OSError("the disk is gone")

    moved = one_ahead(failing(), Noted())
    assert [next(moved), next(moved)] == [0, 1]
    with pytest.raises(OSError, match="disk is gone"):
        next(moved)


class Ahead(Trainer):
    """Trains as on a device to which batches are moved beside the training."""

    transfer: Noted | None = None

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader = super().get_train_dataloader()
        assert isinstance(loader, TrainLoader)
        self.transfer = loader.move = Noted()
        return loader


def run(kind: type[Trainer], folder: Path, data: Any, resume: str | None = None, **options: Any) -> Any:
    args = TrainingArguments(
        str(folder), per_device_train_batch_size=4, max_steps=9, save_steps=4, logging_steps=1, report_to="none",
        use_cpu=True, disable_tqdm=True, **options,
    )  # fmt: skip
    trainer = kind(TinyRegression(dropout=0.2), args, train_dataset=data)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("options", [{}, {"auto_find_batch_size": True}, {"dataloader_num_workers": 2}], ids=str)
def test_training_and_resuming_cannot_tell(options: dict[str, Any], tmp_path: Path) -> None:
    _, plain = run(Trainer, tmp_path / "plain", Augmented("torch"), **options)
    ahead, losses = run(Ahead, tmp_path / "ahead", Augmented("torch"), **options)
    assert losses == plain
    assert ahead.transfer.notes[:3] == ["start", "start", "finish"]
    checkpoint = str(tmp_path / "ahead" / "checkpoint-4")
    assert run(Ahead, tmp_path / "resumed", Augmented("torch"), checkpoint, **options)[1] == plain


def test_of_a_stream_nothing_is_pulled_ahead(tmp_path: Path) -> None:
    stream = RegressionStream(40)
    ahead, _ = run(Ahead, tmp_path / "few", stream)
    assert stream.pulled == 9 * 4
    assert ahead.transfer.notes[:4] == ["start", "finish", "start", "finish"]
    _, plain = run(Trainer, tmp_path / "plain", Stream())
    assert run(Ahead, tmp_path / "ahead", Stream(), str(tmp_path / "plain" / "checkpoint-4"))[1] == plain


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_side_stream_brings_what_was_sent() -> None:
    from onward.engine import SideStream

    device = torch.device("cuda", 0)
    transfer = SideStream(device, lambda batch: {k: v.to(device, non_blocking=True) for k, v in batch.items()})
    sent = [{"x": torch.full((1 << 20,), float(n)).pin_memory()} for n in range(16)]
    sums = [batch["x"].sum() for batch in one_ahead(iter(sent), transfer)]
    assert [float(s) for s in sums] == [float(n << 20) for n in range(16)]
