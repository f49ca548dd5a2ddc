"""`auto_find_batch_size="grow"`: the largest micro-batch that fits is found first, and nothing else changes."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onward import Trainer, TrainerCallback
from onward.loop.grow import even_size
from tests.robustness.test_exhaustion import assert_same_end, run
from tests.robustness.test_out_of_memory import Small, close, trainer
from tests.tiny import RegressionData, RegressionStream, TinyRegression

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="host memory is measured by /proc")


def grown(folder: Path, model: nn.Module, data: Any = None, **options: Any) -> Trainer:
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8, "auto_find_batch_size": "grow"}
    it = trainer(folder, model, data, **(settings | options))
    it.train()
    return it


class Substeps(TrainerCallback):
    """Counts the micro-batches of each step."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.counts.append(1)

    def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
        self.counts[-1] += 1


def test_accumulation_falls_as_the_micro_batch_grows(tmp_path: Path) -> None:
    counted = Substeps()
    it = grown(tmp_path / "a", TinyRegression(), callbacks=[counted])
    whole = trainer(tmp_path / "b", TinyRegression(), per_device_train_batch_size=16, auto_find_batch_size=False)
    whole.train()
    close(it, whole)
    assert it.state.train_batch_size == it._train_batch_size == 16
    assert counted.counts == [1] * 6
    assert it.get_total_train_batch_size(it.args) == 16
    assert [len(batch["labels"]) for batch in it.batch_at(1)] == [2] * 8  # as the run was asked for


def test_a_size_between_is_as_if_the_run_had_begun_with_it(tmp_path: Path) -> None:
    counted = Substeps()
    it = grown(tmp_path / "a", Small(11), callbacks=[counted])  # 16 fails, and half of it is next
    small = trainer(tmp_path / "b", Small(), per_device_train_batch_size=8, gradient_accumulation_steps=2,
                    auto_find_batch_size=False)  # fmt: skip
    small.train()
    close(it, small)
    assert it.state.train_batch_size == 8
    assert counted.counts == [2, 2, 1] * 2


def test_a_size_that_does_not_divide_keeps_the_mean(tmp_path: Path) -> None:
    it = grown(tmp_path / "a", Small(6))
    assert it.state.train_batch_size == 6
    assert set(it.model.sizes[-8:]) == {6, 4}
    close(it, grown(tmp_path / "b", Small(), auto_find_batch_size=False))


class Everything(TrainerCallback):
    """Looks at all that a search could change, before it and behind it."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.changes: list[tuple[int, int]] = []

    def look(self, model: nn.Module, optimizer: Any) -> None:
        random_state = (torch.get_rng_state(), torch.tensor(np.random.get_state()[1].astype(np.int64)),
                        torch.tensor(random.getstate()[1]))  # fmt: skip
        tensors = [*model.state_dict().values(), *random_state]
        self.seen.append(
            {
                "tensors": [t.clone() for t in tensors],
                "gradients": [p.grad for p in model.parameters()],
                "optimizer": len(optimizer.state),
                "groups": [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups],
            }
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.look(kwargs["model"], kwargs["optimizer"])

    def on_batch_size_change(self, args: Any, state: Any, control: Any, before: int, now: int, **kwargs: Any) -> None:
        self.changes.append((before, now))
        self.look(kwargs["model"], kwargs["optimizer"])


class Normed(TinyRegression):
    """Draws dropout, and keeps running statistics."""

    def __init__(self) -> None:
        super().__init__(dropout=0.5)
        self.norm = nn.BatchNorm1d(8)  # type: ignore[assignment]


class Noisy(RegressionData):
    """Samples with noise of their own, from three generators."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        noise = torch.rand(1).item() + random.random() + float(np.random.rand())
        return {"x": self.x[index] + noise, "labels": self.labels[index]}


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch", "sgd", "adafactor"])
def test_the_search_leaves_no_trace(optim: str, tmp_path: Path) -> None:
    looker = Everything()
    it = grown(tmp_path / "a", Normed(), Noisy(40), optim=optim, callbacks=[looker])
    assert looker.changes == [(2, 16)]
    before, behind = looker.seen
    assert all(torch.equal(a, b) for a, b in zip(before["tensors"], behind["tensors"], strict=True))
    assert before["gradients"] == behind["gradients"] == [None] * len(before["gradients"])
    assert before["optimizer"] == behind["optimizer"] == 0
    assert before["groups"] == behind["groups"]
    whole = trainer(tmp_path / "b", Normed(), Noisy(40), optim=optim, per_device_train_batch_size=16,
                    auto_find_batch_size=False)  # fmt: skip
    whole.train()
    for name, value in it.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name]), name


