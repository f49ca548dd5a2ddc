"""A resume takes no more memory than a fresh start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
import torch
from torch import nn
from onward import Trainer, TrainingArguments
from onward.memory import peak_figures

class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.layer = nn.Embedding(20_000, 1_000), nn.Linear(1_000, 100)

    def forward(self, x, labels=None):
        return {"loss": self.layer(self.table(x)).pow(2).mean()}

folder, saves, resume = sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None
args = TrainingArguments(folder, max_steps=4, save_strategy=saves, save_steps=2, report_to="none", disable_tqdm=True)
trainer = Trainer(Wide(), args, train_dataset=[{"x": torch.tensor([i])} for i in range(64)])
trainer.train(resume_from_checkpoint=resume)
print("peak", peak_figures("train")["train_peak_memory_rss"])
"""
WEIGHTS = 20_000 * 1_000 * 4


def peak(*arguments: str) -> int:
    """Most memory, in bytes, that a process held which trained."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.rpartition("peak ")[2])


@pytest.mark.slow
def test_a_resume_takes_no_more_than_a_fresh_start(tmp_path: Path) -> None:
    folder = str(tmp_path)
    peak(folder, "steps")
    fresh = peak(folder, "no")
    resumed = peak(folder, "no", str(tmp_path / "checkpoint-2"))
    # Weights, gradients and two moments at least; one copy too many of the weights would be seen.
    assert fresh > 4 * WEIGHTS
    assert resumed < fresh + WEIGHTS // 4
