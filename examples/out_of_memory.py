"""Run out of memory in the middle of a run, and end as if nothing had happened.

    python examples/out_of_memory.py

The model is trained twice: once undisturbed with small micro-batches, and once with large ones on a machine that loses
most of its free memory at step 4. A limit on the address space of the process (Linux) stands in for the full GPU:
torch's allocator really fails. With ``auto_find_batch_size=True`` the step is taken again in smaller micro-batches;
samples, steps, schedule and result stay.
"""

from __future__ import annotations

import argparse
import resource
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from onward import Trainer, TrainerCallback, TrainingArguments, set_seed

MEGABYTE = 2**20


class Wide(nn.Module):
    """A regression whose hidden layer takes a few megabytes for each sample until backward is done."""

    def __init__(self, width: int = MEGABYTE) -> None:
        super().__init__()
        self.body = nn.Linear(4, 16)
        self.head = nn.Linear(16, 1)
        self.width = width

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the prediction and the mean squared error."""
        hidden = torch.tanh(self.body(x))
        many = torch.sin(hidden[:, :1].expand(-1, self.width) * 1.0)
        logits = self.head(hidden).squeeze(-1) + 0.1 * many.mean(dim=1)
        return {"loss": nn.functional.mse_loss(logits, labels), "logits": logits}


class MemoryShrinks(TrainerCallback):
    """Takes the free memory away at the begin of a step, all but some megabytes."""

    def __init__(self, step: int, megabytes: int) -> None:
        self.step, self.megabytes = step, megabytes

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        """Lower the limit, at that step."""
        if state.global_step + 1 == self.step:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + self.megabytes * MEGABYTE
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

    def on_train_end(self, args, state, control, **kwargs) -> None:
        """Give it back."""
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def collate(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Stack (x, y) pairs."""
    return {"x": torch.stack([x for x, _ in samples]), "labels": torch.stack([y for _, y in samples])}


def train(folder: str, batch: int, accumulation: int, shrinks: bool) -> Trainer:
    """Train on 16 samples a step, however they are split."""
    set_seed(0)
    x = torch.randn(128, 4)
    data = TensorDataset(x, x @ torch.tensor([1.0, -2.0, 0.5, 0.0]))
    args = TrainingArguments(
        output_dir=folder,
        num_train_epochs=1,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        auto_find_batch_size=True,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    callbacks = [MemoryShrinks(step=4, megabytes=150)] if shrinks else []
    trainer = Trainer(Wide(), args, data_collator=collate, train_dataset=data, callbacks=callbacks)
    trainer.train()
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description="Run out of memory at step 4 and end as if nothing had happened.")
    parser.add_argument("--output-dir", default="runs/out-of-memory")
    options = parser.parse_args()

    hit = train(f"{options.output_dir}/hit", batch=16, accumulation=1, shrinks=True)
    found = hit.state.train_batch_size
    small = train(f"{options.output_dir}/small", batch=found, accumulation=16 // found, shrinks=False)

    pairs = zip(hit.model.parameters(), small.model.parameters(), strict=True)
    apart = max(float((one - other).detach().abs().max()) for one, other in pairs)
    print(f"steps {hit.state.global_step} and {small.state.global_step}, of 16 samples each")
    print(f"micro-batch 16, then {found} from step 4 on; largest difference of a weight {apart:.1e}")


if __name__ == "__main__":
    main()
