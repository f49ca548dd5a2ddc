"""Bad input is told apart before any work is lost: what was got, what was expected, what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from onward import Trainer, TrainingArguments
from onward.errors import CheckpointError, CheckpointMismatch, DataError, MissingDependency, UsageError
from tests.tiny import RegressionData, RegressionStream, TinyRegression, tiny_llama


def trainer(folder: Path, model: nn.Module | None = None, **options: Any) -> Trainer:
    names = TrainingArguments.__dataclass_fields__
    settings = {name: options.pop(name) for name in list(options) if name in names}
    args = TrainingArguments(output_dir=str(folder), report_to="none", disable_tqdm=True, **settings)
    return Trainer(TinyRegression() if model is None else model, args, **options)


def test_no_data_and_no_loader(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Pass train_dataset="):
        trainer(tmp_path).train()
    with pytest.raises(DataError, match="eval_dataset"):
        trainer(tmp_path).evaluate()


def test_empty_data(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0 samples"):
        trainer(tmp_path, train_dataset=[]).train()


def test_columns_that_fit_nothing(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"text": ["a", "b"]})
    with pytest.raises(DataError) as caught:
        trainer(tmp_path, tiny_llama(), train_dataset=data).train()
    assert "[text]" in str(caught.value)
    assert "input_ids" in str(caught.value)


def test_keys_that_fit_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a sample has \[pixels\]"):
        trainer(tmp_path, train_dataset=[{"pixels": torch.zeros(4)}] * 8).train()


def test_a_stream_without_an_end(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="max_steps has to be specified"):
        trainer(tmp_path, train_dataset=RegressionStream())


def test_a_model_without_a_loss(tmp_path: Path) -> None:
    class Lossless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
            return {"logits": self.layer(x)}

    with pytest.raises(UsageError, match="no loss") as caught:
        trainer(tmp_path, Lossless(), train_dataset=RegressionData(8)).train()
    assert "logits" in str(caught.value)


def test_neither_or_both_of_model_and_model_init(tmp_path: Path) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none")
    with pytest.raises(UsageError, match="got neither"):
        Trainer(args=args)
    with pytest.raises(UsageError, match="got both"):
        Trainer(TinyRegression(), args, model_init=TinyRegression)
    with pytest.raises(UsageError, match="should not return None"):
        Trainer(args=args, model_init=lambda: None)  # type: ignore[arg-type, return-value]


def test_evaluation_without_data(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="eval_strategy is 'steps' but there is no eval_dataset"):
        trainer(tmp_path, eval_strategy="steps", eval_steps=1, train_dataset=RegressionData(8))


def test_a_metric_that_is_not_there(tmp_path: Path) -> None:
    unmeasured = trainer(
        tmp_path,
        train_dataset=RegressionData(8),
        eval_dataset=RegressionData(8),
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="best",
        metric_for_best_model="f1",
    )
    with pytest.raises(KeyError) as caught:
        unmeasured.train()
    assert "eval_f1" in str(caught.value)
    assert "eval_loss" in str(caught.value)


def test_two_optimizers(tmp_path: Path) -> None:
    model = TinyRegression()
    made = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UsageError, match="incompatible"):
        trainer(tmp_path, model, optimizers=(made, None), optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 0.1}))
    with pytest.raises(UsageError, match="each train\\(\\) makes a new model"):
        Trainer(
            args=TrainingArguments(output_dir=str(tmp_path), report_to="none"),
            model_init=TinyRegression,
            optimizers=(made, None),
        )


def test_an_optimizer_that_is_not_installed(tmp_path: Path) -> None:
    with pytest.raises(MissingDependency, match="pip install"):
        trainer(tmp_path, train_dataset=RegressionData(8), optim="galore_adamw", optim_target_modules=["body"]).train()


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        trainer(tmp_path, train_dataset=RegressionData(8)).train(resume_from_checkpoint=True)


def test_a_path_that_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-7").mkdir()
    with pytest.raises(CheckpointError, match="checkpoint-7"):
        trainer(tmp_path, train_dataset=RegressionData(8)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    with pytest.raises(CheckpointError, match="nowhere"):
        trainer(tmp_path, train_dataset=RegressionData(8)).train(resume_from_checkpoint=str(tmp_path / "nowhere"))


def test_other_data_than_the_run_saw(tmp_path: Path) -> None:
    common: dict[str, Any] = {"save_steps": 1, "max_steps": 3}
    trainer(tmp_path, train_dataset=RegressionData(32), **common).train()
    with pytest.raises(CheckpointMismatch, match="32 in the checkpoint, 40 now"):
        trainer(tmp_path, train_dataset=RegressionData(40), **common | {"max_steps": 5}).train(
            resume_from_checkpoint=True
        )
    went_on = trainer(
        tmp_path, train_dataset=RegressionData(40), **common | {"max_steps": 5}, allow_resume_mismatch=True
    )
    assert went_on.train(resume_from_checkpoint=True).global_step == 5


def test_changed_arguments_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(tmp_path, train_dataset=RegressionData(32), save_steps=1, max_steps=2).train()
    trainer(tmp_path, train_dataset=RegressionData(32), save_steps=1, max_steps=3, learning_rate=0.5).train(
        resume_from_checkpoint=True
    )
    assert "learning_rate: 5e-05 → 0.5" in caplog.text


def test_a_model_init_with_two_arguments(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0 or 1 argument"):
        Trainer(args=TrainingArguments(output_dir=str(tmp_path), report_to="none"), model_init=lambda a, b: None)  # type: ignore[arg-type]


def test_a_name_that_the_package_does_not_have() -> None:
    import onward

    with pytest.raises(AttributeError, match="Did you mean 'Trainer'"):
        onward.Trainr  # noqa: B018
