"""What people override, what a metric decides, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.evaluation.sides import trainer
from tests.tiny import ClassData, RegressionData, TinyClassifier, TinyRegression

import onward
from onward.errors import DataError, UsageError
from onward.hooks.evaluation import watched_metric


def make(folder, cls="Trainer", **changes):
    parts = {"eval_dataset": RegressionData(6), "train_dataset": RegressionData(8), **changes.pop("parts", {})}
    return trainer(onward, TinyRegression(), folder, parts=parts, cls=cls, **changes)


def test_a_metric_that_is_not_there_is_an_error_that_lists_what_there_is(tmp_path):
    subject = make(tmp_path, eval_strategy="epoch", save_strategy="no", metric_for_best_model="accuracy", max_steps=2)
    with pytest.raises(UsageError, match=r"metric_for_best_model='accuracy'.*'eval_accuracy'; there is .*eval_loss"):
        subject.train()


def test_a_metric_by_nearly_the_right_name_is_suggested():
    with pytest.raises(UsageError, match=r"Did you mean 'eval_accuracy'\?"):
        watched_metric({"eval_accuracy": 1.0, "eval_loss": 2.0}, "acuracy")
    assert watched_metric({"eval_accuracy": 1.0}, "accuracy") == 1.0
    assert watched_metric({"eval_accuracy": 1.0}, "eval_accuracy") == 1.0
    assert watched_metric({"eval_loss": 2.0}, None) == 2.0


@pytest.mark.parametrize(("greater", "values", "bests"), [
    (True, [0.5, 0.4, 0.6, 0.6], [True, False, True, False]),
    (False, [0.5, 0.4, 0.6, float("nan")], [True, True, False, False]),
])  # fmt: skip
@pytest.mark.parametrize("strategy", ["no", "steps"])
def test_the_best_metric_is_remembered(tmp_path, greater, values, bests, strategy):
    subject = make(
        tmp_path, metric_for_best_model="score", greater_is_better=greater, save_strategy=strategy, eval_strategy="no"
    )
    for step, (value, best) in enumerate(zip(values, bests, strict=True), start=1):
        subject.state.global_step = step
        assert subject._determine_best_metric({"eval_score": value}, None) is best
    last = max(step for step, best in enumerate(bests, start=1) if best)
    assert subject.state.best_metric == values[last - 1]
    assert subject.state.best_global_step == (last if strategy == "steps" else None)


def test_without_a_watched_metric_nothing_is_best(tmp_path):
    subject = make(tmp_path)
    assert subject._determine_best_metric({"eval_loss": 0.1}, None) is False
    assert subject.state.best_metric is None


def test_a_schedule_that_waits_for_a_metric_steps_at_evaluations(tmp_path):
    subject = make(
        tmp_path, lr_scheduler_type="reduce_lr_on_plateau", lr_scheduler_kwargs={"patience": 0, "factor": 0.5},
        eval_strategy="steps", eval_steps=1, max_steps=4, save_strategy="no", learning_rate=1.0,
        metric_for_best_model="worse", greater_is_better=False, eval_on_start=True,
        parts={"compute_metrics": iter_metric()},
    )  # fmt: skip
    subject.train()
    # the evaluation at the start does not step it; the first after it sets the mark, the others are worse
    assert subject.lr_scheduler.get_last_lr()[0] == pytest.approx(1.0 * 0.5**3)


def iter_metric():
    values = iter(range(100))
    return lambda prediction: {"worse": float(next(values))}


def test_evaluation_is_no_training_time(tmp_path):
    import time

    subject = make(tmp_path, eval_strategy="steps", eval_steps=1, max_steps=3, save_strategy="no", parts={
        "compute_metrics": lambda prediction: time.sleep(0.2) or {}})  # fmt: skip
    began = time.monotonic()
    subject.train()
    took = time.monotonic() - began
    assert took > 0.6
    assert subject.meters.train_seconds < took - 0.55


def test_every_hook_is_called_on_the_instance(tmp_path):
    calls = []

    class Own(onward.Trainer):
        def get_eval_dataloader(self, eval_dataset=None):
            calls.append("get_eval_dataloader")
            return super().get_eval_dataloader(eval_dataset)

        def evaluation_loop(self, dataloader, description, prediction_loss_only=None, ignore_keys=None,
                            metric_key_prefix="eval"):  # fmt: skip
            calls.append((description, prediction_loss_only, ignore_keys, metric_key_prefix))
            return super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )

        def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
            calls.append("prediction_step")
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            calls.append("compute_loss")
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

        def log(self, logs, start_time=None):
            calls.append("log")
            super().log(logs, start_time)

    args = onward.TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True)
    subject = Own(TinyRegression(), args, eval_dataset=RegressionData(4))
    subject._prepare_inputs = lambda inputs, plain=subject._prepare_inputs: (
        calls.append("_prepare_inputs") or plain(inputs)
    )
    subject.evaluate(ignore_keys=["extra"], metric_key_prefix="own")
    assert calls == [
        "get_eval_dataloader", ("Evaluation", True, ["extra"], "own"), "prediction_step", "_prepare_inputs",
        "compute_loss", "log",
    ]  # fmt: skip


def test_events_of_an_evaluation_in_their_order(tmp_path):
    events = []

    class Trace(onward.TrainerCallback):
        def on_prediction_step(self, args, state, control, **kwargs):
            events.append("prediction_step")

        def on_log(self, args, state, control, logs=None, **kwargs):
            events.append("log")

        def on_evaluate(self, args, state, control, metrics=None, **kwargs):
            events.append(("evaluate", "eval_runtime" in metrics))

        def on_predict(self, args, state, control, metrics=None, **kwargs):
            events.append(("predict", "test_runtime" in metrics))

    subject = make(tmp_path, parts={"callbacks": [Trace]})
    subject.evaluate()
    subject.predict(RegressionData(2))
    assert events == [
        "prediction_step",
        "prediction_step",
        "log",
        ("evaluate", True),
        "prediction_step",
        ("predict", True),
    ]


def test_the_model_is_in_evaluation_mode_and_training_puts_it_back(tmp_path):
    modes = []

    class Watch(TinyRegression):
        def forward(self, x, labels=None):
            modes.append(self.training)
            return super().forward(x, labels)

    args = onward.TrainingArguments(
        str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True, max_steps=2, eval_strategy="steps", eval_steps=1,
        save_strategy="no",
    )  # fmt: skip
    onward.Trainer(Watch(), args, train_dataset=RegressionData(8), eval_dataset=RegressionData(4)).train()
    assert modes == [True, False, True, False]


def test_an_optimizer_with_two_faces_shows_the_one_for_evaluation(tmp_path):
    class TwoFaced(torch.optim.SGD):
        faces = []

        def train(self):
            self.faces.append("train")

        def eval(self):
            self.faces.append("eval")

    model = TinyRegression()
    args = onward.TrainingArguments(
        str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True, max_steps=1, eval_strategy="steps", eval_steps=1,
        save_strategy="no",
    )  # fmt: skip
    optimizer = TwoFaced(model.parameters(), lr=0.1)
    onward.Trainer(
        model, args, train_dataset=RegressionData(8), eval_dataset=RegressionData(4), optimizers=(optimizer, None)
    ).train()
    assert TwoFaced.faces == ["train", "eval"]


def test_memory_figures_come_on_request(tmp_path):
    subject = make(tmp_path, skip_memory_metrics=False)
    metrics = subject.evaluate()
    assert {"init_mem_cpu_alloc_delta", "eval_mem_cpu_peaked_delta", "before_init_mem_cpu"} <= set(metrics)
    assert "test_mem_cpu_alloc_delta" in subject.predict(RegressionData(2)).metrics
    assert not any("mem_cpu" in key for key in make(tmp_path).evaluate())


def test_nothing_to_evaluate_on_is_an_error(tmp_path):
    subject = trainer(onward, TinyRegression(), tmp_path)
    with pytest.raises(DataError, match="eval_dataset"):
        subject.evaluate()


def test_several_sets_can_be_scored_by_one_of_them(tmp_path):
    sets = {"near": ClassData(5), "far": ClassData(6, seed=1)}
    parts = {"eval_dataset": sets, "train_dataset": ClassData(8)}
    subject = trainer(
        onward, TinyClassifier(), tmp_path, parts=parts, eval_strategy="steps", eval_steps=1, max_steps=2,
        save_strategy="no", metric_for_best_model="eval_far_loss", greater_is_better=False,
    )  # fmt: skip
    subject.train()
    losses = [line["eval_far_loss"] for line in subject.state.log_history if "eval_far_loss" in line]
    assert subject.state.best_metric == min(losses)
    assert len(losses) == 2


def test_one_of_several_sets_can_be_named(tmp_path):
    subject = trainer(onward, TinyClassifier(), tmp_path, parts={"eval_dataset": {"near": ClassData(5)}})
    whole = subject.evaluate()
    named = subject.evaluate("near")
    assert named["eval_loss"] == whole["eval_near_loss"]


def test_a_gathering_of_ones_own_lasts_for_one_evaluation(tmp_path):
    subject = make(tmp_path, parts={"eval_dataset": RegressionData(8)})
    plain = subject.gather_function(torch.ones(1))
    subject.gather_function = lambda nest: nest * 2
    doubled = subject.evaluate()["eval_loss"]
    assert doubled == pytest.approx(2 * subject.evaluate()["eval_loss"])
    assert torch.equal(subject.gather_function(torch.ones(1)), plain)


def test_a_failed_evaluation_leaves_no_gathering_behind(tmp_path):
    def fails(prediction):
        raise ZeroDivisionError

    subject = make(tmp_path, parts={"compute_metrics": fails})
    subject.gather_function = own = lambda nest: nest
    with pytest.raises(ZeroDivisionError):
        subject.evaluate()
    assert subject.gather_function is not own


def test_a_step_may_return_losses_of_each_sample(tmp_path):
    class PerSample(onward.Trainer):
        def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
            return inputs["labels"], None, None

    args = onward.TrainingArguments(
        str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True, per_device_eval_batch_size=3
    )
    data = RegressionData(6)
    metrics = PerSample(TinyRegression(), args, eval_dataset=data).evaluate()
    np.testing.assert_allclose(metrics["eval_loss"], float(data.labels.mean()), rtol=1e-5)
