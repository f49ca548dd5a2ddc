"""What a loop costs per optimizer step: a model so small that little but the loop is left.

The same two-layer network, data, order and AdamW in four loops, each in a process of its own. The clock is inside the
model: every forward notes the time, so start-up and the end of a run do not count, and every loop is measured by the
same hand. The model also makes the loops take turns: each runs for some ten milliseconds and waits in forward until the
others have done the same. What is compared then happened within a fraction of a second: a shared machine changes its
speed by a factor of two from one second to the next, which is more than the difference that is looked for. Half of the
rounds count: those in which all loops together were fastest.
"""

from __future__ import annotations

import gc
import itertools
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers import Peer, pause, peers
from benchmarks.result import (
    HAND,
    LIGHTNING,
    ONWARD,
    TRANSFORMERS,
    Result,
    Settings,
    calm,
    check_losses,
    in_turns,
    over,
)

DEVICES = ("cpu",)
BATCH = 8
TURN, SETTLE = 50, 10
"""Steps of a loop's turn, and how many of them pass before the clock counts: the others have used the caches."""
WARMUP = 2
"""Turns that do not count."""
TARGETS = {1: 0.10, 4: 0.20}
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.01


class Probe(nn.Module):
    """A small network that keeps its losses if asked to."""

    def __init__(self, losses: list[float] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
        self.losses = losses

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.layers(x)
        loss = nn.functional.mse_loss(logits, labels)
        if self.losses is not None:
            self.losses.append(loss.item())
        return {"loss": loss, "logits": logits}


class Clock(Probe):
    """Notes when it was called, and lets the other loops have their turn every `TURN` steps."""

    def __init__(self, accumulation: int) -> None:
        super().__init__()
        self.accumulation = accumulation
        self.turn = TURN * accumulation  # in calls
        self.times: list[tuple[float, float]] = []

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.times.append((time.perf_counter(), time.process_time()))
        if len(self.times) > self.turn:
            pause(self.figures())
            self.times = [(time.perf_counter(), time.process_time())]
        return super().forward(x, labels)

    def figures(self) -> dict[str, float]:
        """Of this turn, in ms per step: wall time of the median step, and the means of wall and processor time.

        The median is the figure: a step in which the machine did something else says nothing about the loop.
        What a loop does now and then, like a log line, is in the means.
        """
        starts = self.times[SETTLE * self.accumulation :: self.accumulation]
        wall = [after[0] - before[0] for before, after in itertools.pairwise(starts)]
        first, last = starts[0], starts[-1]
        means = {"wall": (last[0] - first[0]) / len(wall), "processor": (last[1] - first[1]) / len(wall)}
        return {name: value * 1e3 for name, value in {"median": statistics.median(wall), **means}.items()}


class Points(Dataset[dict[str, torch.Tensor]]):
    """Rows made beforehand; they come again and again, so that a long run needs no more of them."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.count = count
        self.x = list(torch.randn(1000, 16, generator=generator))
        self.labels = list(torch.randn(1000, 1, generator=generator))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        return {"x": self.x[at % 1000], "labels": self.labels[at % 1000]}


Loop = Callable[[Probe, Points, int, int], None]


def optimizer_and_schedule(model: nn.Module, steps: int) -> tuple[Any, Any]:
    """AdamW that decays matrices alone, and a linear schedule: what the trainers make of their arguments."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, (steps - step) / steps))


def hand_written(model: Probe, data: Points, steps: int, accumulation: int) -> None:
    """The floor: what a careful person writes, with clipping and a schedule, and no more."""
    optimizer, schedule = optimizer_and_schedule(model, steps)
    parameters = list(model.parameters())
    total = torch.tensor(0.0)
    model.train()
    for at, batch in enumerate(DataLoader(data, batch_size=BATCH)):
        loss = model(**batch)["loss"] / accumulation
        loss.backward()
        total += loss.detach()
        if (at + 1) % accumulation == 0:
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


def arguments(kind: Any, folder: str, steps: int, accumulation: int) -> Any:
    """Arguments for transformers and onward: defaults, except for what would write or print."""
    return kind(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=accumulation,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        train_sampling_strategy="sequential",
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        use_cpu=True,
    )


def with_transformers(model: Probe, data: Points, steps: int, accumulation: int) -> None:
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    with tempfile.TemporaryDirectory() as folder:
        args = arguments(TrainingArguments, folder, steps, accumulation)
        trainer = Trainer(model=model, args=args, train_dataset=data)
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def with_onward(model: Probe, data: Points, steps: int, accumulation: int) -> None:
    from onward import PrinterCallback, Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        args = arguments(TrainingArguments, folder, steps, accumulation)
        trainer = Trainer(model=model, args=args, train_dataset=data)
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def with_lightning(model: Probe, data: Points, steps: int, accumulation: int) -> None:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, _: int) -> Any:
            return self.model(**batch)["loss"]

        def configure_optimizers(self) -> Any:
            optimizer, schedule = optimizer_and_schedule(model, steps)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=accumulation,
        gradient_clip_val=1.0,
        enable_model_summary=False,
        **quiet,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the missing workers
        trainer.fit(Module(), DataLoader(data, batch_size=BATCH))


