"""A small trainer that saves at every step, for the tests of saving."""

from __future__ import annotations

from typing import Any

from tests.tiny import RegressionData, TinyRegression

from onward import Trainer, TrainingArguments
from onward.checkpoint.store import list_checkpoints


def arguments(**changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": "run", "max_steps": 4, "save_steps": 1, "logging_steps": 1, "report_to": [], "use_cpu": True,
        "per_device_train_batch_size": 4, "disable_tqdm": True,
    }  # fmt: skip
    return TrainingArguments(**{**settings, **changes})


def trainer(cls: type[Trainer] = Trainer, callbacks: list[Any] | None = None, **changes: Any) -> Trainer:
    return cls(
        model=TinyRegression(), args=arguments(**changes), train_dataset=RegressionData(16),
        eval_dataset=RegressionData(8), callbacks=callbacks,
    )  # fmt: skip


def steps(folder: str = "run") -> list[int]:
    return [each.step for each in list_checkpoints(folder)]


class Through(Trainer):
    """Saves synchronously, because it overrides a hook."""

    def _save_scaler(self, output_dir: str) -> None:
        super()._save_scaler(output_dir)
