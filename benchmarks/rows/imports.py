"""Seconds from `import torch` to a `Trainer` at hand, and the modules that came with it."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.result import LIGHTNING, ONWARD, TRANSFORMERS, Result, Settings, in_turns

DEVICES = ("cpu", "cuda")

STATEMENTS = {
    TRANSFORMERS: "from transformers import Trainer, TrainingArguments",
    LIGHTNING: "from lightning import Trainer",
    ONWARD: "from onward import Trainer, TrainingArguments",
}

SCRIPT = """
import sys, time, json
import torch
known, start = len(sys.modules), time.perf_counter()
{statement}
print(json.dumps([time.perf_counter() - start, len(sys.modules) - known]))
"""


def measure(settings: Settings) -> list[Result]:
    """Fresh interpreters in turns; the first round, which reads from disk, is thrown away."""
    modules: dict[str, int] = {}

    def timed(peer: str) -> float:
        command = [sys.executable, "-c", SCRIPT.format(statement=STATEMENTS[peer])]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        seconds, modules[peer] = json.loads(output.splitlines()[-1])
        return float(seconds)

    peers = {peer: (lambda peer=peer: timed(peer)) for peer in STATEMENTS}
    if settings.effort != "smoke":
        in_turns(peers, 1)
    figures = in_turns(peers, settings.pick(full=9, quick=1, smoke=1))
    return [Result("imports", "import on top of torch", "s", figures, target=0.3, notes={"modules": modules})]
