"""The loop, with a host of a few lines: what happens, in which order, how often."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from onward.cursor import Cursor
from onward.loop.fit import Run, fit
from onward.plan import RunLength, RunPlan, make_plan
from onward.types import StepFigures


class Host:
    """Writes down what the loop asks of it."""

    _due_after_resume = _tr_loss = _rollback_due = None
    _step_figures = StepFigures()

    def __init__(self, stop_at: int | None = None, cursor: Cursor | None = None) -> None:
        self.calls: list[str] = []
        self.stop_at = stop_at
        self.args = SimpleNamespace(eval_on_start=False, max_grad_norm=1.0, device=None)
        self.state = SimpleNamespace(global_step=0, epoch=0.0)
        self.control = SimpleNamespace(
            should_epoch_stop=False,
            should_training_stop=False,
            should_log=False,
            should_evaluate=False,
            should_save=False,
        )
        self.cursor = cursor or Cursor()
        self.meters = SimpleNamespace(waiting=nullcontext, data_lead=0)
        self.callback_handler = self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_"):
            return lambda args, state, control: (self.calls.append(name), control)[1]
        if name.startswith("_") and not name.startswith("__"):
            return lambda *args, **kwargs: self.calls.append(name)
        raise AttributeError(name)

    def on_step_end(self, args: Any, state: Any, control: Any) -> Any:
        self.calls.append("on_step_end")
        control.should_training_stop = state.global_step == self.stop_at
        return control

    def on_epoch_begin(self, args: Any, state: Any, control: Any) -> Any:
        self.calls.append("on_epoch_begin")
        control.should_epoch_stop = False
        return control

    def get_batch_samples(self, batches: Iterator[Any], count: int, device: Any) -> tuple[list[Any], None]:
        return [b for _, b in zip(range(count), batches, strict=False)], None

    def training_step(self, model: Any, inputs: Any, num_items: Any) -> float:
        self.calls.append(f"step {inputs}")
        return 0.0

    def _gradient_sync(self, model: Any, is_last: bool) -> Any:
        return nullcontext()


class Feed:
    """Numbers as micro-batches."""

    def __init__(self, per_epoch: int) -> None:
        self.per_epoch = per_epoch

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[int]:
        return iter(range(epoch * self.per_epoch + skip, (epoch + 1) * self.per_epoch))

    def weights(self, count: int) -> list[float]:
        return [1.0] * count


def run_of(plan: RunPlan, per_epoch: int) -> Run:
    return Run(plan, Feed(per_epoch), SimpleNamespace())  # type: ignore[arg-type]


def plan_of(batches: int | None, accumulation: int = 1, max_steps: int = -1, epochs: float = 1) -> RunPlan:
    return make_plan(
        RunLength(max_steps, epochs),
        micro_batch_size=1,
        accumulation=accumulation,
        world_size=1,
        batches_per_epoch=batches,
        num_examples=batches,
    )


ONE_STEP = [
    "_leave_inside_step",
    "on_step_begin",
    "step 0",
    "_count_micro_batch",
    "on_substep_end",
    "step 1",
    "_count_micro_batch",
    "_clip_grad_norm",
    "_get_grad_norm",
    "on_pre_optimizer_step",
    "_step_optimizer",
    "on_optimizer_step",
    "_get_learning_rate",
    "_step_scheduler",
    "_clear_gradients",
    "on_step_end",
    "_maybe_log_save_evaluate",
    "_leave_if_asked",
]


def test_the_order_of_one_step() -> None:
    host = Host()
    fit(host, run_of(plan_of(2, accumulation=2), 2))  # type: ignore[arg-type]
    assert host.calls == [
        "on_train_begin",
        "on_epoch_begin",
        *ONE_STEP,
        "on_epoch_end",
        "_maybe_log_save_evaluate",
        "_leave_if_asked",
    ]


@pytest.mark.parametrize(("batches", "accumulation", "epochs"), [(5, 1, 2), (5, 2, 2), (6, 3, 3), (1, 4, 1)])
def test_events_are_counted(batches: int, accumulation: int, epochs: int) -> None:
    host = Host()
    plan = plan_of(batches, accumulation, epochs=epochs)
    fit(host, run_of(plan, batches))  # type: ignore[arg-type]
    count = host.calls.count
    assert count("on_step_end") == count("on_step_begin") == count("on_optimizer_step") == plan.max_steps
    assert count("on_substep_end") == epochs * batches - plan.max_steps
    assert count("on_epoch_begin") == count("on_epoch_end") == epochs
    assert sum(c.startswith("step ") for c in host.calls) == epochs * batches
    assert host.state.epoch == epochs


def test_a_stop_ends_the_epoch_with_its_event() -> None:
    host = Host(stop_at=2)
    fit(host, run_of(plan_of(5, epochs=3), 5))  # type: ignore[arg-type]
    assert host.state.global_step == 2
    assert host.calls[-3:] == ["on_epoch_end", "_maybe_log_save_evaluate", "_leave_if_asked"]


@pytest.mark.parametrize(("accumulation", "steps"), [(1, 1), (2, 0)])
def test_a_stop_before_the_first_step_lets_one_micro_batch_through(accumulation: int, steps: int) -> None:
    host = Host()
    host.control.should_training_stop = True
    host.on_step_end = lambda args, state, control: control  # type: ignore[method-assign]
    fit(host, run_of(plan_of(4, accumulation, epochs=3), 4))  # type: ignore[arg-type]
    assert [c for c in host.calls if c.startswith("step ")] == ["step 0"]
    assert host.state.global_step == steps
    assert host.calls.count("on_epoch_end") == 1


def test_a_run_that_was_over_when_it_was_saved_takes_no_step() -> None:
    host = Host(cursor=Cursor(epoch=0, step=2))
    run = run_of(plan_of(4, epochs=2), 4)
    run.is_over = True
    fit(host, run)  # type: ignore[arg-type]
    assert not [c for c in host.calls if c.startswith("step ")]
    assert host.calls.count("on_epoch_end") == 1


def test_a_step_that_is_given_up_leaves_the_next_epoch_no_gradients() -> None:
    host = Host()

    def ends(args: Any, state: Any, control: Any) -> Any:
        control.should_epoch_stop = state.global_step == 0 and "on_epoch_end" not in host.calls
        return control

    host.on_substep_end = ends  # type: ignore[attr-defined]
    fit(host, run_of(plan_of(2, accumulation=2, epochs=2), 2))  # type: ignore[arg-type]
    told = [c for c in host.calls if c.startswith(("step ", "_clear", "on_epoch"))]
    first = ["on_epoch_begin", "step 0", "on_epoch_end"]
    assert told == [
        *first,
        "_clear_gradients",
        "on_epoch_begin",
        "step 2",
        "step 3",
        "_clear_gradients",
        "on_epoch_end",
    ]


def test_a_stream_is_read_as_often_as_it_takes() -> None:
    host = Host(stop_at=5)
    fit(host, run_of(plan_of(None, accumulation=2, max_steps=5), 3))  # type: ignore[arg-type]
    assert host.state.global_step == 5
    assert host.calls.count("on_epoch_begin") == 3


def test_empty_data_ends_training_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    host = Host()
    fit(host, run_of(plan_of(None, max_steps=5), 0))  # type: ignore[arg-type]
    assert host.state.global_step == 0
    assert "gave no batch" in caplog.text


@pytest.mark.parametrize("ended", [False, True])
def test_a_resume_at_the_end_of_an_epoch_makes_up_for_its_events(ended: bool) -> None:
    host = Host(cursor=Cursor(epoch=0, step=2, epoch_ended=ended))
    host.state.global_step = 2
    fit(host, run_of(plan_of(2, epochs=2), 2))  # type: ignore[arg-type]
    assert host.calls.count("on_epoch_end") == (1 if ended else 2)
    assert [c for c in host.calls if c.startswith("step ")] == ["step 2", "step 3"]


def test_the_loop_knows_neither_torch_nor_accelerate() -> None:
    code = "import sys, onward.loop.fit; print([m for m in ('torch', 'accelerate') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
