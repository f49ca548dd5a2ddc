"""What each of two ranks does in `test_ranks`; run under torchrun, prints one JSON line per scenario from each rank."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.tiny import RegressionData, TinyRegression

from onward import Trainer, TrainingArguments
from onward.checkpoint import list_checkpoints

RANK = int(os.environ["RANK"])


class FailsOnRankOne(Trainer):
    """Cannot write its random numbers on rank 1."""

    error: Exception = OSError(28, "No space left on device")

    def _save_rng_state(self, output_dir: str) -> None:
        if RANK == 1:
            raise self.error
        super()._save_rng_state(output_dir)


class HasABug(FailsOnRankOne):
    """Has a bug that shows on rank 1 only."""

    error = TypeError("a bug")


class Through(Trainer):
    """Saves synchronously."""

    def _save_scaler(self, output_dir: str) -> None:
        super()._save_scaler(output_dir)


def trainer(folder: str, cls: type[Trainer] = Trainer, **changes: Any) -> Trainer:
    settings: dict[str, Any] = {
        "output_dir": folder, "max_steps": 4, "save_steps": 1, "logging_steps": 1, "report_to": [], "use_cpu": True,
        "per_device_train_batch_size": 2, "disable_tqdm": True, "learning_rate": 0.01,
    }  # fmt: skip
    return cls(
        model=TinyRegression(dropout=0.5), args=TrainingArguments(**{**settings, **changes}),
        train_dataset=RegressionData(16),
    )  # fmt: skip


def tell(scenario: str, **values: Any) -> None:
    dist.barrier()
    sys.stdout.write(json.dumps({"scenario": scenario, "rank": RANK, **values}) + "\n")
    sys.stdout.flush()
    dist.barrier()


def numbers(made: Trainer) -> list[float]:
    return torch.cat([each.detach().flatten() for each in made.model.parameters()]).tolist()


def outcome(action: Any) -> str:
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "fine"


def main() -> None:
    for name, cls in (("beside", Trainer), ("through", Through)):
        whole = trainer(name, cls)
        whole.train()
        files = sorted(each.name for each in Path(name, "checkpoint-2").iterdir())
        resumed = trainer(name, cls, save_strategy="no")
        resumed.train(resume_from_checkpoint=f"{name}/checkpoint-2")
        tell(name, files=files, equal=numbers(whole) == numbers(resumed))
    failing = trainer("failing", FailsOnRankOne)
    said = outcome(failing.train)
    dist.barrier()
    tell(
        "failing",
        said=said,
        saved=[str(each.path) for each in list_checkpoints("failing")],
        step=failing.state.global_step,
    )
    tell("bug", said=outcome(trainer("bug", HasABug).train))
    if RANK == 0:
        Path("beside/checkpoint-4/optimizer.pt").unlink()
    dist.barrier()
    tell("broken", said=outcome(lambda: trainer("beside").train(resume_from_checkpoint="beside/checkpoint-4")))
    newest = trainer("beside", max_steps=5)
    tell("newest", said=outcome(lambda: newest.train(resume_from_checkpoint=True)), step=newest._initial_global_step)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
