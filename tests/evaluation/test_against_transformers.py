"""The same results as transformers, to the bit."""

from __future__ import annotations

import pytest
import torch
from tests.evaluation.sides import assert_same, both, timeless, trainer
from tests.tiny import (
    ClassData,
    RegressionData,
    RegressionStream,
    TinyClassifier,
    TinyRegression,
    pad_tokens,
    tiny_classifier,
    tiny_llama,
    token_data,
)
from torch import nn
from torch.utils.data import Dataset


class Seen:
    """A `compute_metrics` that reports everything it was handed."""

    def __init__(self):
        self.calls = []

    def __call__(self, prediction, compute_result=None):
        self.calls.append((*prediction, compute_result))
        return {"rows": len(prediction.predictions), "eval_own": 1.5, "calls": len(self.calls)}


class Samples(Dataset):
    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


class ManyOutputs(nn.Module):
    """Returns a tuple: loss, logits of a length that differs from batch to batch, and a pair."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x, labels=None):
        length = int(x[0, 0].abs() * 3) + 1
        logits = self.weight * x[:, :1, None].expand(-1, length, 2)
        outputs = (logits, (x[:, 0], x[:, 1:]))
        return outputs if labels is None else (logits.mean(), *outputs)


class TensorOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x)


class SelfScoring(nn.Module):
    """Returns a loss without being given labels, as models of the CLIP kind do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x, return_loss=True):
        logits = self.layer(x)
        return {"loss": logits.square().mean(), "logits": logits, "extra": logits[:, 0]}


class Batched(Dataset):
    """A set without a loss value that is finite everywhere."""

    def __init__(self, n, bad):
        self.data, self.bad = RegressionData(n), bad

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        sample = dict(self.data[index])
        if index in self.bad:
            sample["labels"] = torch.tensor(float("nan"))
        return sample


def evaluated(model, data, *, prefix="eval", also_predict=True, parts=None, watch=True, cls="Trainer", **changes):
    """A scenario: evaluate, then predict; returns metrics, arrays and what the metric saw."""

    def scenario(lib, folder):
        seen = Seen() if watch else None
        own = {"eval_dataset": data, "compute_metrics": seen, **(parts or {})}
        subject = trainer(lib, model(), folder, cls=cls, parts=own, **changes)
        metrics = subject.evaluate(metric_key_prefix=prefix)
        found = [timeless(metrics), subject.state.log_history[-1]["step"]]
        if also_predict:
            output = subject.predict(data if not isinstance(data, dict) else next(iter(data.values())))
            found += [output.predictions, output.label_ids, timeless(output.metrics)]
        return [*found, [] if seen is None else seen.calls]

    return scenario


def first_class(logits, labels):
    return logits[..., :1]


LABELLED = Samples([{**sample, "labels": number % 3} for number, sample in enumerate(token_data(7))])
HALVES = Samples([{"x": sample["x"].half(), "labels": sample["labels"]} for sample in ClassData(6)])
FIRST_CLASS = {"preprocess_logits_for_metrics": first_class}

