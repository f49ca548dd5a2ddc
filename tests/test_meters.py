import time
from types import SimpleNamespace

import pytest
import torch

from onward import meters as meters_module
from onward.meters import MAX_POSITIONS, Meters, speed_metrics
from onward.types import StepPlace


def text_batch(mask_rows):
    mask = torch.tensor(mask_rows)
    return {"input_ids": torch.ones_like(mask), "attention_mask": mask}


def test_padding_counts_neither_as_tokens_nor_twice():
    meters = Meters()
    meters.start()
    meters.count_batch(text_batch([[1, 1, 1, 0], [1, 0, 0, 0]]))
    meters.count_batch(text_batch([[1, 1, 1, 1]]))
    figures = meters.close_interval()
    assert (meters.samples, meters.tokens, meters.pads) == (3, 8, 4)
    assert figures["pad_fraction"] == round(4 / 12, 4)
    assert figures["tokens_per_second"] == pytest.approx(figures["samples_per_second"] * 8 / 3, rel=1e-3)


def test_an_input_without_a_mask_has_no_padding():
    meters = Meters()
    meters.start()
    meters.count_batch({"labels": torch.zeros(2), "input_ids": torch.zeros(2, 5, dtype=torch.long)})
    meters.close_interval()
    assert (meters.samples, meters.tokens, meters.pads) == (2, 10, 0)


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": torch.zeros(3, 4), "labels": torch.zeros(3)},
        (torch.zeros(3, 4), torch.zeros(3)),
        {"input_ids": torch.zeros(3, 4)},  # numbers with a fraction are no tokens
    ],
)
def test_a_batch_without_tokens_counts_samples_alone(inputs):
    meters = Meters()
    meters.start()
    meters.count_batch(inputs)
    figures = meters.close_interval()
    assert (meters.samples, meters.tokens) == (3, 0)
    assert "tokens_per_second" not in figures
    assert "pad_fraction" not in figures


def test_a_mask_of_segment_numbers_counts_each_token_once():
    meters = Meters()
    meters.start()
    meters.count_batch(text_batch([[1, 1, 2, 2, 3, 0]]))
    meters.close_interval()
    assert (meters.tokens, meters.pads) == (5, 1)


