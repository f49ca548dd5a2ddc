"""What a scenario gets: a library, a folder, and the few lines that every training script shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .library import Library
from .record import recorder, run_record


class Stage:
    """Builds arguments and trainers of `lib` below `folder`, trains, and records what happened."""

    def __init__(self, lib: Library, folder: Path) -> None:
        """`folder` is made when something is first written there."""
        self.lib = lib
        self.folder = folder
        self.recorder = recorder(lib.TrainerCallback)

    def arguments(self, kind: Any = None, **changes: Any) -> Any:
        """`TrainingArguments` (or `kind`) that log every step and keep quiet; `changes` win."""
        common: dict[str, Any] = {
            "output_dir": str(self.folder / "run"),
            "logging_steps": 1,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "disable_tqdm": True,
            "report_to": "none",
            "use_cpu": True,
        }
        return (kind or self.lib.TrainingArguments)(**{**common, **changes})

    def trainer(self, model: Any, args: Any, kind: Any = None, callbacks: Any = (), **parts: Any) -> Any:
        """A `Trainer` (or `kind`) with the event recorder among its callbacks."""
        return (kind or self.lib.Trainer)(model=model, args=args, callbacks=[*callbacks, self.recorder], **parts)

    def finish(self, trainer: Any, **options: Any) -> dict[str, Any]:
        """Train and record."""
        output = trainer.train(**options)
        record = run_record(trainer, output, self.recorder.trace)
        # The first draw after training shows whether both libraries drew the same amount of random numbers.
        record["random"] = torch.rand(1).item().hex()
        return record

    def train(self, model: Any, train_dataset: Any, trainer: dict[str, Any] | None = None, **changes: Any) -> Any:
        """Arguments from `changes`, a trainer with the parts `trainer`, a run, its record."""
        args = self.arguments(**changes)
        return self.finish(self.trainer(model, args, train_dataset=train_dataset, **(trainer or {})))
