"""Trains on two ranks of which one meets numbers that are not finite, in several ways. Run by the tests."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onward import Trainer, TrainerCallback, TrainingArguments
from onward.errors import NonFinite
from tests.tiny import RegressionData, TinyRegression

CALL = 5
"""The forward at which a rank is hit: with two micro-batches a step, the first one of step 3."""


class GradientAlone(torch.autograd.Function):
    """Nothing in forward, NaN in backward."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * math.nan


class Hit(TinyRegression):
    """On rank 1, one forward gives a loss or a gradient that is not finite."""

    def __init__(self, kind: str, hits: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)  # type: ignore[assignment]
        self.kind, self.hits, self.calls = kind, hits, 0

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        self.calls += 1
        if not (self.hits and self.calls == CALL):
            return super().forward(x, labels)
        if self.kind == "gradient":
            return super().forward(x + 0 * GradientAlone.apply(self.body.weight).sum(), labels)
        if self.kind == "input":
            return super().forward(x * math.nan, labels)
        out = super().forward(x, labels)
        return {**out, "loss": out["loss"] + float(self.kind)}


class Copies(TrainerCallback):
    """The whole state of the model behind every step."""

    def __init__(self) -> None:
        self.states: list[list[Tensor]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.states.append([value.clone() for value in model.state_dict().values()])


class Chosen(RegressionData):
    """The steps of eight samples with these numbers."""

    def __init__(self, steps: list[int]) -> None:
        super().__init__(48)
        rows = [8 * (step - 1) + offset for step in steps for offset in range(8)]
        self.x, self.labels = self.x[rows], self.labels[rows]


def train(folder: Path, kind: str, policy: str, steps: list[int]) -> dict[str, Any]:
    args = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=1,
        learning_rate=1e-2, logging_steps=1, save_strategy="steps", save_steps=1, report_to="none", disable_tqdm=True,
        use_cpu=True, ddp_find_unused_parameters=False, train_sampling_strategy="sequential", on_nonfinite=policy,
    )  # fmt: skip
    copies = Copies()
    model = Hit(kind, kind != "none" and args.process_index == 1)
    trainer = Trainer(model, args, train_dataset=Chosen(steps), callbacks=[copies])
    error = ""
    try:
        trainer.train()
    except NonFinite as raised:
        error = str(raised)
    states = copies.states
    return {
        "weights": [value.flatten().tolist() for name, value in model.state_dict().items() if "running" not in name],
        "finite": all(bool(value.isfinite().all()) for value in model.state_dict().values()),
        "held": len(states) > 2 and all(torch.equal(a, b) for a, b in zip(states[2], states[1], strict=True)),
        "count": trainer.meters.nonfinite_steps,
        "positions": trainer.meters.nonfinite_positions,
        "rollbacks": trainer.meters.rollbacks,
        "steps": trainer.state.global_step,
        "error": error,
    }


def main() -> None:
    folder = Path(sys.argv[1])
    results = {
        f"{kind} {policy}": train(folder / f"{kind}-{policy}", kind, policy, [1, 2, 3, 4, 5, 6])
        for kind in ("nan", "inf", "gradient", "input")
        for policy in ("skip", "raise", "rollback")
    }
    results["by hand"] = train(folder / "by-hand", "none", "raise", [1, 2, 4, 5, 6, 1])
    rank = int(torch.distributed.get_rank())
    (folder / f"{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