@pytest.fixture
def wait(monkeypatch):
    """Lets seconds pass on the meters' clock, and only then: a busy machine has no part in what they add up to."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(meters_module.time, "monotonic", lambda: clock.now)

    def pass_by(seconds):
        clock.now += seconds

    return pass_by


def test_evaluation_and_saving_are_not_training_time(wait):
    meters = Meters()
    meters.start()
    meters.count_batch(text_batch([[1] * 10]))
    wait(2)
    with meters.paused():
        wait(10)
        with meters.paused():  # a save during an evaluation
            wait(10)
        wait(10)
    assert meters.train_seconds == 2
    assert meters.close_interval()["tokens_per_second"] == 5


def test_the_clock_goes_on_after_a_pause(wait):
    meters = Meters()
    meters.start()
    wait(1)
    with meters.paused():
        wait(5)
    wait(3)
    assert meters.train_seconds == 4


def test_waiting_for_data_is_a_share_of_the_interval(wait):
    meters = Meters()
    meters.start()
    with meters.waiting():
        wait(3)
    wait(1)
    assert meters.close_interval()["data_wait_fraction"] == 0.75
    assert meters.data_wait == 3
    wait(1)
    assert meters.close_interval()["data_wait_fraction"] == 0.0


def test_nonfinite_steps_are_counted_with_their_positions():
    meters = Meters()
    meters.start()
    for step, finite in enumerate([True, False, True, False, False], start=1):
        meters.count_step(torch.tensor(finite), place=StepPlace(step))
    figures = meters.close_interval()
    assert figures["nonfinite_steps"] == 2 + 1
    assert meters.nonfinite_positions == [2, 4, 5]
    assert meters.nonfinite_in_a_row == 2
    meters.count_step(True, place=StepPlace(6))
    meters.close_interval()
    assert (meters.nonfinite_steps, meters.nonfinite_in_a_row, meters.steps) == (3, 0, 6)


def test_a_long_interval_keeps_every_flag_in_order():
    meters = Meters()
    meters.start()
    bad = {1, 255, 256, 257, 600}
    for step in range(1, 701):
        meters.count_step(torch.tensor(step not in bad), place=StepPlace(step))
    meters.close_interval()
    assert meters.nonfinite_positions == sorted(bad)
    assert meters.steps == 700


def test_positions_are_bounded_but_the_count_is_not():
    meters = Meters()
    meters.start()
    for step in range(MAX_POSITIONS + 20):
        meters.count_step(False, place=StepPlace(step))
    meters.close_interval()
    assert meters.nonfinite_steps == MAX_POSITIONS + 20
    assert meters.nonfinite_positions == list(range(20, MAX_POSITIONS + 20))


def test_counts_are_summed_over_processes():
    meters = Meters()
    meters.start()
    meters.count_batch(text_batch([[1, 1, 0]]))
    meters.close_interval(reduce=lambda counts: counts * 2)
    assert (meters.samples, meters.tokens, meters.pads) == (2, 4, 2)


def test_a_resume_goes_on_from_every_sum():
    first = Meters()
    first.start()
    first.count_batch(text_batch([[1, 1, 0]]))
    first.count_step(torch.tensor(False), place=StepPlace(1, 1))
    first.close_interval()
    first.count_batch(text_batch([[1, 1, 1]]))  # between two log lines
    first.count_step(torch.tensor(False), place=StepPlace(2, 2))
    import json

    saved = json.loads(json.dumps(first.state_dict()))

    second = Meters()
    second.load_state_dict(saved)
    second.start()
    assert (second.samples, second.tokens, second.pads, second.steps) == (2, 5, 1, 2)
    assert (second.nonfinite_steps, second.nonfinite_positions, second.nonfinite_in_a_row) == (2, [1, 2], 2)
    assert (second.left_out_steps, second.open_left_out) == (2, 2)
    assert second.take_unjudged() == ([(StepPlace(1, 1), False), (StepPlace(2, 2), False)], 2)
    assert second.train_seconds >= saved["train_seconds"] > 0
    # and saving left the first one's open interval as it was
    first.close_interval()
    assert (first.samples, first.nonfinite_steps) == (2, 2)


def test_speed_metrics_are_those_of_transformers():
    from transformers.trainer_utils import speed_metrics as theirs

    start = time.time() - 12.5
    ours = speed_metrics("eval", start, num_samples=100, num_steps=7, num_tokens=1234)
    reference = theirs("eval", start, num_samples=100, num_steps=7, num_tokens=1234)
    assert list(ours) == list(reference)
    assert ours == pytest.approx(reference, rel=1e-2)
    assert all(round(value, 4) == value for value in ours.values())
    assert list(speed_metrics("train", start)) == ["train_runtime"]
    assert list(speed_metrics("train", time.time() + 5, num_samples=1)) == ["train_runtime"]


def test_a_run_reports_its_tokens_and_its_memory(tmp_path):
    import onward
    from tests.tiny import pad_tokens, tiny_llama, token_data

    args = onward.TrainingArguments(
        str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True, max_steps=4, per_device_train_batch_size=4,
        eval_strategy="steps", eval_steps=2, eval_on_start=True, save_strategy="no", logging_steps=3,
    )  # fmt: skip
    data = token_data(16, (3, 9))
    trainer = onward.Trainer(tiny_llama(), args, train_dataset=data, eval_dataset=data, data_collator=pad_tokens)
    metrics = trainer.train().metrics
    meters = trainer.meters
    assert meters.samples == 16
    assert meters.tokens == sum(len(sample["input_ids"]) for sample in data)
    assert meters.pads > 0
    assert meters.steps == 4
    assert metrics["train_tokens_per_second"] > meters.tokens / metrics["train_runtime"]  # evaluation left out
    assert meters.train_seconds < metrics["train_runtime"]
    assert metrics["train_peak_memory_rss"] > 10**7


def test_a_run_without_tokens_reports_none(tmp_path):
    import onward
    from tests.tiny import RegressionData, TinyRegression

    args = onward.TrainingArguments(
        str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True, max_steps=1, save_strategy="no"
    )
    metrics = onward.Trainer(TinyRegression(), args, train_dataset=RegressionData(8)).train().metrics
    assert "train_tokens_per_second" not in metrics
    assert "train_samples_per_second" in metrics
