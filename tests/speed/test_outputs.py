"""A model in mixed precision that returns its loss alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from onward import Trainer, TrainingArguments
from onward.errors import UsageError
from onward.hooks import training
from onward.loss import loss_of
from onward.speed.outputs import loss_alone
from tests.tiny import pad_tokens, tiny_llama, token_data

BATCH = pad_tokens(token_data(3, (2, 7)))


def prepared(precision: str) -> nn.Module:
    model: nn.Module = Accelerator(mixed_precision=precision, cpu=True).prepare(tiny_llama())
    return model.eval()


def test_the_loss_is_the_same_and_logits_come_back_afterwards() -> None:
    model = prepared("bf16")
    with loss_alone(model):
        alone = model(**BATCH)
    assert set(alone) == {"loss"}
    assert alone["loss"].item() == model(**BATCH).loss.item()
    assert "logits" in model(**BATCH)


def test_hooks_and_full_precision_see_all() -> None:
    watched = prepared("bf16")
    watched.register_forward_hook(lambda _, __, outputs: None)
    with loss_alone(watched):
        assert "logits" in watched(**BATCH)
    plain = tiny_llama()
    with loss_alone(plain):
        assert "logits" in plain(**BATCH)


class Returning(nn.Module):
    """Calls what it is given for its outputs."""

    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.outputs = outputs

    def forward(self, x: torch.Tensor) -> Any:
        return self.outputs((self.weight * x).sum())


def test_outputs_of_other_kinds() -> None:
    def returned(outputs: Any) -> Any:
        model = Accelerator(mixed_precision="bf16", cpu=True).prepare(Returning(outputs))
        with loss_alone(model):
            return model(torch.ones(2))

    first = returned(lambda loss: (loss.bfloat16(), loss.bfloat16()))
    assert len(first) == 1
    assert first[0].dtype == torch.float32
    assert returned(lambda loss: {"loss": loss.double(), "logits": loss})["loss"].dtype == torch.float64
    assert returned(lambda loss: loss.bfloat16()).dtype == torch.float32
    without = returned(lambda loss: {"logits": loss.bfloat16()})
    assert without["logits"].dtype == torch.float32


class Sees(Trainer):
    """Has a loss of its own, if only by name."""

    def compute_loss(self, *given: Any, **more: Any) -> Any:
        return super().compute_loss(*given, **more)


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        (Trainer, {"bf16": True}, {"loss"}),
        (Trainer, {}, {"loss", "logits"}),
        (Sees, {"bf16": True}, {"loss", "logits"}),
    ],
)
def test_training_gets_what_it_reads_and_evaluation_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Trainer], options: dict[str, Any], expected: set[str]
) -> None:
    seen: dict[bool, set[str]] = {}
    model = tiny_llama()

    def noting(outputs: Any, *names: Any) -> Any:
        seen.setdefault(model.training, set()).update(outputs)
        return loss_of(outputs, *names)

    monkeypatch.setattr(training, "loss_of", noting)
    args = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=2, max_steps=2, save_strategy="no", eval_strategy="steps",
        eval_steps=1, report_to="none", disable_tqdm=True, use_cpu=True, **options,
    )  # fmt: skip
    data = token_data(8, (3, 20))
    kind(model, args, data_collator=pad_tokens, train_dataset=data, eval_dataset=data).train()
    assert seen[True] == expected
    assert seen[False] >= {"loss", "logits"}


def test_a_model_without_a_loss_is_told_as_ever(tmp_path: Path) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), max_steps=1, bf16=True, report_to="none", use_cpu=True)
    trainer = Trainer(
        Returning(lambda loss: {"score": loss}), args, train_dataset=[{"x": torch.ones(2)} for _ in range(8)]
    )
    with pytest.raises(UsageError, match="returned no loss: got outputs score for the inputs x"):
        trainer.train()
