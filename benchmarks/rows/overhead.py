"""What a loop costs per optimizer step: a model so small that little but the loop is left.

The same two-layer network, data, order and AdamW in four loops. The clock is inside the model: every forward notes
the time, so start-up and the end of a run do not count, and every loop is measured by the same hand.
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

from benchmarks.result import (
    HAND,
    LIGHTNING,
    ONWARD,
    TRANSFORMERS,
    Result,
    Settings,
    check_losses,
    in_turns,
    over,
)

DEVICES = ("cpu",)
BATCH, WARMUP = 8, 100
TARGETS = {1: 0.10, 4: 0.20}
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.01


class Probe(nn.Module):
    """A small network that notes when it was called, and its losses if asked to."""

    def __init__(self, keep_losses: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))
        self.times: list[tuple[float, float]] = []
        self.losses: list[float] | None = [] if keep_losses else None

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.times.append((time.perf_counter(), time.process_time()))
        logits = self.layers(x)
        loss = nn.functional.mse_loss(logits, labels)
        if self.losses is not None:
            self.losses.append(loss.item())
        return {"loss": loss, "logits": logits}

    def milliseconds(self, accumulation: int) -> tuple[float, float, float]:
        """Wall time of the median step, and mean wall and processor time of all steps, after the warm-up.

        The median is the figure: a step in which the machine did something else says nothing about the loop.
        What a loop does now and then, like a log line, is in the means.
        """
        starts = self.times[WARMUP * accumulation :: accumulation]
        wall = [after[0] - before[0] for before, after in itertools.pairwise(starts)]
        steps = len(wall)
        mean = (starts[-1][0] - starts[0][0]) / steps
        spent = (starts[-1][1] - starts[0][1]) / steps
        return statistics.median(wall) * 1e3, mean * 1e3, spent * 1e3


class Points(Dataset[dict[str, torch.Tensor]]):
    """Rows made beforehand."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = list(torch.randn(count, 16, generator=generator))
        self.labels = list(torch.randn(count, 1, generator=generator))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        return {"x": self.x[at], "labels": self.labels[at]}


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


def measure(settings: Settings) -> list[Result]:
    """One result per accumulation."""
    torch.set_num_threads(1)  # more threads only add their own noise to a network of this size
    return [compare(settings, accumulation) for accumulation in TARGETS]


def compare(settings: Settings, accumulation: int) -> Result:
    """All loops in turns at one accumulation; figures are the differences to the hand-written loop."""
    steps = settings.pick(full=1000, quick=600, smoke=WARMUP + 20)
    data = Points(steps * accumulation * BATCH)
    losses = {}
    for peer, loop in LOOPS.items():
        model = Probe(keep_losses=True)
        loop(model, Points(50 * accumulation * BATCH), 50, accumulation)
        losses[peer] = model.losses or []
    checked = check_losses(losses, HAND, 1e-6)
    means: dict[str, list[tuple[float, float]]] = {peer: [] for peer in LOOPS}

    def timed(peer: str) -> float:
        model = Probe()
        gc.collect()
        LOOPS[peer](model, data, steps, accumulation)
        median, *mean = model.milliseconds(accumulation)
        means[peer].append((mean[0], mean[1]))
        return median

    rounds = settings.pick(full=11, quick=5, smoke=1)
    figures = in_turns({peer: (lambda peer=peer: timed(peer)) for peer in LOOPS}, rounds)
    floor = figures.pop(HAND)
    notes = {
        "hand-written loop, ms per step": floor.median,
        "steps": steps,
        "mean wall ms per step": {peer: statistics.median(wall for wall, _ in found) for peer, found in means.items()},
        "mean processor ms per step": {
            peer: statistics.median(cpu for _, cpu in found) for peer, found in means.items()
        },
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
