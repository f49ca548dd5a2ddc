"""How long a save holds the loop: 60 million parameters and AdamW's state, 720 MB a checkpoint.

The floor is a copy of the same bytes in memory, without which nothing can be saved while training goes on. Two runs of
each library take turns, one that saves and one that never does. A turn lasts from one save to the next, and for a run
that saves until its checkpoint is there, so that nothing is written on somebody else's time; what it takes beyond the
other run's turn, seconds before or after, is the time lost. Both libraries save once more at the end of a run, which
counts as a save. transformers leaves its files in the page cache: what the kernel writes back later is not counted
against it, and every turn begins with nothing left to write back, so that none pays for another's.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.peers import pause, peers
from benchmarks.result import HAND, ONWARD, TRANSFORMERS, Figure, Result, Settings, check_losses, forth_and_back

DEVICES = ("cpu",)
WIDTH = 2000
SETTLE = 2
"""Steps at the beginning of a turn that do not count: the others have used the caches."""


class Wide(nn.Module):
    """Layers of four million weights each; forward looks at one sample, so that a step costs little beside a save.

    In forward it waits while others have their turn: `SETTLE` steps before the step that ends with a save.
    """

    def __init__(self, layers: int, every: int, folder: str, *, saves: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers))
        self.every, self.folder, self.saves = every, folder, saves
        self.times: list[float] = []
        self.losses: list[float] = []

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        if (len(self.losses) + 1 + SETTLE) % self.every == 0:
            pause(self.turn())
            os.sync()
            self.times = []
        self.times.append(time.perf_counter())
        for layer in self.layers:
            x = torch.tanh(layer(x))
        loss = nn.functional.mse_loss(x.mean(-1), labels)
        self.losses.append(loss.item())
        return {"loss": loss}

    def turn(self) -> dict[str, Any]:
        """Seconds of each step in this turn, the first of them the one with the save, and of waiting for its files."""
        self.times.append(time.perf_counter())
        last = Path(self.folder) / f"checkpoint-{len(self.losses) // self.every * self.every}"
        while self.saves and len(self.losses) >= self.every and not last.is_dir():
            time.sleep(0.005)
        waited = time.perf_counter() - self.times[-1]
        return {"steps": [b - a for a, b in itertools.pairwise(self.times)][SETTLE:], "waited": waited}


def rows(count: int) -> list[dict[str, torch.Tensor]]:
    """Samples."""
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(WIDTH, generator=generator), "labels": torch.tensor(0.5)} for _ in range(count)]


def answer(peer: str, question: dict[str, Any]) -> dict[str, Any]:
    """In a peer's process: one run with saves or without, one answer for each turn."""
    if peer == HAND:
        return copied(question["layers"])
    import importlib

    library: Any = importlib.import_module(peer)
    steps, every, saves = question["steps"], question["every"], question["saves"]
    with tempfile.TemporaryDirectory() as folder:
        model = Wide(question["layers"], every, folder, saves=saves)
        args = library.TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=1,
            learning_rate=1e-5,
            save_strategy="steps" if saves else "no",
            save_steps=every,
            save_total_limit=1,
            logging_steps=steps,
            report_to="none",
            disable_tqdm=True,
            log_level="error",
            use_cpu=True,
        )
        trainer = library.Trainer(model=model, args=args, train_dataset=rows(steps))
        trainer.remove_callback(library.PrinterCallback)
        trainer.train()
        end = time.perf_counter() - model.times[-1]
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {"end": end, "losses": model.losses, "bytes": size}


def copied(layers: int) -> dict[str, Any]:
    """Seconds to copy weights and both moments."""
    source = [torch.ones(WIDTH, WIDTH) for _ in range(3 * layers)]
    target = [torch.zeros(WIDTH, WIDTH) for _ in source]
    start = time.perf_counter()
    for to, of in zip(target, source, strict=True):
        to.copy_(of)
    return {"held": [time.perf_counter() - start]}


def measure(settings: Settings) -> list[Result]:
    """The time held per save, and the time lost per save over the whole run."""
    layers = settings.pick(full=15, quick=15, smoke=1)
    every = settings.pick(full=24, quick=12, smoke=4)
    saves = settings.pick(full=4, quick=2, smoke=1)  # within the run; the first touches fresh memory
    rounds = settings.pick(full=5, quick=1, smoke=1)
    held: dict[str, list[float]] = {HAND: [], TRANSFORMERS: [], ONWARD: []}
    lost: dict[str, list[float]] = {TRANSFORMERS: [], ONWARD: []}
    at_end: dict[str, list[float]] = {TRANSFORMERS: [], ONWARD: []}
    losses: dict[str, list[float]] = {}
    written = {}
    steps = every * (saves + 1) - SETTLE  # the last step is the first of a turn
    question = {"layers": layers, "steps": steps, "every": every}
    with peers("saving", list(held)) as saving, peers("saving", list(lost)) as free:

        def turn(order: list[str]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
            """The next answers of each library's two runs."""
            return {
                peer: (saving[peer].ask(**question, saves=True), free[peer].ask(**question, saves=False))
                for peer in order
            }

        for at in range(rounds):
            order = forth_and_back(lost, at)
            held[HAND] += [second * 1e3 for second in saving[HAND].ask(**question)["held"]]
            beyond: dict[str, list[float]] = {peer: [] for peer in lost}
            turn(order)  # up to the first save
            for _ in range(saves):
                for peer, (run, other) in turn(order).items():
                    held[peer].append((run["steps"][0] - statistics.median(other["steps"])) * 1e3)
                    beyond[peer].append(sum(run["steps"]) + run["waited"] - sum(other["steps"]))
            for peer, (run, other) in turn(order).items():
                at_end[peer].append((run["end"] - other["end"]) * 1e3)
                lost[peer].append((sum(beyond[peer]) * 1e3 + at_end[peer][-1]) / (saves + 1))
                losses |= {f"{peer} with saves": run["losses"], f"{peer} without": other["losses"]}
                written[peer] = run["bytes"]
    checked = check_losses(losses, f"{TRANSFORMERS} without", 0.0)
    figures = {peer: Figure(tuple(values)) for peer, values in held.items()}
    totals = {peer: Figure(tuple(values)) for peer, values in lost.items()}
    ends = {peer: statistics.median(values) for peer, values in at_end.items()}
    notes = {"bytes in the last checkpoint": written, "saves in a run": saves + 1, "ms for the one at its end": ends}
    return [
        Result("saving", "loop held per save, 720 MB", "ms", figures, ratio_target=0.1, checked=checked, notes=notes),
        Result("saving", "time lost per save over the whole run", "ms", totals, ratio_target=0.5),
    ]
