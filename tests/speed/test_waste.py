"""Which waste is named, and that a run reports it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onward import Trainer, TrainerCallback, TrainingArguments
from onward.speed.waste import Spent, largest_waste, peak_of, utilisation, workers_for
from tests.tiny import pad_tokens, tiny_llama, token_data

CLEAN = Spent(training=100, beside=0, data_wait=0, pad_share=0, workers=0, packs=False, processors=8)

CASES: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"pad_share": 0.04}, None),
    ({"pad_share": 0.5}, "padding_free='auto'"),
    ({"pad_share": 0.5, "packs": True}, "length_aware_window=8"),
    ({"pad_share": 0.1, "data_wait": 30}, "dataloader_num_workers=1"),
    ({"data_wait": 75}, "dataloader_num_workers=3"),
    ({"data_wait": 99}, "dataloader_num_workers=8"),
    ({"data_wait": 99, "workers": 8}, "as many workers as processors"),
    ({"data_wait": 10, "beside": 60}, "save_steps"),
    ({"training": 0}, None),
]


@pytest.mark.parametrize(("change", "named"), CASES)
def test_the_largest_is_named(change: dict[str, Any], named: str | None) -> None:
    line = largest_waste(replace(CLEAN, **change))
    assert (line is None) if named is None else (line is not None and named in line)


def test_workers_that_do_not_keep_up_become_more() -> None:
    assert workers_for(replace(CLEAN, workers=2, data_wait=50)) == 4


def test_peaks_by_name() -> None:
    assert peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of("NVIDIA L40S") == 362e12
    assert peak_of("NVIDIA L40") == 181e12
    assert peak_of("NVIDIA L4") == 121e12
    assert peak_of("something else") is None
    assert utilisation(1e6, 124_000_000, 989e12, 2) == pytest.approx(0.376, abs=1e-3)


class Keeper(TrainerCallback):
    def __init__(self) -> None:
        self.rates: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, rates: Any = None, **kwargs: Any) -> None:
        if rates is not None:
            self.rates.append(rates)


@pytest.mark.parametrize("long", [False, True])
def test_a_run_reports_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, long: bool
) -> None:
    if long:
        monkeypatch.setattr("onward.loop.account.SEEN_BY_ALL", 0)
    args = TrainingArguments(
        str(tmp_path), max_steps=3, report_to="none", save_strategy="no", use_cpu=True, disable_tqdm=True,
        logging_steps=3,
    )  # fmt: skip
    data, keeper = token_data(24, (3, 40)), Keeper()
    trainer = Trainer(tiny_llama(), args, pad_tokens, train_dataset=data, callbacks=[keeper])
    with caplog.at_level(logging.INFO, "onward.loop.account"):
        logging.getLogger("onward").setLevel(logging.INFO)
        metrics = trainer.train().metrics
    tokens = sum(len(sample["input_ids"]) for sample in data)
    order = [[len(sample) for sample in trainer.batch_at(step)[0]["attention_mask"]] for step in (1, 2, 3)]
    places = sum(map(sum, order))
    assert metrics["train_pad_fraction"] == pytest.approx(1 - tokens / places, abs=1e-4)
    assert metrics["train_tokens_per_second"] == pytest.approx(tokens / trainer.meters.train_seconds, rel=0.01)
    assert 0 <= metrics["train_data_wait_fraction"] <= 1
    (rates,) = keeper.rates
    assert rates["pad_fraction"] == metrics["train_pad_fraction"]
    assert rates["peak_memory_rss"] > 10**7
    assert not any("fraction" in name for line in trainer.state.log_history for name in line)
    (line,) = [record for record in caplog.records if record.getMessage().startswith("Speed: ")]
    assert "padding_free='auto'" in line.getMessage()
    assert (line.levelno == logging.WARNING) is long
