"""Half precision with torch's own scaler, which also scales on a CPU: out of memory, and overflows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from onward import Trainer, TrainingArguments
from tests.tiny import RegressionData, TinyRegression


class RunsOut(TinyRegression):
    """Has no room for more than four samples from its fifth call on, if it is to run out."""

    def __init__(self, runs_out: bool) -> None:
        super().__init__()
        self.runs_out = runs_out
        self.sizes: list[int] = []

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        if self.runs_out and len(self.sizes) >= 4 and len(x) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.sizes.append(len(x))
        return super().forward(x=x, labels=labels)


class InHalf(Trainer):
    """On a CPU `fp16=True` does nothing; what it sets up on an accelerator works there all the same."""

    scale = 1024.0

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=self.scale, growth_interval=3)
        self.accelerator.native_amp = True
        self.accelerator.state._mixed_precision = "fp16"


@pytest.fixture(autouse=True)
def _full_precision_afterwards() -> Iterator[None]:
    yield
    AcceleratorState._reset_state()


def trained(folder: Path, scale: float, *, batch: int, accumulation: int, runs_out: bool = False) -> InHalf:
    torch.manual_seed(0)
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=8,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        auto_find_batch_size=True,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    kind = type("InHalfOf", (InHalf,), {"scale": scale})
    trainer: InHalf = kind(RunsOut(runs_out), args, train_dataset=RegressionData(64))
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("scale", "at_the_end"),
    [
        pytest.param(1024.0, 4096.0, id="grows"),
        pytest.param(2.0**40, 2.0**32, id="overflows"),
    ],
)
def test_a_step_that_does_not_fit_keeps_the_scaler_as_it_was(scale: float, at_the_end: float, tmp_path: Path) -> None:
    hit = trained(tmp_path / "hit", scale, batch=8, accumulation=1, runs_out=True)
    small = trained(tmp_path / "small", scale, batch=4, accumulation=2)
    assert hit.model.sizes[:6] == [8, 8, 8, 8, 4, 4]
    assert hit.state.train_batch_size == 4
    for trainer in (hit, small):
        assert trainer.accelerator.scaler.get_scale() == at_the_end
        assert trainer.meters.nonfinite_steps == 0  # an overflow is how the scaler finds its scale
    losses = [[line["loss"] for line in t.state.log_history if "loss" in line] for t in (hit, small)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # half precision rounds to 1e-3
    for name, value in small.model.state_dict().items():
        assert torch.allclose(hit.model.state_dict()[name], value, rtol=0, atol=1e-4), name
    moved = any(
        not torch.equal(value, TinyRegression().state_dict()[name]) for name, value in small.model.state_dict().items()
    )
    assert moved is (scale == 1024.0)  # with 2^40 all eight steps overflow, and each halves the scale
