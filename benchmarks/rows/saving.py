"""How long a save holds the loop: 60 million parameters and AdamW's state, 720 MB a checkpoint.

The floor is a copy of the same bytes in memory, without which nothing can be saved while training goes on. The held
time is what a step with a save takes beyond a step without one; the time lost is what the whole run takes beyond the
same run without saves, the wait for the last checkpoint at its end included. Both peers save once more at the end,
which counts as a save. transformers leaves its files in the page cache: what the kernel writes back after the run is
not counted against it, and every run begins with nothing left to write back, so that none pays for another's.
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

from benchmarks.peers import peers
from benchmarks.result import HAND, ONWARD, TRANSFORMERS, Figure, Result, Settings, check_losses

DEVICES = ("cpu",)
WIDTH = 2000


class Wide(nn.Module):
    """Layers of four million weights each; forward looks at one sample, so that a step costs little beside a save."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers))
        self.times: list[float] = []
        self.losses: list[float] = []

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.times.append(time.perf_counter())
        for layer in self.layers:
            x = torch.tanh(layer(x))
        loss = nn.functional.mse_loss(x.mean(-1), labels)
        self.losses.append(loss.item())
        return {"loss": loss}


def rows(count: int) -> list[dict[str, torch.Tensor]]:
    """Samples."""
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(WIDTH, generator=generator), "labels": torch.tensor(0.5)} for _ in range(count)]


def answer(peer: str, question: dict[str, Any]) -> dict[str, Any]:
    """In a peer's process: one run, with a save every `every` steps or none."""
    if peer == HAND:
        return copied(question["layers"])
    import importlib

    library: Any = importlib.import_module(peer)
    steps, every = question["steps"], question["every"]
    model = Wide(question["layers"])
    with tempfile.TemporaryDirectory() as folder:
        args = library.TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=1,
            learning_rate=1e-5,
            save_strategy="steps" if every else "no",
            save_steps=every or steps,
            save_total_limit=1,
            logging_steps=steps,
            report_to="none",
            disable_tqdm=True,
            log_level="error",
            use_cpu=True,
        )
        trainer = library.Trainer(model=model, args=args, train_dataset=rows(steps))
        trainer.remove_callback(library.PrinterCallback)
        os.sync()
        start = time.perf_counter()
        trainer.train()
        took = time.perf_counter() - start
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    durations = [after - before for before, after in itertools.pairwise(model.times)]
    plain = [duration for at, duration in enumerate(durations, 1) if not every or at % every]
    saves = [duration for at, duration in enumerate(durations, 1) if every and at % every == 0]
    held = [duration - statistics.median(plain) for duration in saves]
    return {"held": held, "took": took, "losses": model.losses, "bytes": size}


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
    every = settings.pick(full=12, quick=8, smoke=2)
    saves = settings.pick(full=4, quick=3, smoke=1)  # within the run; the first touches fresh memory
    rounds = settings.pick(full=5, quick=2, smoke=1)
    steps = every * saves + every // 2
    held: dict[str, list[float]] = {HAND: [], TRANSFORMERS: [], ONWARD: []}
    lost: dict[str, list[float]] = {TRANSFORMERS: [], ONWARD: []}
    losses: dict[str, list[float]] = {}
    written = {}
    with peers("saving", list(held)) as started:
        for at in range(rounds):
            for peer in list(held)[:: 1 if at % 2 == 0 else -1]:
                saving = started[peer].ask(layers=layers, steps=steps, every=every)
                held[peer].append(statistics.median(saving["held"]) * 1e3)
                if peer in lost:
                    free = started[peer].ask(layers=layers, steps=steps, every=0)
                    lost[peer].append((saving["took"] - free["took"]) / (saves + 1) * 1e3)
                    losses |= {f"{peer} with saves": saving["losses"], f"{peer} without": free["losses"]}
                    written[peer] = saving["bytes"]
    checked = check_losses(losses, f"{TRANSFORMERS} without", 0.0)
    figures = {peer: Figure(tuple(values)) for peer, values in held.items()}
    totals = {peer: Figure(tuple(values)) for peer, values in lost.items()}
    notes = {"bytes in the last checkpoint": written, "saves": saves + 1}
    return [
        Result("saving", "loop held per save, 720 MB", "ms", figures, ratio_target=0.1, checked=checked, notes=notes),
        Result("saving", "time lost per save over the whole run", "ms", totals, ratio_target=0.5),
    ]