def test_the_result_is_told_once_with_its_cost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grown(tmp_path, TinyRegression())
    assert len([r for r in caplog.records if "largest micro-batch that fits was looked for in" in r.message]) == 1
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if row.get("event") == "batch_size_change"]
    assert (row["previous"], row["train_batch_size"], row["step"]) == (2, 16, 0)
    assert " s (effective batch: 16 samples" in row["reason"]


def test_a_resume_uses_what_was_found_without_looking(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2}
    it = grown(tmp_path, TinyRegression(dropout=0.3), **options)
    caplog.clear()
    model = TinyRegression(dropout=0.3, seed=1)
    again = trainer(tmp_path, model, per_device_train_batch_size=2, gradient_accumulation_steps=8,
                    auto_find_batch_size="grow", **options)  # fmt: skip
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert "was looked for" not in caplog.text
    assert again.state.train_batch_size == 16
    for a, b in zip(it.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_that_had_not_looked_looks_when_it_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2}
    plain = grown(tmp_path / "a", TinyRegression(), auto_find_batch_size=False, **options)
    again = trainer(tmp_path / "a", TinyRegression(seed=1), per_device_train_batch_size=2,
                    gradient_accumulation_steps=8, auto_find_batch_size="grow", **options)  # fmt: skip
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    assert "was looked for" in caplog.text
    close(again, plain)


def test_out_of_memory_behind_the_search_is_met_as_always(tmp_path: Path) -> None:
    it = grown(tmp_path / "a", Small(4, after=8))
    assert it.state.train_batch_size == 4
    close(it, grown(tmp_path / "b", Small(), auto_find_batch_size=False))


def test_loader_workers_collate_the_larger_ones(tmp_path: Path) -> None:
    it = grown(tmp_path / "a", Small(11), dataloader_num_workers=1)
    assert it.state.train_batch_size == 8
    close(it, grown(tmp_path / "b", Small(11)))


def test_a_stream_works_as_with_true_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    it = grown(tmp_path / "a", TinyRegression(), RegressionStream(64), max_steps=4)
    assert "works as True does: its micro-batches are not cut from map-style data" in caplog.text
    assert it.state.train_batch_size == 2
    close(it, grown(tmp_path / "b", TinyRegression(), RegressionStream(64), max_steps=4, auto_find_batch_size=True))


@pytest.mark.parametrize(("whole", "largest", "even"), [(16, 16, 16), (16, 15, 8), (32, 11, 11), (14, 6, 5), (7, 1, 1)])
def test_parts_are_about_as_large(whole: int, largest: int, even: int) -> None:
    assert even_size(whole, largest) == even


def test_it_fits_into_a_real_limit(tmp_path: Path) -> None:
    """Per sample some 12 MB: a step of 16 does not fit, the 2 that were asked for leave much unused."""
    shape = ("--batch", "2", "--accumulation", "8")
    (hit,), output = run(tmp_path / "hit", "--grow", "--room", "280", *shape)
    assert "was looked for" in output
    assert "Out of memory at step" not in output
    assert 2 < hit["found"] < 16
    assert max(hit["seen"][-6:]) == hit["found"]
    (free,), _ = run(tmp_path / "free", "--batch", "8", "--accumulation", "2")
    assert_same_end(hit, free)


@pytest.mark.slow
def test_processes_take_the_smallest_of_what_they_found(tmp_path: Path) -> None:
    shape = ("--batch", "2", "--accumulation", "24")
    both, _ = run(tmp_path / "hit", "--grow", "--room", "420", "--rank", "1", *shape, ranks=2)
    assert both[0]["found"] == both[1]["found"] < 48
    assert both[0]["weights"] == both[1]["weights"]
    free, _ = run(tmp_path / "free", *shape, ranks=2)
    assert_same_end(both[0], free[0])
