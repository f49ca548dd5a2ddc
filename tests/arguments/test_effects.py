"""What single arguments do, where no other test shows it."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.conftest import ROOT
from tests.tiny import RegressionData, TinyRegression, pad_tokens, tiny_llama, token_data

from onward import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from onward.errors import Preempted


def run(folder: Path, data: Any = None, callbacks: Any = None, resume: Any = None, **changes: Any) -> Trainer:
    """8 steps of 4 samples, in one epoch of 32."""
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4, "num_train_epochs": 1, "logging_steps": 1, "save_steps": 3, "use_cpu": True,
        "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
    args = TrainingArguments(output_dir=str(folder), **(settings | changes))
    trainer = Trainer(
        TinyRegression(), args, train_dataset=data or RegressionData(32), eval_dataset=RegressionData(8, seed=1),
        callbacks=callbacks,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


class Listed(RegressionData):
    """Notes which samples are asked for."""

    def __init__(self) -> None:
        super().__init__(32)
        self.asked: list[int] = []

    def __getitem__(self, index: int) -> Any:
        self.asked.append(index)
        return super().__getitem__(index)


@pytest.mark.parametrize("ignore", [False, True])
def test_ignore_data_skip(ignore: bool, tmp_path: Path) -> None:
    whole = Listed()
    run(tmp_path, whole)
    again = Listed()
    run(tmp_path, again, resume=str(tmp_path / "checkpoint-3"), ignore_data_skip=ignore, max_steps=8)
    assert again.asked == (whole.asked[:20] if ignore else whole.asked[12:])


@pytest.mark.parametrize("restore", [False, True])
def test_restore_callback_states_from_checkpoint(restore: bool, tmp_path: Path) -> None:
    evaluated: dict[str, Any] = {
        "eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": True, "metric_for_best_model": "loss",
    }  # fmt: skip
    run(tmp_path, callbacks=[EarlyStoppingCallback(early_stopping_patience=7)], **evaluated)
    stopping = EarlyStoppingCallback(early_stopping_patience=2)
    evaluated["restore_callback_states_from_checkpoint"] = restore
    run(tmp_path, callbacks=[stopping], resume=True, **evaluated)
    assert stopping.early_stopping_patience == (7 if restore else 2)


@pytest.mark.parametrize("filtered", [True, False])
def test_logging_nan_inf_filter(filtered: bool, tmp_path: Path) -> None:
    data = RegressionData(32)
    data.labels[:] = math.nan
    trainer = run(tmp_path, data, on_nonfinite="ignore", logging_nan_inf_filter=filtered, save_strategy="no")
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert [math.isnan(loss) for loss in losses] == [not filtered] * 8


def test_preemption_signals_and_preemption_exit_code(tmp_path: Path) -> None:
    class Send(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                os.kill(os.getpid(), signal.SIGUSR2)

    with pytest.raises(Preempted) as left:
        run(tmp_path, callbacks=[Send()], preemption_signals="SIGUSR2", preemption_exit_code=3)
    assert left.value.code == 3
    assert (tmp_path / "checkpoint-4").is_dir()
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))
    try:
        assert run(tmp_path / "deaf", callbacks=[Send()], preemption_signals="").state.global_step == 8
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert heard == [signal.SIGUSR2]


RANKS = """
import sys
import torch.distributed as dist
from onward import TrainingArguments

levels = {"log_level": "info", "log_level_replica": "error"}
args = TrainingArguments(use_cpu=True, ddp_backend="gloo", ddp_timeout=77, report_to="none", **levels)
device = args.device  # joins the group
timeout = dist.group.WORLD._get_backend(device).options._timeout.total_seconds()
# In one piece: both write to the same pipe.
sys.stdout.write(f"{dist.get_rank()} {dist.get_backend()} {timeout} {args.get_process_log_level()}\\n")
"""


def test_ddp_backend_ddp_timeout_and_log_level_replica(tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [*command, str(tmp_path / "ranks.py")], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["0 gloo 77.0 20", "1 gloo 77.0 40"]


def test_log_on_each_node() -> None:
    class OfAnotherMachine(TrainingArguments):
        """As on the first process of the second machine."""

        process_index = 4  # type: ignore[assignment]
        local_process_index = 0  # type: ignore[assignment]

    assert OfAnotherMachine(use_cpu=True).should_log
    assert not OfAnotherMachine(use_cpu=True, log_on_each_node=False).should_log


@pytest.mark.parametrize("beside", [True, False])
def test_async_save(beside: bool, tmp_path: Path) -> None:
    class Watch(TrainerCallback):
        """Whether a save was handed to the writer."""

        seen = False

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.seen |= trainer._desk().writer._thread is not None

    watch = Watch()
    trainer = Trainer(
        TinyRegression(),
        TrainingArguments(
            output_dir=str(tmp_path), async_save=beside, save_steps=1, max_steps=4, report_to="none", use_cpu=True
        ),
        train_dataset=RegressionData(32),
        callbacks=[watch],
    )
    trainer.train()
    assert watch.seen is beside


def test_length_aware_window(tmp_path: Path) -> None:
    def pads(window: int) -> float:
        args = TrainingArguments(
            output_dir=str(tmp_path), train_sampling_strategy="length_aware", length_aware_window=window, max_steps=8,
            per_device_train_batch_size=2, gradient_accumulation_steps=2, use_cpu=True, report_to="none",
            disable_tqdm=True, save_strategy="no",
        )  # fmt: skip
        trainer = Trainer(tiny_llama(), args, pad_tokens, train_dataset=token_data(32, (3, 40)))
        trainer.train()
        return trainer.meters.pads

    assert pads(8) < pads(1) / 2


def test_use_liger_kernel_and_liger_kernel_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced: list[dict[str, Any]] = []
    package: Any = ModuleType("liger_kernel.transformers")  # the real one wants a GPU
    package._apply_liger_kernel_to_instance = lambda **given: replaced.append(given)
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", package)
    settings: dict[str, Any] = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none"}
    model = tiny_llama()
    settings |= {"use_liger_kernel": True, "liger_kernel_config": {"rope": False}, "max_steps": 1}
    Trainer(model, TrainingArguments(**settings, save_strategy="no"), train_dataset=token_data()).train()
    assert replaced == [{"model": model, "rope": False}]
