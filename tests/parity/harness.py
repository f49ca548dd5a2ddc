"""Start one worker per library and hand out records as they appear."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 300  # seconds without a new record before a worker counts as stuck


class Pair:
    """The two workers, one per library, running `names` (or every scenario) side by side."""

    worker = "tests.parity.worker"
    """The module that runs scenarios."""

    def __init__(self, folder: Path, names: list[str], second: str = "onward") -> None:
        """Start both; records appear below `folder`."""
        self.names = self.choose(names)
        self.libraries = ("transformers", second)
        self.folders = [folder / f"{at}_{library}" for at, library in enumerate(self.libraries)]
        self.workers = [self.start(*pair) for pair in zip(self.libraries, self.folders, strict=True)]

    def choose(self, names: list[str]) -> list[str]:
        """Those of `names` that there are, or all, in their order."""
        from .scenarios import SCENARIOS

        return [name for name in SCENARIOS if name in names or not names]

    def start(self, library: str, folder: Path) -> subprocess.Popen[bytes]:
        """One worker in a clean environment; its output goes to a file, read when it fails."""
        folder.mkdir(parents=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "WANDB_"))}
        environment = {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), kept.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", self.worker, library, str(folder), *self.names]
        with (folder / "output").open("wb") as output:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)

    def records(self, name: str) -> list[dict[str, Any]]:
        """What transformers and onward did in scenario `name`; waits until both are done."""
        return [self.record(at, name) for at in range(2)]

    def record(self, at: int, name: str) -> dict[str, Any]:
        """One side's record of scenario `name`."""
        path = self.folders[at] / f"{name}.json"
        started, known = time.monotonic(), -1
        while not path.exists():
            done = len(list(self.folders[at].glob("*.json")))
            if done != known:
                started, known = time.monotonic(), done
            ended = self.workers[at].poll() is not None
            if (ended or time.monotonic() - started > TIMEOUT) and not path.exists():
                output = (self.folders[at] / "output").read_text(errors="replace")[-3000:]
                return {"error": f"the worker {'ended' if ended else 'hangs'} without a record:\n{output}"}
            time.sleep(0.02)
        record: dict[str, Any] = json.loads(path.read_text())
        return record

    def __enter__(self) -> Pair:
        """The pair itself."""
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Stop what still runs."""
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            worker.wait()


def wanted_by(items: list[pytest.Item], module: str) -> list[str]:
    """The scenarios that those of `items` in the package `module` name with their mark."""
    marks = [item.get_closest_marker("scenarios") for item in items if item.module.__name__.startswith(module)]  # type: ignore[attr-defined]
    return list(dict.fromkeys(name for mark in marks if mark for name in mark.args))
