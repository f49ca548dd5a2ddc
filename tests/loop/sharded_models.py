"""Models and trainers of the scenarios in `sharded.py`."""

from __future__ import annotations

import os
from typing import Any

import torch
from tests.tiny import tiny_llama
from torch import nn

from onward import Trainer, TrainerCallback

RANK = int(os.environ.get("RANK", 0))


def language_model(dtype: torch.dtype = torch.float32) -> Any:
    return tiny_llama(attention_dropout=0.1, tie_word_embeddings=True).to(dtype)


def adapted() -> Any:
    import peft

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return peft.get_peft_model(
            tiny_llama(), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
        )


class Normed(nn.Module):
    """A regression with running statistics, a layer that fits on no two processes evenly, and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANK)  # another one on each process: they must agree
            self.body = nn.Linear(4, 7, bias=False)  # in front of a norm a bias has no gradient but rounding
            self.norm = nn.BatchNorm1d(7)
            self.again = nn.Linear(7, 7)
            self.twin = nn.Linear(7, 7, bias=False)
            self.head = nn.Linear(7, 1)
        self.twin.weight = self.again.weight

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(torch.relu(self.twin(self.again(self.norm(self.body(x)))))).squeeze(-1)
        return {"loss": nn.functional.mse_loss(logits, labels), "logits": logits}


class Poisoned(Trainer):
    """Has a loss that is not a number once, on one process."""

    step = 4

    def compute_loss(self, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        loss = super().compute_loss(model, inputs, *rest, **options)
        if model.training and self._data_step == self.step and RANK == 1:
            return loss * torch.nan
        return loss


class FullDisk(Trainer):
    """Cannot write the weights at the first save."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.state.global_step == 2 and self.args.should_save:
            raise OSError(28, "No space left on device")
        super()._save(output_dir, state_dict)


class Leaves(TrainerCallback):
    """Asks for the run to end in the middle of a step."""

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2 and RANK == 0:
            os.kill(os.getpid(), 10)  # SIGUSR1


class Ages(Trainer):
    """Finds the first model the best."""

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        return {**super().evaluate(*args, **options), "eval_age": -self.state.global_step}


class CountsSaved(Trainer):
    """Counts the tensors that the first process was handed to save."""

    saved = 0

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        self.saved = len(state_dict or ())
        super()._save(output_dir, state_dict)
