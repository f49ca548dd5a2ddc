"""A process that trains or saves and is meant to be killed.

Started once (imports cost seconds), it forks a child for every run, so that a kill costs milliseconds and yet ends a
process for real. One JSON object a line: ``{"do": "train", "save" or "fill", "folder": …}`` forks, answers ``pid N``;
``{"do": "go"}`` lets a "save" child, which said ``ready``, do the save that matters; ``{"do": "wait"}`` answers
``exit CODE`` (negative: the signal that ended the child). A child may die within a line, hence the line breaks.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import shutil
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from tests.tiny import RegressionData, TinyRegression, tiny_llama, token_data

from onward import Trainer, TrainerCallback, TrainingArguments
from onward.checkpoint import list_checkpoints, problems, sink
from onward.errors import SaveFailed

STEPS = 12


class Through(Trainer):
    """Overrides a save hook, so it saves synchronously."""

    def _save_scaler(self, output_dir: str) -> None:
        super()._save_scaler(output_dir)


def make_trainer(folder: str, through_hooks: bool = False, **changes: Any) -> Trainer:
    """Return a trainer that saves at every step."""
    settings: dict[str, Any] = {
        "output_dir": folder,
        "max_steps": STEPS,
        "save_steps": 1,
        "save_total_limit": 3,
        "logging_steps": 5,
        "report_to": [],
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "disable_tqdm": True,
        "learning_rate": 0.01,
    }
    made: Trainer = (Through if through_hooks else Trainer)(
        model=TinyRegression(dropout=0.1),
        args=TrainingArguments(**{**settings, **changes}),
        train_dataset=RegressionData(20),
    )
    return made


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return the model's weights."""
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def train(folder: str, through_hooks: bool = False) -> None:
    """Train to the end, from the newest checkpoint where there is one."""
    trainer = make_trainer(folder, through_hooks)
    there = Path(folder).is_dir() and bool(list_checkpoints(folder))
    trainer.train(resume_from_checkpoint=True if there else None)
    torch.save(weights_of(trainer), Path(folder).parent / "weights.pt")


def save(folder: str, through_hooks: bool = False) -> None:
    """Save steps 1 and 2 undisturbed, say ready, wait to be let go, save step 3 and rotate."""
    trainer = make_trainer(folder, through_hooks, save_total_limit=1, max_steps=3)

    class Gate(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                trainer._desk().writer.wait()
                print("ready", flush=True)
                os.read(GATE[0], 1)

    trainer.callback_handler.callbacks.insert(0, Gate())
    trainer.train()


class Ballast(TrainerCallback):
    """Fills the disk of a run at one step, and frees it at another."""

    def __init__(self, trainer: Trainer, full: int, free: int) -> None:
        self.trainer, self.full, self.free = trainer, full, free
        self.file = Path(str(trainer.args.output_dir)).parent / "ballast"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._desk().writer.wait()
        if state.global_step == self.full:
            with open(self.file, "wb", buffering=0) as handle:
                try:
                    while True:
                        handle.write(bytes(4096))
                except OSError as error:
                    print("full", error.errno, flush=True)
        if state.global_step == self.free:
            self.file.unlink()


class Tell(logging.Handler):
    """Prints which save the trainer counted as failed."""

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.args, tuple) and "training goes on" in record.msg:
            print("failed", Path(str(record.args[0])).name, flush=True)


def fill(folder: str, full: int, free: int, through_hooks: bool = False, pretrained: bool = False) -> None:
    """Train while the disk is full from the one step to the other; print how it ended and what is left."""
    trainer = make_trainer(folder, through_hooks, save_total_limit=2, metrics_file=False)
    if pretrained:
        trainer = type(trainer)(model=tiny_llama(), args=trainer.args, train_dataset=token_data(20))
    trainer.add_callback(Ballast(trainer, full, free))
    logging.getLogger("onward").addHandler(Tell())
    try:
        print("ended", trainer.train().global_step, flush=True)
    except SaveFailed as error:
        print("ended", error, flush=True)
    print("left", sorted((each.name, problems(each)) for each in Path(folder).iterdir()), flush=True)
    shutil.rmtree(folder)
    (Path(folder).parent / "ballast").unlink(missing_ok=True)


GATE = os.pipe()


def main() -> None:
    """Serve commands until stdin closes."""
    sink.BLOCK = mmap.PAGESIZE  # so that files of tiny models are large enough to be written directly
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    make_trainer("unused", save_strategy="no", max_steps=1).train()  # everything that is imported late is imported
    tiny_llama()
    print("up", flush=True)
    child = 0
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "go":
            os.write(GATE[1], b"x")
        elif command["do"] == "wait":
            print(f"\nexit {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}", flush=True)
        else:
            child = os.fork()
            if child == 0:
                _run(command)
            print(f"\npid {child}", flush=True)


def _run(command: dict[str, Any]) -> None:
    code = 1
    try:
        {"train": train, "save": save, "fill": fill}[command.pop("do")](**command)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