LOOPS: dict[str, Loop] = {
    HAND: hand_written,
    TRANSFORMERS: with_transformers,
    LIGHTNING: with_lightning,
    ONWARD: with_onward,
}


def answer(peer: str, question: dict[str, int]) -> dict[str, Any]:
    """In the process of `peer`: its losses, or the figures of its turns, one answer for each."""
    torch.set_num_threads(1)  # more threads only add their own noise to a network of this size
    steps, accumulation = question["steps"], question["accumulation"]
    losses: list[float] | None = [] if question["keep_losses"] else None
    model = Clock(accumulation) if losses is None else Probe(losses)
    gc.collect()
    LOOPS[peer](model, Points(steps * accumulation * BATCH), steps, accumulation)
    return {"losses": losses}


def measure(settings: Settings) -> list[Result]:
    """One result per accumulation."""
    with peers("overhead", list(LOOPS)) as started:
        return [compare(started, settings, accumulation) for accumulation in TARGETS]


def compare(started: dict[str, Peer], settings: Settings, accumulation: int) -> Result:
    """All loops in turns at one accumulation; figures are differences to the hand-written loop in the same round."""
    rounds = settings.pick(full=200, quick=20, smoke=2)
    steps = (WARMUP + rounds) * TURN + 1
    turns: dict[str, list[dict[str, float]]] = {peer: [] for peer in LOOPS}

    def losses(peer: str) -> list[float]:
        found: list[float] = started[peer].ask(steps=50, accumulation=accumulation, keep_losses=1)["losses"]
        return found

    def turn(peer: str) -> float:
        turns[peer].append(started[peer].ask(steps=steps, accumulation=accumulation, keep_losses=0))
        return turns[peer][-1]["median"]

    checked = check_losses({peer: losses(peer) for peer in LOOPS}, HAND, 1e-6)
    runs = {peer: (lambda peer=peer: turn(peer)) for peer in LOOPS}
    in_turns(runs, WARMUP)
    for found in turns.values():
        found.clear()
    whole = in_turns(runs, rounds)
    figures = calm(whole)
    for peer in LOOPS:  # lets the run end: the last step is no turn's
        started[peer].ask()
    floor = figures.pop(HAND)

    def middle(key: str) -> dict[str, float]:
        return {peer: statistics.median(figures[key] for figures in found) for peer, found in turns.items()}

    notes = {
        "hand-written loop, ms per step": floor.median,
        "steps": len(floor.values) * TURN,
        "ms with all rounds": {peer: over(whole[HAND], whole[peer]).median for peer in figures},
        "mean wall ms per step": middle("wall"),
        "mean processor ms per step": middle("processor"),
    }
    return Result(
        row="overhead",
        title=f"loop's own time per optimizer step, accumulation {accumulation}",
        unit="ms",
        figures={peer: over(floor, figure) for peer, figure in figures.items()},
        target=TARGETS[accumulation],
        checked=checked,
        notes=notes,
    )