SCENARIOS = {
    "plain module": evaluated(TinyRegression, RegressionData(12)),
    "short last batch": evaluated(TinyClassifier, ClassData(11)),
    "one sample": evaluated(TinyClassifier, ClassData(1)),
    "one batch": evaluated(TinyClassifier, ClassData(4)),
    "no metric": evaluated(TinyClassifier, ClassData(11), watch=False),
    "own prefix": evaluated(TinyClassifier, ClassData(5), prefix="own"),
    "loss only": evaluated(TinyClassifier, ClassData(11), prediction_loss_only=True),
    "losses and inputs": evaluated(tiny_classifier, LABELLED, include_for_metrics=["inputs", "loss"]),
    "losses alone": evaluated(TinyClassifier, ClassData(7), include_for_metrics=["loss"]),
    "preprocessed logits": evaluated(TinyClassifier, ClassData(7), parts=FIRST_CLASS),
    "accumulation steps": evaluated(TinyClassifier, ClassData(15), eval_accumulation_steps=2),
    "lists of batches": evaluated(TinyClassifier, ClassData(11), eval_do_concat_batches=False),
    "lists of batches of different length": evaluated(ManyOutputs, RegressionData(11), eval_do_concat_batches=False),
    "lists of batches, with losses and inputs": evaluated(tiny_classifier, LABELLED, eval_do_concat_batches=False,
                                                          include_for_metrics=["inputs", "loss"]),
    "several sets": evaluated(TinyClassifier, {"one": ClassData(5), "two": ClassData(6, seed=1)}),
    "padded lengths": evaluated(tiny_llama, Samples(token_data(10, (3, 9))), parts={"data_collator": pad_tokens}),
    "padded lengths, moved": evaluated(tiny_llama, Samples(token_data(10, (3, 9))), parts={"data_collator": pad_tokens},
                                       eval_accumulation_steps=1),
    "hidden states": evaluated(lambda: tiny_llama(output_hidden_states=True), Samples(token_data(6, 5))),
    "tuple outputs": evaluated(ManyOutputs, RegressionData(10)),
    "loss without labels": evaluated(SelfScoring, RegressionData(9), remove_unused_columns=True, watch=False),
    "loss that is not finite": evaluated(TinyRegression, Batched(12, {5})),
    "loss that is not finite, unfiltered": evaluated(TinyRegression, Batched(12, {5}), logging_nan_inf_filter=False),
    "no finite loss": evaluated(TinyRegression, Batched(4, {1})),
    "label smoothing": evaluated(tiny_llama, Samples(token_data(6, 5)), label_smoothing_factor=0.1),
    "bf16": evaluated(tiny_llama, Samples(token_data(6, 5)), bf16=True),
    "bf16 in full": evaluated(tiny_llama, Samples(token_data(6, 5)), bf16_full_eval=True),
    "fp16 in full": evaluated(TinyClassifier, HALVES, fp16_full_eval=True),
    "workers": evaluated(TinyClassifier, ClassData(7), dataloader_num_workers=1),
    "dropped last batch": evaluated(TinyClassifier, ClassData(11), dataloader_drop_last=True),
    "batches one by one": evaluated(TinyClassifier, ClassData(11), batch_eval_metrics=True,
                                    include_for_metrics=["loss"]),
    "objects": evaluated(TinyClassifier, ClassData(7), eval_use_gather_object=True),
    "sequence to sequence without generation": evaluated(tiny_llama, Samples(token_data(6, 5)), cls="Seq2SeqTrainer"),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENARIOS)
def test_evaluation_is_that_of_transformers(name, tmp_path):
    ours, theirs = both(SCENARIOS[name], tmp_path)
    assert_same(ours, theirs)


def test_a_stream_without_length(tmp_path):
    def scenario(lib, folder):
        seen = Seen()
        parts = {"eval_dataset": RegressionStream(11), "compute_metrics": seen}
        subject = trainer(lib, TinyRegression(), folder, parts=parts)
        return [timeless(subject.evaluate()), seen.calls]

    assert_same(*both(scenario, tmp_path))


def test_a_loader_that_knows_nothing_of_accelerate(tmp_path):
    def scenario(lib, folder):
        seen = Seen()
        subject = trainer(lib, TinyClassifier(), folder, parts={"compute_metrics": seen})
        loader = torch.utils.data.DataLoader(ClassData(8), batch_size=4)
        output = subject.evaluation_loop(loader, description="Evaluation")
        return [timeless(output.metrics), output.num_samples, output.predictions, output.label_ids, seen.calls]

    assert_same(*both(scenario, tmp_path))


def test_a_batch_metric_that_returns_nothing(tmp_path):
    def scenario(lib, folder):
        parts = {"eval_dataset": ClassData(6), "compute_metrics": lambda prediction, compute_result: None}
        return timeless(trainer(lib, TinyClassifier(), folder, parts=parts, batch_eval_metrics=True).evaluate())

    assert_same(*both(scenario, tmp_path))


def test_a_metric_that_can_be_called_is_called_whatever_else_it_can_do(tmp_path):
    class Rows:
        def __init__(self):
            self.rows = 0

        def update(self, rows):
            self.rows += rows

        def compute(self):
            return {"rows": self.rows}

        def __call__(self, prediction):
            self.update(len(prediction.predictions))
            return self.compute()

    def scenario(lib, folder):
        parts = {"eval_dataset": ClassData(6), "compute_metrics": Rows()}
        return timeless(trainer(lib, TinyClassifier(), folder, parts=parts).evaluate())

    assert_same(*both(scenario, tmp_path))


