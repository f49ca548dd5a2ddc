"""Metrics that come batch by batch, and objects with update and compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.evaluation.sides import trainer
from tests.tiny import ClassData, TinyClassifier, TinyRegression
from torch import nn

import onward
from onward.errors import UsageError
from onward.loop.scoring import Streaming, is_streaming


class Accuracy:
    """As small as a streaming metric can be."""

    def __init__(self):
        self.hits = self.seen = 0
        self.largest_batch = 0

    def reset(self):
        self.hits = self.seen = 0

    def update(self, predictions, labels):
        assert isinstance(predictions, torch.Tensor)
        self.hits += int((predictions.argmax(-1) == labels).sum())
        self.seen += len(labels)
        self.largest_batch = max(self.largest_batch, len(labels))

    def compute(self):
        return torch.tensor(self.hits / self.seen)


def whole_accuracy(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def test_a_streaming_metric_gives_the_result_of_everything_at_once(tmp_path):
    metric = Accuracy()
    streamed = trainer(
        onward, TinyClassifier(), tmp_path, parts={"eval_dataset": ClassData(11), "compute_metrics": metric}
    )
    whole = trainer(
        onward, TinyClassifier(), tmp_path, parts={"eval_dataset": ClassData(11), "compute_metrics": whole_accuracy}
    )
    for _ in range(2):  # a second evaluation begins anew
        assert streamed.evaluate()["eval_accuracy"] == pytest.approx(whole.evaluate()["eval_accuracy"], abs=1e-6)
        assert metric.seen == 11
    assert metric.largest_batch == 4


def test_a_streaming_metric_keeps_nothing_in_evaluation_but_prediction_returns_all(tmp_path):
    parts = {"eval_dataset": ClassData(11), "compute_metrics": Accuracy()}
    subject = trainer(onward, TinyClassifier(), tmp_path, parts=parts)
    output = subject.evaluation_loop(subject.get_eval_dataloader(), description="Evaluation")
    assert (output.predictions, output.label_ids) == (None, None)
    assert output.metrics["eval_accuracy"] <= 1
    predicted = subject.predict(ClassData(11))
    assert predicted.predictions.shape == (11, 3)
    assert predicted.metrics["test_accuracy"] == output.metrics["eval_accuracy"]


def test_without_a_metric_no_logits_are_kept_whatever_the_step_returns(tmp_path):
    class Chatty(onward.Trainer):
        def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
            return super().prediction_step(model, inputs, False, ignore_keys)

    subject = Chatty(
        TinyClassifier(),
        onward.TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True),
        eval_dataset=ClassData(5),
        preprocess_logits_for_metrics=lambda logits, labels: pytest.fail("nobody wants logits"),
    )
    output = subject.evaluation_loop(subject.get_eval_dataloader(), "Evaluation", prediction_loss_only=True)
    assert output.predictions is None
    assert output.label_ids is None
    assert "eval_loss" in output.metrics


def test_metrics_of_torchmetrics_are_streamed(tmp_path):
    from torchmetrics import MetricCollection
    from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

    def evaluated(metric, **options):
        parts = {"eval_dataset": ClassData(11), "compute_metrics": metric}
        return trainer(onward, TinyClassifier(), tmp_path, parts=parts, **options)

    expected = evaluated(whole_accuracy).evaluate()["eval_accuracy"]
    alone = evaluated(MulticlassAccuracy(num_classes=3, average="micro"))
    several = MetricCollection(
        {"accuracy": MulticlassAccuracy(3, average="micro"), "f1": MulticlassF1Score(3, average=None)}
    )
    both = evaluated(several)
    for _ in range(2):  # a second evaluation begins anew
        assert alone.evaluate()["eval_multiclass_accuracy"] == pytest.approx(expected, abs=1e-6)
        metrics = both.evaluate()
        assert metrics["eval_accuracy"] == pytest.approx(expected, abs=1e-6)
        assert len(metrics["eval_f1"]) == 3


def test_a_module_as_metric_is_moved_and_does_not_sum_over_processes_again():
    class Counter(nn.Module):  # shaped like a metric of torchmetrics
        def __init__(self):
            super().__init__()
            self.sync_on_compute = True
            self.register_buffer("total", torch.zeros(()))

        def reset(self):
            self.total.zero_()

        def update(self, predictions, labels):
            self.total += len(labels)

        def compute(self):
            assert not self.sync_on_compute
            return {"total": self.total, "each": torch.arange(3)}

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Counter()
            self.update, self.reset, self.compute = self.inner.update, self.inner.reset, self.inner.compute

    metric = Both().double()
    scorer = Streaming(metric, torch.device("cpu"))
    from onward.loop.scoring import Batch

    scorer.take(Batch(predictions=torch.zeros(3, 2), labels=torch.zeros(3)), is_last=False)
    scorer.take(Batch(predictions=None, labels=torch.zeros(3)), is_last=True)
    assert scorer.metrics(Batch()) == {"total": 3.0, "each": [0, 1, 2]}
    assert metric.inner.sync_on_compute


@pytest.mark.parametrize(
    ("metric", "answer"),
    [
        (Accuracy(), True),
        (whole_accuracy, False),
        ({}, False),
        (dict, False),
        (object(), False),
        (len, False),
        (Accuracy, False),
    ],
)
def test_what_is_a_streaming_metric(metric, answer):
    assert is_streaming(metric) is answer


def test_a_single_value_goes_by_the_name_of_its_class():
    class MulticlassF1Score(Accuracy):
        pass

    scorer = Streaming(MulticlassF1Score(), torch.device("cpu"))
    scorer._metric.seen = 1
    assert scorer.metrics(None) == {"multiclass_f1_score": 0.0}


def test_batches_one_by_one_are_told_which_is_the_last(tmp_path):
    told = []

    def metric(prediction, compute_result):
        told.append((len(prediction.label_ids), compute_result))
        return {"seen": sum(count for count, _ in told)} if compute_result else {}

    subject = trainer(onward, TinyClassifier(), tmp_path, parts={"compute_metrics": metric}, batch_eval_metrics=True)
    prepared = subject.get_eval_dataloader(ClassData(10))
    assert subject.evaluation_loop(prepared, "Evaluation").metrics["eval_seen"] == 10
    assert told == [(4, False), (4, False), (2, True)]
    told.clear()
    plain = torch.utils.data.DataLoader(ClassData(8), batch_size=4)  # transformers would never say that it is the last
    assert subject.evaluation_loop(plain, "Evaluation").metrics["eval_seen"] == 8
    assert told == [(4, False), (4, True)]


def test_an_empty_loader_has_no_metrics(tmp_path):
    subject = trainer(onward, TinyRegression(), tmp_path, parts={"compute_metrics": whole_accuracy})
    output = subject.evaluation_loop(torch.utils.data.DataLoader([], batch_size=4), "Evaluation")
    assert set(output.metrics) == {"eval_model_preparation_time"}
    assert output.num_samples == 0


@pytest.mark.parametrize("returned", [None, 0.5, [("accuracy", 1)]])
def test_a_metric_that_returns_no_dictionary_is_an_error_that_says_so(tmp_path, returned):
    parts = {"eval_dataset": ClassData(3), "compute_metrics": lambda prediction: returned}
    subject = trainer(onward, TinyClassifier(), tmp_path, parts=parts)
    with pytest.raises(UsageError, match=f"returned {type(returned).__name__}, expected a dictionary"):
        subject.evaluate()


def test_numbers_of_numpy_and_torch_become_plain(tmp_path):
    import json

    parts = {
        "eval_dataset": ClassData(3),
        "compute_metrics": lambda prediction: {"a": np.float32(0.5), "b": torch.tensor([2]), "c": {"d": np.int64(3)}},
    }
    metrics = trainer(onward, TinyClassifier(), tmp_path, parts=parts).evaluate()
    assert json.loads(json.dumps(metrics))["eval_c"] == {"d": 3}
