"""The checkpoints of a run over its life: rotation, the best one, ids, what a killed run leaves behind."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoint.saver import Through, arguments, steps, trainer
from tests.tiny import TinyRegression, tiny_llama, token_data

from onward import Trainer, TrainerCallback
from onward.checkpoint import layout, manifest, pins, problems, staging


def test_rotation_and_best(tmp_path: Path) -> None:
    made = trainer(
        max_steps=6, save_total_limit=2, eval_strategy="steps", eval_steps=1, load_best_model_at_end=True,
        metric_for_best_model="loss", greater_is_better=True,
    )  # fmt: skip
    made.train()
    best = made.state.best_global_step
    assert best == 1  # the loss falls, and the greatest was asked for
    assert steps() == [1, 6]
    stored = TinyRegression()
    from onward.checkpoint.weights import load_weights

    load_weights(stored, Path(made.state.best_model_checkpoint))
    for a, b in zip(made.model.parameters(), stored.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_broken_best_checkpoint_is_not_loaded_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    class Break(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "train_runtime" in logs:
                made._desk().writer.wait()
                Path(state.best_model_checkpoint, layout.WEIGHTS).write_bytes(b"")

    made = trainer(max_steps=2, eval_strategy="steps", eval_steps=1, load_best_model_at_end=True, callbacks=[Break()])
    made.train()
    assert "is not whole (model.safetensors has 0 bytes" in caplog.text


def test_a_moved_run_resumes_and_still_finds_its_best() -> None:
    settings: dict[str, Any] = {
        "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss", "greater_is_better": True,
        "load_best_model_at_end": True,
    }  # fmt: skip
    trainer(max_steps=3, **settings).train()
    os.rename("run", "moved")
    made = trainer(max_steps=4, output_dir="moved", **settings)
    made.train(resume_from_checkpoint=True)
    assert made.state.best_model_checkpoint == os.path.join("moved", "checkpoint-1")


def test_a_run_keeps_its_id_and_a_branch_gets_its_own() -> None:
    def run_of(step: int) -> str:
        recorded = manifest.read(Path("run", layout.name_of(step)))
        assert recorded is not None
        return recorded.run

    trainer(max_steps=4).train()
    first = run_of(4)
    trainer(max_steps=5).train(resume_from_checkpoint=True)
    assert run_of(5) == first
    trainer(max_steps=3).train(resume_from_checkpoint="run/checkpoint-2")  # 4 and 5 are abandoned
    assert run_of(3) != first
    assert steps()[-1] == 3


def test_staging_left_by_a_killed_run_is_swept_at_the_next_start() -> None:
    import dataclasses

    from onward.checkpoint.owner import current

    gone = dataclasses.replace(current(), started="1")
    stale = Path("run", f"{layout.STAGING_PREFIX}{gone.token()}-0", "checkpoint-1")
    stale.mkdir(parents=True)
    trainer(max_steps=1, save_strategy="no").train()
    assert staging.find_staging(Path("run")) == []
    assert not stale.exists()


def test_training_twice_makes_two_runs_and_overwrites_cleanly() -> None:
    made = trainer(max_steps=2)
    made.train()
    before = manifest.read(Path("run/checkpoint-2"))
    made.train()
    after = manifest.read(Path("run/checkpoint-2"))
    assert before is not None
    assert after is not None
    assert before.run != after.run
    assert steps() == [1, 2]


def test_exit_waits_for_the_save_in_flight(tmp_path: Path) -> None:
    import subprocess
    import sys

    program = """
import sys
from tests.checkpoint.test_saving import trainer
made = trainer()
made.control.should_save = True
made.create_optimizer_and_scheduler(4)
made.state.global_step = 1
made._begin_saves(None)
made._save_checkpoint(made.model, None)
sys.exit(7)
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False).returncode == 7
    assert problems(tmp_path / "run/checkpoint-1") == []


def test_a_pinned_checkpoint_outlives_rotation() -> None:
    class Pin(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.pin = pins.pin("run/checkpoint-1")
            self.pin.__enter__()

    trainer(save_total_limit=1, callbacks=[Pin()]).train()
    assert steps() == [1, 4]


def test_state_and_record_on_disk() -> None:
    trainer(max_steps=2).train()
    state = json.loads(Path("run/checkpoint-2", layout.TRAINER_STATE).read_text())
    assert state["global_step"] == 2
    assert [entry["step"] for entry in state["log_history"]] == [1, 2]
    record = json.loads(Path("run/checkpoint-2", layout.RUN_RECORD).read_text())
    assert record["cursor"]["step"] == 2


def test_info_says_why_saves_are_synchronous(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="onward"):
        trainer(Through, max_steps=2).train()
    assert caplog.text.count("Through overrides _save_scaler") == 1


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapters_are_saved_resumed_and_the_best_loaded() -> None:
    from peft import LoraConfig, get_peft_model

    def adapted(**changes: Any) -> Trainer:
        config = LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.1)
        torch.manual_seed(0)
        model = get_peft_model(tiny_llama(), config)
        return Trainer(model=model, args=arguments(learning_rate=0.1, **changes), train_dataset=token_data(16))

    whole = adapted()
    whole.train()
    assert Path("run/checkpoint-2", layout.ADAPTER).exists()
    assert not Path("run/checkpoint-2", layout.WEIGHTS).exists()
    resumed = adapted(save_strategy="no")
    resumed.train(resume_from_checkpoint="run/checkpoint-2")
    for (name, a), (_, b) in zip(whole.model.state_dict().items(), resumed.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    fresh = adapted()
    fresh.state.best_model_checkpoint = "run/checkpoint-4"
    fresh._load_best_model()
    for (name, a), (_, b) in zip(whole.model.state_dict().items(), fresh.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_a_run_that_died_before_it_could_rotate_does_so_at_its_end() -> None:
    trainer(max_steps=4).train()  # no limit: as if killed behind each commit
    trainer(max_steps=4, save_total_limit=2).train(resume_from_checkpoint=True)
    assert steps() == [3, 4]


def test_a_longer_run_follows_its_new_schedule_from_the_first_step_on() -> None:
    trainer(max_steps=4).train()
    made = trainer(max_steps=8)
    made.train(resume_from_checkpoint=True)
    rates = [line["learning_rate"] for line in made.state.log_history if line["step"] > 4 and "loss" in line]
    assert rates == pytest.approx([5e-5 * left / 8 for left in (4, 3, 2, 1)])


def test_a_branch_that_saves_nothing_deletes_nothing() -> None:
    trainer(max_steps=4).train()
    trainer(max_steps=3, save_strategy="no", save_total_limit=1).train(resume_from_checkpoint="run/checkpoint-2")
    assert steps() == [1, 2, 3, 4]
