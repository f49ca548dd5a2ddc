"""Trains a tiny model and says where it stands by touching files, so that a test can signal it there."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

from onward import Trainer, TrainerCallback, TrainingArguments, get_last_checkpoint
from tests.resume.data import Augmented
from tests.tiny import RegressionData, TinyRegression


class Pauses(TrainerCallback):
    """Waits at a step or evaluation until the test says go, and fails at another."""

    def __init__(self, folder: Path, pause_at: str, fail_at: str, sleep: float) -> None:
        self.folder, self.pause_at, self.fail_at, self.sleep = folder, pause_at, fail_at, sleep
        self.evaluations = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        time.sleep(self.sleep)
        self.reached(f"step-{state.global_step}", args)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.rand(1)
        self.evaluations += 1
        self.reached(f"evaluation-{self.evaluations}", args)

    def reached(self, where: str, args: Any) -> None:
        if where == self.fail_at:
            raise RuntimeError("failed as it was told to")
        if where == self.pause_at:
            (self.folder / f"{where}-{args.process_index}").touch()
            deadline = time.monotonic() + 300
            while not (self.folder / "go").exists() and time.monotonic() < deadline:
                time.sleep(0.01)


class Dies(TrainerCallback):
    """Kills the process of rank 1 as the kernel would, unless the group was restarted already."""

    def __init__(self, folder: Path, at: int | None) -> None:
        self.folder, self.at = folder, at

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        first_attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
        if first_attempt and state.global_step == self.at and args.process_index == 1:
            (self.folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pause-at", default="")
    parser.add_argument("--fail-at", default="")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--worker-start", help="fork, spawn or forkserver")
    parser.add_argument("--persistent", action="store_true", help="keep the workers between epochs")
    parser.add_argument("--sleep", type=float, default=0.0)
    parser.add_argument("--exit-code", type=int, default=143)
    parser.add_argument("--max-seconds", type=float)
    parser.add_argument("--save-steps", type=int)
    parser.add_argument("--kill-at", type=int, help="step at which rank 1 dies, on the first attempt")
    options = parser.parse_args()
    args = TrainingArguments(
        output_dir=str(options.folder / "run"),
        num_train_epochs=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=2,
        save_strategy="no" if options.save_steps is None else "steps",
        save_steps=options.save_steps or 500,
        eval_strategy="steps",
        eval_steps=3,
        dataloader_num_workers=options.workers,
        dataloader_multiprocessing_context=options.worker_start,
        dataloader_persistent_workers=options.persistent,
        preemption_exit_code=options.exit_code,
        max_train_seconds=options.max_seconds,
        report_to="none",
    )
    (options.folder / f"pid-{args.process_index}").write_text(str(os.getpid()))
    trainer = Trainer(
        TinyRegression(dropout=0.3),
        args,
        train_dataset=Augmented("torch", 48 * args.world_size),
        eval_dataset=RegressionData(20),
        callbacks=[
            Pauses(options.folder, options.pause_at, options.fail_at, options.sleep),
            Dies(options.folder, options.kill_at),
        ],
    )
    resume = options.resume or get_last_checkpoint(args.output_dir) is not None
    output = trainer.train(resume_from_checkpoint=resume)
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in trainer.model.parameters())).hexdigest()
    history = [
        {k: v for k, v in line.items() if "runtime" not in k and "per_second" not in k}
        for line in trainer.state.log_history
    ]
    result = {"weights": digest, "loss": output.training_loss, "step": output.global_step, "history": history}
    (options.folder / f"result-{args.process_index}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
