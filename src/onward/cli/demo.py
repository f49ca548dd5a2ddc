"""`onward demo`: the promise of this package, shown in three minutes on any machine.

The script of ``examples/train_language_model.py`` runs as a process of its own, exactly as a user would start it:

    1. once, undisturbed
    2. once more from the start, until half of its steps are logged; then it is killed with SIGKILL
    3. again with the same command: it resumes from the newest checkpoint and ends

and every loss that run 2 + 3 logged, and its final weights, are compared with those of run 1, bit by bit.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.errors import MissingDependency, OnwardError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

SCRIPT = "train_language_model.py"
CURVE_ROWS = 8
PATIENCE = 0.1  # seconds between two looks at the metrics of the run that is to be killed


class DemoFailed(OnwardError):
    """A step of the demo did not do what it promises."""


def run(steps: int, device: str, output_dir: Path, crash: bool) -> None:
    """Run the demo and print what happens.

    Args:
        steps: optimizer steps of each run.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        output_dir: where the demo's folder, ``run-1`` for the first, is made. Nothing in it is ever deleted.
        crash: also kill a run half-way and resume it.

    Raises:
        MissingDependency: transformers or datasets is not installed.
        DemoFailed: a training process failed, or the resumed run differs from the undisturbed one.
    """
    from rich.console import Console

    _check(device)
    started = time.monotonic()
    folder = _new_folder(output_dir)
    say = Console(highlight=False)
    command = [sys.executable, str(find_script()), "--steps", str(steps)]
    command += [] if device == "auto" else ["--device", device]

    say.rule("[bold]a small Llama learns Python from the standard library")
    say.print(f"$ python {SCRIPT} {' '.join(command[2:])} --output-dir {folder / 'undisturbed'}\n", soft_wrap=True)
    _train(command, folder / "undisturbed")
    if crash:
        _crash_and_resume(say, command, folder, steps)
        _compare(say, folder / "undisturbed", folder / "killed")
    say.rule("[bold]what the model writes")
    say.print((folder / ("killed" if crash else "undisturbed") / "samples.txt").read_text("utf-8"), markup=False)
    say.rule(f"[bold]done in {time.monotonic() - started:.0f} s")
    say.print(f"The run: {folder.resolve()}", soft_wrap=True)
    say.print("Look at its checkpoints:", f"onward checkpoints ls {folder / 'undisturbed'}", soft_wrap=True)


def find_script() -> Path:
    """The example script: in the package where it was installed, in ``examples/`` where it runs from a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "examples", package.parent.parent / "examples"):
        if (folder / SCRIPT).is_file():
            return folder / SCRIPT
    raise DemoFailed(f"{SCRIPT} is in neither {package / 'examples'} nor a checkout: install onward again.")


def read_losses(run_folder: Path) -> dict[int, float]:
    """Step -> training loss as the run logged it. A step that was trained again after a crash counts as it ended."""
    try:
        lines = (run_folder / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return {}
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith("}\n")]
    return {row["step"]: row["loss"] for row in rows if row.get("loss") is not None}


def _check(device: str) -> None:
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device got {device!r}, expected auto, cpu or cuda.")
    missing = [name for name in ("transformers", "datasets") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependency(f"the demo needs {' and '.join(missing)}: pip install 'onward[hf]'")


def _new_folder(output_dir: Path) -> Path:
    """Make the next free ``run-N``: an old demo would be resumed, and there would be nothing to see."""
    number = 1
    while (folder := output_dir / f"run-{number}").exists():
        number += 1
    folder.mkdir(parents=True)
    return folder


def _start(command: Sequence[str], run_folder: Path) -> subprocess.Popen[bytes]:
    """Start training as a process of its own, which shows its progress in this terminal.

    One thread unless the environment says otherwise: so small a model gains nothing from a second one, and threads that
    wait for each other make it crawl on a machine that is busy with something else.
    """
    environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ}
    return subprocess.Popen([*command, "--output-dir", str(run_folder)], env=environment)


def _train(command: Sequence[str], run_folder: Path) -> None:
    process = _start(command, run_folder)
    try:
        status = process.wait()
    finally:
        process.kill()  # on Ctrl-C nothing may stay behind; of a process that has ended this asks nothing
    if status != 0:
        raise DemoFailed(f"training ended with exit status {status}; its output stands above.")


def _crash_and_resume(say: Console, command: Sequence[str], folder: Path, steps: int) -> None:
    from onward import get_last_checkpoint

    killed = folder / "killed"
    say.print()
    say.rule("[bold]the same run again, but not to the end")
    last = _train_until(steps // 2, command, killed)
    checkpoint = get_last_checkpoint(killed)
    say.print(f"\n\n[bold red]kill -9[/] when step {last} of {steps} was logged. ", end="")
    say.print(f"Newest whole checkpoint: {Path(checkpoint).name if checkpoint else 'none'}.\n")
    say.rule("[bold]the same command once more: it resumes")
    _train(command, killed)


def _train_until(step: int, command: Sequence[str], run_folder: Path) -> int:
    """Train until `step` is logged, then send SIGKILL. Returns the last step that was logged."""
    process = _start(command, run_folder)
    try:
        while process.poll() is None:
            if (last := max(read_losses(run_folder), default=0)) >= step:
                return last
            time.sleep(PATIENCE)
    finally:
        process.kill()
        process.wait()
    raise DemoFailed(
        f"training ended with exit status {process.returncode} before step {step}, where it was to be killed."
    )


def _compare(say: Console, whole: Path, resumed: Path) -> None:
    """Print both curves side by side and say whether they, and the weights, are equal to the bit."""
    from rich.table import Table

    ours, theirs = read_losses(whole), read_losses(resumed)
    steps = sorted(ours.keys() | theirs.keys())
    table = Table(title="training loss")
    for heading in ("step", "undisturbed", "killed and resumed", "equal to the bit"):
        table.add_column(heading, justify="right")
    for step in steps[:: max(1, len(steps) // CURVE_ROWS)]:
        equal = ours.get(step) == theirs.get(step)
        table.add_row(str(step), repr(ours.get(step)), repr(theirs.get(step)), "yes" if equal else "[red]no")
    say.print()
    say.print(table)
    different = [step for step in steps if ours.get(step) != theirs.get(step)]
    weights = [_digest(run_folder / "model.safetensors") for run_folder in (whole, resumed)]
    say.print(f"{len(steps) - len(different)} of {len(steps)} logged losses are equal to the bit.")
    say.print(f"sha256 of the final weights: {weights[0][:16]}… and {weights[1][:16]}…\n")
    if different or weights[0] != weights[1]:
        raise DemoFailed(f"the resumed run differs from the undisturbed one (losses at steps {different}).")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
