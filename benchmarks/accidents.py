"""Accidents that happen to a run, in the process of a peer; `rows/accidents.py` counts what is left of it.

Both libraries run the same code: in the process of transformers, the name `onward` stands for transformers.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import ROOT
from benchmarks.result import TRANSFORMERS

STEPS = 12
"""Of a run that is damaged, killed or short of space."""
Weights = dict[str, Tensor]


def answer(peer: str, question: dict[str, Any]) -> dict[str, Any]:
    """In the process of `peer`: what became of one accident."""
    stand_in(peer)
    happened: Callable[..., dict[str, Any]] = globals()[question.pop("what")]
    with tempfile.TemporaryDirectory() as folder:
        return happened(Path(folder), **question)


def stand_in(peer: str) -> None:
    """Let `from onward import Trainer` give the trainer of `peer`."""
    torch.set_num_threads(1)
    if peer == TRANSFORMERS:
        import transformers
        from transformers.trainer_callback import ExportableState

        transformers.ExportableState = ExportableState
        sys.modules["onward"] = transformers


def resumed(folder: Path, name: str, every: bool) -> dict[str, Any]:
    """Whether a run ends in the same weights, optimizer state and log lines from each checkpoint, or from one."""
    from tests.resume.scenarios import SCENARIOS, checkpoints, disturb, tensors_of

    scenario = SCENARIOS[name]
    try:
        trainer = scenario.make(folder / "whole")
    except (TypeError, ValueError):
        return {"asked": False}  # for something that this library does not have
    loss = trainer.train().training_loss
    found = checkpoints(folder / "whole")
    middle = found[len(found) // 2]
    stride = 3 if scenario.arguments.get("dataloader_num_workers") else 1  # starting workers takes a while
    equal, why, off = True, "", 0.0
    for checkpoint in found[::stride] if every else [middle]:
        disturb()
        try:
            again = scenario.make(folder / "again", resumed=True)
            off = abs(again.train(resume_from_checkpoint=str(checkpoint)).training_loss - loss) / loss
            same = traces(again) == traces(trainer) and all_equal(tensors_of(again), tensors_of(trainer))
            why = why if same else f"{checkpoint.name}: another end"
        except Exception as error:
            same, why = False, f"{checkpoint.name}: {told(error, folder)}"
        equal = equal and same
        shutil.rmtree(folder / "again", ignore_errors=True)
    return {"asked": True, "equal": equal, "why": why, "train_loss off by": off}


def told(error: Exception, folder: Path) -> str:
    """Of an error, what is the same on every machine."""
    return f"{type(error).__name__}: {error}".replace(f"{folder}/", "")[:200]


def traces(trainer: Any) -> list[dict[str, Any]]:
    """What was logged of steps and evaluations, without what a clock says."""
    clock = ("runtime", "per_second", "mem", "train_")
    lines = [{k: v for k, v in line.items() if not any(c in k for c in clock)} for line in trainer.state.log_history]
    return [line for line in lines if "loss" in line or "eval_loss" in line]


def all_equal(one: Weights, other: Weights) -> bool:
    """To the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def short_run(folder: Path, **more: Any) -> Any:
    """A trainer that saves at every step."""
    from tests.tiny import RegressionData, TinyRegression

    from onward import Trainer, TrainingArguments

    settings = {"max_steps": STEPS, "save_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
    settings |= {"report_to": "none", "disable_tqdm": True, "use_cpu": True}
    data, model = more.pop("data", None) or RegressionData(20), more.pop("model", None) or TinyRegression(dropout=0.1)
    callbacks = more.pop("callbacks", None)
    args = TrainingArguments(output_dir=str(folder), **(settings | more))
    return Trainer(model, args, train_dataset=data, callbacks=callbacks)


def go_on(folder: Path) -> Weights:
    """Train to the end, from the newest checkpoint where there is one; the weights."""
    trainer = short_run(folder, save_total_limit=3)
    trainer.train(resume_from_checkpoint=True if any(folder.glob("checkpoint-*")) else None)
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def damaged(folder: Path) -> dict[str, Any]:
    """Each file of the newest checkpoint in each way: does a resume end as the run that nothing happened to?"""
    from tests.durability.damage import delete, empty, flip, truncate

    trainer = short_run(folder / "whole")
    trainer.train()
    wanted = dict(trainer.model.state_dict())
    found = {}
    for file in sorted((folder / "whole" / "checkpoint-9").iterdir()):
        for way in (truncate, empty, delete, flip):
            run = folder / "run"
            for step in (8, 9):
                shutil.copytree(folder / "whole" / f"checkpoint-{step}", run / f"checkpoint-{step}")
            way(run / "checkpoint-9" / file.name)
            with contextlib.suppress(Exception):
                found[f"{way.__name__} {file.name}"] = False
                found[f"{way.__name__} {file.name}"] = all_equal(go_on(run), wanted)
            shutil.rmtree(run)
    return {"cases": found}


def killed(folder: Path, kills: int) -> dict[str, Any]:
    """SIGKILL at random moments: the ends of the resumes."""
    wanted = go_on(folder / "whole")
    moments = random.Random(kills)
    start = time.monotonic()
    os.waitpid(in_a_child(folder / "timed"), 0)
    window = time.monotonic() - start
    ends: list[str] = []
    while len(ends) < kills:
        run = folder / f"run-{moments.random()}"
        child = in_a_child(run)
        time.sleep(moments.uniform(0, window))
        os.kill(child, signal.SIGKILL)
        hit = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        window *= 1.1 if hit else 0.7  # one that came too late does not count, and the next comes earlier
        if not hit:
            continue
        try:
            ends.append("equal" if all_equal(go_on(run), wanted) else "other weights")
        except Exception as error:
            ends.append(told(error, folder))
    return {"ends": ends}


def in_a_child(folder: Path) -> int:
    """Start `go_on` in a process of its own; its number."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(Exception):
            go_on(folder)
        os._exit(0)
    return child


def out_of_memory(folder: Path) -> dict[str, Any]:
    """A batch of 8 for which there is room for 5 from step 4 on, against a run that had batches of 4 from the start."""
    from tests.tiny import RegressionData, TinyRegression

    class Small(TinyRegression):
        calls = 0

        def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            self.calls += 1
            if self.calls > 4 and len(x) > 5:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            return super().forward(x, labels)

    settings = {"data": RegressionData(64), "max_steps": -1, "num_train_epochs": 2, "save_strategy": "no"}
    trainer = short_run(
        folder / "one", model=Small(), per_device_train_batch_size=8, auto_find_batch_size=True, **settings
    )
    trainer.train()
    small = short_run(folder / "other", model=Small(), gradient_accumulation_steps=2, **settings)
    small.train()
    pairs = zip(trainer.model.parameters(), small.model.parameters(), strict=True)
    off = max((a - b).abs().max().item() for a, b in pairs)
    return {"steps": trainer.state.global_step, "wanted": small.state.global_step, "off": off}


def not_a_number(folder: Path) -> dict[str, Any]:
    """One NaN among the labels: the share of weights that are NaN in the end, and the losses that were logged."""
    from tests.tiny import RegressionData

    data = RegressionData(48)
    data.labels[17] = torch.nan
    trainer = short_run(folder, data=data, save_strategy="no", logging_steps=1)
    trainer.train()
    weights = torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {"lost": weights.isnan().double().mean().item(), "logged": [round(loss, 3) for loss in losses]}


def full_disk(folder: Path, peer: str) -> dict[str, Any]:
    """A disk of 1 MB that has no room from step 4 to step 6: the steps trained, a resume with room again included."""
    command = f"mount -t tmpfs -o size=1m tmpfs {folder} && exec {sys.executable} -c '{{}}' {peer} {folder}"
    script = "from benchmarks.accidents import fill; fill()"
    ran = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command.format(script)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    told = [line for line in ran.stdout.splitlines() if line.startswith("steps ")]
    return {"steps": int(told[-1].split()[1]) if told else None, "error": "" if told else ran.stderr[-500:]}


def fill() -> None:
    """In a process whose folder is a small disk."""
    peer, folder = sys.argv[1], Path(sys.argv[2])
    stand_in(peer)
    from onward import TrainerCallback

    ballast = folder / "ballast"

    class Fills(TrainerCallback):
        steps = 0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.steps = max(self.steps, state.global_step)
            if state.global_step == 4:
                with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as handle:
                    while True:
                        handle.write(bytes(4096))
            if state.global_step == 6:
                ballast.unlink()

    fills = Fills()
    for _ in range(2):
        with contextlib.suppress(Exception):
            trainer = short_run(folder / "run", save_total_limit=2, callbacks=[fills])
            trainer.train(resume_from_checkpoint=True if any((folder / "run").glob("checkpoint-*")) else None)
            break
        ballast.unlink(missing_ok=True)
    print("steps", fills.steps)


def told_to_leave(folder: Path, peer: str) -> dict[str, Any]:
    """SIGTERM to two ranks half a second apart, SIGKILL a minute later: the steps that a resume has to take again."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "benchmarks.accidents", peer, str(folder)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    group = subprocess.Popen(command, cwd=ROOT, **quiet)
    while steps_taken(folder, 1) < 8 and group.poll() is None:
        time.sleep(0.02)
    ranks = [int((folder / f"pid-{rank}").read_text()) for rank in range(2)]
    for rank in ranks:
        os.kill(rank, signal.SIGTERM)
        time.sleep(0.5)
    left = True
    try:
        group.wait(60)
    except subprocess.TimeoutExpired:
        left = False
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, signal.SIGKILL)
        group.wait()
    taken = steps_taken(folder, 0)
    subprocess.run(command, cwd=ROOT, check=False, **quiet)
    lines = (folder / "steps-0").read_text().split()
    return {"left": left, "again": taken + 1 - int(lines[taken]) if len(lines) > taken else taken}


def steps_taken(folder: Path, rank: int) -> int:
    """By a rank, as far as it said."""
    file = folder / f"steps-{rank}"
    return len(file.read_text().split()) if file.exists() else 0


def leave_when_told() -> None:
    """In a rank: train slowly, and say which steps were taken."""
    peer, folder, rank = sys.argv[1], Path(sys.argv[2]), os.environ["RANK"]
    stand_in(peer)
    from onward import TrainerCallback

    class Says(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            time.sleep(0.1)
            with open(folder / f"steps-{rank}", "a") as file:
                file.write(f"{state.global_step}\n")

    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    trainer = short_run(folder / "run", max_steps=60, save_steps=1000, enable_jit_checkpoint=True, callbacks=[Says()])
    trainer.train(resume_from_checkpoint=True if any((folder / "run").glob("checkpoint-*")) else None)


if __name__ == "__main__":
    leave_when_told()
