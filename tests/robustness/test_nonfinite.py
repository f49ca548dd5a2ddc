"""A NaN or infinite loss or gradient: what each policy makes of it."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from onward import Trainer, TrainerCallback, TrainingArguments
from onward.errors import NonFinite
from tests.tiny import RegressionData, TinyRegression

LENGTH = 32


class Broken(RegressionData):
    """Samples in order; those at `bad` have a label that is not finite."""

    def __init__(self, bad: dict[int, float], n: int = LENGTH) -> None:
        super().__init__(n)
        for index, value in bad.items():
            self.labels[index] = value


class LossAlone(TinyRegression):
    """The loss is NaN where a label says so, but no gradient is."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        bad = ~torch.isfinite(labels)
        out = super().forward(x, labels.masked_fill(bad, 0.0))
        return {**out, "loss": out["loss"] + labels[bad].sum().detach()} if bad.any() else out


def trainer(folder: Path, data: Any, model: nn.Module | None = None, **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    callbacks = options.pop("callbacks", None)
    args = TrainingArguments(output_dir=str(folder), **(settings | options))
    return Trainer(model or TinyRegression(), args, train_dataset=data, callbacks=callbacks)


def weights(it: Trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in it.model.parameters()]


def losses(it: Trainer) -> list[float]:
    return [line["loss"] for line in it.state.log_history if "loss" in line]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Watcher(TrainerCallback):
    """Copies the weights behind every step."""

    def __init__(self) -> None:
        self.weights: list[list[torch.Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.weights.append([p.detach().clone() for p in model.parameters()])


@pytest.mark.parametrize("kind", [TinyRegression, LossAlone])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_step_is_left_out_counted_and_found(kind: type[nn.Module], value: float, tmp_path: Path) -> None:
    watcher = Watcher()
    it = trainer(tmp_path, Broken({13: value}), kind(), callbacks=[watcher])
    output = it.train()
    assert same(watcher.weights[3], watcher.weights[2])
    assert not same(watcher.weights[4], watcher.weights[3])
    assert it.state.global_step == 8
    assert it.meters.nonfinite_positions == [4]
    assert not torch.isfinite(it.batch_at(4)[0]["labels"]).all()
    lines = [line for line in it.state.log_history if "loss" in line]
    assert [line.get("nonfinite_steps") for line in lines] == [None, 1, 1, 1]
    assert math.isfinite(output.training_loss)
    assert output.training_loss == pytest.approx((2 * (sum(losses(it)) - losses(it)[1]) + losses(it)[1]) / 7, rel=1e-5)


def test_the_mean_is_that_of_the_steps_taken(tmp_path: Path) -> None:
    it = trainer(tmp_path, Broken({13: math.nan}))
    it.train()
    each = trainer(tmp_path, Broken({13: math.nan}), logging_steps=1)
    each.train()
    alone = losses(each)
    assert math.isnan(alone[3])
    assert losses(it) == pytest.approx(
        [(alone[0] + alone[1]) / 2, alone[2], *((alone[i] + alone[i + 1]) / 2 for i in (4, 6))]
    )


def test_accumulated_steps_are_left_out_whole(tmp_path: Path) -> None:
    watcher = Watcher()
    it = trainer(tmp_path, Broken({13: math.nan}), gradient_accumulation_steps=2, callbacks=[watcher])
    it.train()
    assert same(watcher.weights[1], watcher.weights[0])
    assert it.meters.nonfinite_positions == [2]


class Normed(TinyRegression):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)  # type: ignore[assignment]


def test_running_statistics_do_not_keep_what_was_left_out(tmp_path: Path) -> None:
    """A NaN in the input reaches them in forward, before anybody looks at the loss."""
    data = RegressionData(LENGTH)
    data.x[13] = math.nan
    seen: list[list[torch.Tensor]] = []

    class Looker(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            seen.append([buffer.clone() for buffer in model.buffers()])

    trainer(tmp_path, data, Normed(), callbacks=[Looker()]).train()
    assert same(seen[3], seen[2])
    assert not same(seen[4], seen[3])


class Centred(TinyRegression):
    """Keeps a moving average in a buffer that forward replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return super().forward(x - self.mean, labels)


def test_a_buffer_that_forward_replaces_does_not_either(tmp_path: Path) -> None:
    data = RegressionData(LENGTH)
    data.x[13] = math.nan
    it = trainer(tmp_path, data, Centred())
    it.train()
    assert it.meters.nonfinite_positions == [4]
    assert it.model.mean.isfinite().all()


def test_ignore_is_what_transformers_does(tmp_path: Path) -> None:
    it = trainer(tmp_path, Broken({13: math.nan}), on_nonfinite="ignore")
    it.train()
    assert all(torch.isnan(weight).all() for weight in weights(it))


def test_raise_names_step_and_checkpoint(tmp_path: Path) -> None:
    watcher = Watcher()
    it = trainer(
        tmp_path, Broken({13: math.nan}), on_nonfinite="raise", save_strategy="steps", save_steps=1, callbacks=[watcher]
    )
    with pytest.raises(NonFinite, match=r"step 4.*checkpoint-3"):
        it.train()
    assert same(weights(it), watcher.weights[-1])


def test_too_many_in_a_row_end_the_run(tmp_path: Path) -> None:
    bad = dict.fromkeys(range(8, 32), math.nan)
    it = trainer(tmp_path, Broken(bad), max_nonfinite_steps=3, logging_steps=100, save_strategy="steps", save_steps=1)
    with pytest.raises(NonFinite, match=r"3 optimizer steps in a row.*checkpoint-2"):
        it.train()
    assert it.state.global_step == 4


def test_single_ones_do_not_end_it(tmp_path: Path) -> None:
    it = trainer(tmp_path, Broken({1: math.nan, 9: math.nan, 17: math.nan}), max_nonfinite_steps=2)
    it.train()
    assert it.meters.nonfinite_steps == 3
    assert it.state.global_step == 8


def test_rollback_goes_back_and_on_behind_the_bad_batch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []

    class Seeing(TinyRegression):
        def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
            seen.append(x[0, 0].item())
            return super().forward(x, labels)

    data = Broken({17: math.nan})
    caplog.set_level(logging.WARNING)
    it = trainer(tmp_path, data, Seeing(), on_nonfinite="rollback", save_strategy="steps", save_steps=3)
    it.train()
    # Steps 1 to 5, the fifth is bad, back to 3, then the data of steps 6 to 8 and, to make 8 steps, that of the next
    # epoch's first two.
    order = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2]
    assert seen == [data.x[4 * (place - 1), 0].item() for place in order]
    assert it.state.global_step == 8
    assert it.meters.rollbacks == 1
    assert it.meters.nonfinite_steps == 1
    assert "back to checkpoint-3" in caplog.text
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["checkpoint"].rpartition("/")[2] for row in rows if row.get("event") == "rollback"] == ["checkpoint-3"]

    by_hand = trainer(tmp_path / "by_hand", Chosen(data, [1, 2, 3, 6, 7, 8, 1, 2]))
    by_hand.train()
    assert same(weights(it), weights(by_hand))


class Chosen(RegressionData):
    """The batches of four of `data` with these numbers."""

    def __init__(self, data: RegressionData, batches: list[int]) -> None:
        rows = [4 * (number - 1) + offset for number in batches for offset in range(4)]
        self.x, self.labels = data.x[rows], data.labels[rows]


def test_rollbacks_are_limited(tmp_path: Path) -> None:
    it = trainer(
        tmp_path, Broken({17: math.nan, 25: math.nan}), on_nonfinite="rollback", max_rollbacks=1,
        save_strategy="steps", save_steps=1,
    )  # fmt: skip
    with pytest.raises(NonFinite, match=r"rollback 2.*max_rollbacks=1.*checkpoint-"):
        it.train()


def test_a_run_that_was_rolled_back_resumes_exactly(tmp_path: Path) -> None:
    options = {"on_nonfinite": "rollback", "save_strategy": "steps", "save_steps": 2}
    whole = trainer(tmp_path / "whole", Broken({17: math.nan}), **options)
    whole.train()
    again = trainer(tmp_path / "whole", Broken({17: math.nan}), TinyRegression(seed=5), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert same(weights(again), weights(whole))
    assert losses(again) == losses(whole)


def test_without_a_checkpoint_there_is_no_rollback(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    it = trainer(tmp_path, Broken({5: math.nan}), on_nonfinite="rollback")
    it.train()
    assert it.state.global_step == 8
    assert "no whole checkpoint" in caplog.text
    assert all(torch.isfinite(weight).all() for weight in weights(it))


@pytest.mark.slow
def test_what_one_rank_meets_is_decided_alike_by_all(tmp_path: Path) -> None:
    """In the first of two micro-batches; NaN, infinite, in the gradient alone, and in the input of a BatchNorm."""
    script = Path(__file__).with_name("bad_rank.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert len(one) == 13
    by_hand = one.pop("by hand")["weights"]
    for case, result in one.items():
        assert result["weights"] == other[case]["weights"], case
        for each in (result, other[case]):
            assert each["finite"], case
            assert (each["count"], each["positions"]) == (1, [3]), case
            if case.endswith("skip"):
                assert each["held"], case
                assert each["steps"] == 6, case
            elif case.endswith("raise"):
                assert each["steps"] == 2, case
                assert "step 3" in each["error"], case
                assert "checkpoint-2" in each["error"], case
            else:
                assert (each["rollbacks"], each["steps"]) == (1, 6), case
                assert each["weights"] == by_hand, case
