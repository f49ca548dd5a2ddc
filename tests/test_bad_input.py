"""Bad input is told apart before any work is lost: what was got, what was expected, what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from onward import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from onward.errors import CheckpointError, CheckpointMismatch, DataError, MissingDependency, UnknownMetric, UsageError
from tests.tiny import RegressionData, RegressionStream, TinyRegression, tiny_llama, token_data


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


def test_a_folder_without_a_name() -> None:
    args = TrainingArguments(output_dir="", report_to="none")
    with pytest.raises(UsageError, match="output_dir got ''"):
        Trainer(TinyRegression(), args)


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


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"model": "gpt2"}, r"model got 'gpt2' \(str\); expected an nn.Module"),
        ({"model": TinyRegression}, "model got the class TinyRegression"),
        ({"args": {"output_dir": "x"}}, "args got dict; expected TrainingArguments"),
        ({"callbacks": EarlyStoppingCallback()}, "expected a list of callbacks"),
        ({"callbacks": ["tensorboard"]}, "callbacks got 'tensorboard'"),
        ({"optimizers": None}, r"optimizers got NoneType; expected a pair"),
        ({"compute_metrics": "accuracy"}, "compute_metrics got 'accuracy'"),
        ({"tokenizer": None}, "It is now: processing_class"),
        ({"train_datset": None}, "Did you mean 'train_dataset'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_part_that_is_no_such_thing(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none")
    with pytest.raises(UsageError, match=message):
        Trainer(**{"model": TinyRegression(), "args": args, **parts})


def test_an_optimizer_of_another_model(tmp_path: Path) -> None:
    other = torch.optim.SGD(TinyRegression().parameters(), lr=0.1)
    with pytest.raises(UsageError, match="none of the model's parameters"):
        trainer(tmp_path, train_dataset=RegressionData(8), optimizers=(other, None))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("wikitext", r"datasets.load_dataset\('wikitext'\)"),
        ({"train": RegressionData(8), "test": RegressionData(8)}, "a dictionary of train, test: pass one"),
        (DataLoader(RegressionData(8)), "is of type DataLoader"),
        ((row for row in RegressionData(8)), "a generator in"),
        (8, "is of type int"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_data_set(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        trainer(tmp_path, train_dataset=data, max_steps=1).train()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "evaluation data is empty"),
        ({}, "empty dictionary"),
        ({"a": RegressionData(4), "b": []}, r"evaluation \(b\) data is empty"),
        ("validation", "is of type str"),
    ],
    ids=["empty", "no sets", "one set empty", "a name"],
)
def test_evaluation_data_is_looked_at_before_training(tmp_path: Path, data: Any, message: str) -> None:
    subject = trainer(
        tmp_path, train_dataset=RegressionData(8), eval_dataset=data, eval_strategy="steps", eval_steps=9, max_steps=9
    )
    with pytest.raises(DataError, match=message):
        subject.train()
    assert subject.state.global_step == 0


def test_an_evaluation_set_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a dictionary of fine, good"):
        trainer(tmp_path, eval_dataset={"fine": RegressionData(4), "good": RegressionData(4)}).evaluate("best")
    with pytest.raises(DataError, match="NoneType"):
        trainer(tmp_path).predict(None)


@pytest.mark.parametrize("batch", [None, (torch.zeros(2, 4),), [{"x": torch.zeros(4)}]], ids=lambda v: type(v).__name__)
def test_a_collator_that_returns_no_dictionary(tmp_path: Path, batch: Any) -> None:
    subject = trainer(tmp_path, train_dataset=RegressionData(8), data_collator=lambda samples: batch)
    with pytest.raises(DataError, match=f"data_collator returned {type(batch).__name__}"):
        subject.train()


def test_labels_that_are_missing_are_named(tmp_path: Path) -> None:
    samples = [{"x": torch.zeros(4), "target": torch.tensor(1.0)}] * 8
    with pytest.raises(UsageError, match="The labels that its forward takes: labels"):
        trainer(tmp_path, train_dataset=samples).train()


class Odd(TinyRegression):
    """Returns whatever `change` makes of its outputs."""

    change: Any

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        return type(self).change(super().forward(x, labels))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda outputs: outputs["logits"], r"got a tensor of shape \(8,\)"),
        (lambda outputs: None, "got None"),
        (lambda outputs: (outputs["logits"], outputs["loss"]), r"a loss of shape \(8,\).*labels are missing"),
        (lambda outputs: {"loss": outputs["loss"].detach()}, "without a gradient"),
        (lambda outputs: {"loss": 1.0}, "of type float"),
    ],
    ids=["logits", "none", "swapped", "detached", "number"],
)
def test_a_loss_that_cannot_be_trained_on(tmp_path: Path, change: Any, message: str) -> None:
    model = type("Odder", (Odd,), {"change": staticmethod(change)})()
    with pytest.raises(UsageError, match=message):
        trainer(tmp_path, model, train_dataset=RegressionData(8)).train()


def test_a_loss_of_one_number_in_a_row_is_a_loss(tmp_path: Path) -> None:
    model = type("Row", (Odd,), {"change": staticmethod(lambda outputs: {"loss": outputs["loss"].reshape(1)})})()
    plain = trainer(tmp_path / "a", train_dataset=RegressionData(16), max_steps=2).train()
    assert trainer(tmp_path / "b", model, train_dataset=RegressionData(16), max_steps=2).train()[:2] == plain[:2]


def test_a_metric_that_comes_from_nowhere_is_told_before_training(tmp_path: Path) -> None:
    subject = trainer(
        tmp_path,
        train_dataset=RegressionData(8),
        eval_dataset={"one": RegressionData(8), "two": RegressionData(8)},
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
    )
    with pytest.raises(UnknownMetric, match="eval_one_loss"):
        subject.train()
    assert subject.state.global_step == 0


def test_a_metric_that_proves_missing_costs_no_work(tmp_path: Path) -> None:
    def run(folder: Path, metric: str, resume: bool = False) -> Trainer:
        subject = trainer(
            folder,
            train_dataset=RegressionData(16),
            eval_dataset=RegressionData(8),
            compute_metrics=lambda prediction: {"mae": float(abs(prediction.predictions).mean())},
            eval_strategy="steps",
            eval_steps=3,
            save_steps=3,
            max_steps=4,
            load_best_model_at_end=True,
            metric_for_best_model=metric,
        )
        subject.train(resume_from_checkpoint=resume)
        return subject

    with pytest.raises(UnknownMetric, match="'eval_mse'; there is epoch, eval_loss, eval_mae"):
        run(tmp_path / "wrong", "mse")
    assert (tmp_path / "wrong" / "checkpoint-3").is_dir()
    corrected, right = run(tmp_path / "wrong", "mae", resume=True), run(tmp_path / "right", "mae")
    assert corrected.state.best_metric == right.state.best_metric
    for name, weight in right.model.state_dict().items():
        assert torch.equal(weight, corrected.model.state_dict()[name])


def test_overflow_is_looked_for_where_it_is_asked_for(tmp_path: Path) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("inf")
    subject = trainer(tmp_path, model, train_dataset=token_data(8), debug="underflow_overflow", max_steps=1)
    with pytest.raises(ValueError, match="DebugUnderflowOverflow: inf/nan detected"):
        subject.train()


def test_a_token_id_beyond_the_vocabulary(tmp_path: Path) -> None:
    data = token_data(16)
    data[2]["input_ids"][5] = 70
    options: dict[str, Any] = {"per_device_train_batch_size": 4, "train_sampling_strategy": "sequential"}
    wanted = r"Sample 2 .*token id 70 at position 5; expected ids from 0 to 63.*resize_token_embeddings"
    with pytest.raises(DataError, match=wanted):
        trainer(tmp_path, tiny_llama(), train_dataset=data, **options).train()
    with pytest.raises(DataError, match=wanted):
        trainer(tmp_path, tiny_llama(), eval_dataset=data).evaluate()


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 3},
        {"train_sampling_strategy": "group_by_length", "dataloader_num_workers": 1},
        {"max_steps": 12, "gradient_accumulation_steps": 2},  # found in the second epoch
    ],
    ids=["accumulated", "grouped, by a worker", "in a later epoch"],
)
def test_where_such_a_token_stands_in_the_data(options: dict[str, Any], tmp_path: Path) -> None:
    data = token_data(22)
    subject = trainer(tmp_path, tiny_llama(), train_dataset=data, per_device_train_batch_size=4, **options)

    class Spoil(TrainerCallback):
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.epoch == ("max_steps" in options):
                data[17]["input_ids"][5] = 70

    subject.add_callback(Spoil())
    with pytest.raises(DataError, match=r"Sample \d of this batch \(the one at index 17 of the training data\) has"):
        subject.train()


def test_no_place_is_named_that_nobody_knows(tmp_path: Path) -> None:
    from transformers import DataCollatorWithFlattening

    good, bad = token_data(8), token_data(8)
    bad[5]["input_ids"][5] = 70
    evaluating = {"eval_dataset": bad, "eval_strategy": "steps", "eval_steps": 1}
    one_row = {"data_collator": DataCollatorWithFlattening(), "train_dataset": bad, "remove_unused_columns": False}
    for options in ({"train_dataset": good, **evaluating}, one_row):
        with pytest.raises(DataError, match=r"Sample \d of this batch has the token id 70"):
            trainer(tmp_path, tiny_llama(), per_device_train_batch_size=4, **options).train()


def test_words_for_the_compiler(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"torch_compile_mode got 'reduce-overhaed'.*id you mean 'reduce-overhead'"):
        trainer(tmp_path, torch_compile_mode="reduce-overhaed")
    with pytest.raises(UsageError, match=r"torch_compile_backend got 'inductr'.*id you mean 'inductor'"):
        trainer(tmp_path, torch_compile_backend="inductr")


def test_an_output_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"output_dir got .*file is a file; expected a folder"):
        trainer(tmp_path / "file" / "run", train_dataset=RegressionData())