def test_a_step_that_returns_predictions_unasked_is_believed_in_predict(tmp_path):
    def scenario(lib, folder):
        class Unasked(lib.Trainer):
            def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
                return super().prediction_step(model, inputs, False, ignore_keys)

        args = lib.TrainingArguments(str(folder), report_to=[], use_cpu=True, prediction_loss_only=True)
        output = Unasked(TinyClassifier(), args).predict(ClassData(5))
        return [output.predictions, output.label_ids, timeless(output.metrics)]

    assert_same(*both(scenario, tmp_path))


def test_keys_that_are_no_predictions(tmp_path):
    def scenario(lib, folder):
        subject = trainer(lib, SelfScoring(), folder)
        kept = subject.predict(RegressionData(5), ignore_keys=["extra"])
        return [kept.predictions, subject.predict(RegressionData(5), ignore_keys=[]).predictions]

    ours, theirs = both(scenario, tmp_path)
    assert_same(ours, theirs)
    assert ours[0].shape == (5, 2)


def test_evaluation_within_training(tmp_path):
    def scenario(lib, folder):
        seen = Seen()
        parts = {"eval_dataset": ClassData(7, seed=1), "train_dataset": ClassData(8), "compute_metrics": seen}
        subject = trainer(
            lib, TinyClassifier(dropout=0.1), folder, parts=parts, max_steps=6, eval_strategy="steps", eval_steps=2,
            per_device_train_batch_size=4, save_strategy="no", logging_steps=1, eval_on_start=True,
        )  # fmt: skip
        subject.train()
        lines = [timeless(line) for line in subject.state.log_history if "eval_loss" in line]
        return [lines, seen.calls, timeless(subject.evaluate())]

    assert_same(*both(scenario, tmp_path))


def test_one_sample_of_a_bare_tensor_keeps_its_dimension(tmp_path):
    """transformers takes the one row of a batch of one for the one member of a tuple."""
    import onward

    data = Samples([{"x": torch.ones(4)} for _ in range(5)])
    model = TensorOutput()
    output = trainer(onward, model, tmp_path).predict(data)
    assert output.predictions.shape == (5, 2)
    assert output.label_ids is None
    assert "test_loss" not in output.metrics


class Boxes(nn.Module):
    """Finds things in an image: several outputs, and labels that are a list with an entry for each image."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, x, labels=None):
        logits = self.layer(x).view(len(x), 3, 2)
        loss = {} if labels is None else {"loss": logits.mean()}
        return {**loss, "logits": logits, "boxes": logits.repeat(1, 1, 2)}


def collate_boxes(samples):
    """The number of boxes of an image is that of its place in the batch."""
    labels = [{"boxes": torch.full((place + 1, 4), float(place))} for place in range(len(samples))]
    return {"x": torch.stack([sample["x"] for sample in samples]), "labels": labels}


@pytest.mark.parametrize("changes", [{}, {"eval_do_concat_batches": False}, {"eval_use_gather_object": True}])
def test_the_labels_of_images_are_whole(tmp_path, changes):
    """transformers cuts boxes and tuples to the size of the last batch, here 2, and zips lists of images."""
    import onward

    seen = Seen()
    parts = {"data_collator": collate_boxes, "compute_metrics": seen, "eval_dataset": RegressionData(6)}
    subject = trainer(onward, Boxes(), tmp_path, parts=parts, remove_unused_columns=False, **changes)
    output = subject.predict(RegressionData(6))
    subject.evaluate()
    for predictions, labels in (output[:2], seen.calls[-1][:2]):
        if "eval_do_concat_batches" in changes:
            assert [len(batch) for batch in predictions] == [2, 2]
            labels = [image for batch in labels for image in batch]
        else:
            assert [part.shape for part in predictions] == [(6, 3, 2), (6, 3, 4)]
        assert [image["boxes"].shape for image in labels] == [(1, 4), (2, 4), (3, 4), (4, 4), (1, 4), (2, 4)]
