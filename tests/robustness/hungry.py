"""Trains a model whose forward needs memory per sample, under a limit that the kernel holds. Run by the tests."""

from __future__ import annotations

import argparse
import json
import resource
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onward import Trainer, TrainerCallback, TrainingArguments
from tests.tiny import RegressionData, RegressionStream

MEGABYTE = 2**20


class Hungry(nn.Module):
    """Keeps about `megabytes` of activations for each sample until backward is done."""

    def __init__(self, megabytes: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide = megabytes * MEGABYTE // 4 // 2
        self.body = nn.Linear(4, 8)
        self.head = nn.Linear(8, 1)
        self.seen: list[int] = []

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        hidden = torch.tanh(self.body(x))
        many = hidden[:, :1].expand(-1, self.wide) * 1.0
        logits = self.head(hidden).squeeze(-1) + 0.1 * torch.sin(many * 1.5).mean(dim=1)
        self.seen.append(len(x))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.mse_loss(logits, labels), "logits": logits}


class LimitAt(TrainerCallback):
    """Lets the process have so much more address space than it has now, from the begin of training or a step on."""

    def __init__(self, step: int | None, megabytes: int, rank: int | None = None) -> None:
        self.step, self.megabytes, self.rank = step, megabytes, rank

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.step is None and self.rank in (None, args.process_index):
            limit_to(self.megabytes)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and self.rank in (None, args.process_index):
            limit_to(self.megabytes)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def limit_to(megabytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + megabytes * MEGABYTE
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--at", type=int, default=-1)
    parser.add_argument("--room", type=int, default=0, help="megabytes")
    parser.add_argument("--rank", type=int)
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--evaluate", action="store_true")
    parser.add_argument("--buffers", action="store_true")
    parser.add_argument("--grow", action="store_true")
    options = parser.parse_args()
    args = TrainingArguments(
        output_dir=str(options.folder / "run"),
        max_steps=6,
        per_device_train_batch_size=options.batch,
        per_device_eval_batch_size=8,
        gradient_accumulation_steps=options.accumulation,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        auto_find_batch_size="grow" if options.grow else True,
        report_to="none",
        disable_tqdm=True,
    )
    torch.ones(4, requires_grad=True).sum().backward()  # threads that autograd starts want address space of their own
    model = Hungry()
    if options.buffers:
        model.register_buffer("count", torch.zeros(1))
    data = RegressionStream(200) if options.stream else RegressionData(200)
    at = None if options.grow else options.at
    limit = [] if at == -1 else [LimitAt(at, options.room, options.rank)]
    trainer = Trainer(model, args, train_dataset=data, eval_dataset=RegressionData(20), callbacks=limit)
    if options.evaluate:
        trainer.evaluate(RegressionData(1))  # modules imported and threads started on the way take space too
        limit_to(options.room)
        metrics = trainer.evaluate()
        predicted = trainer.predict(RegressionData(20)).predictions.tolist()
        result: dict[str, Any] = {"loss": metrics["eval_loss"], "predictions": predicted}
    else:
        trainer.train()
        result = {
            "weights": [p.flatten().tolist() for p in model.parameters()],
            "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
            "found": trainer.state.train_batch_size,
            "steps": trainer.state.global_step,
        }
    result["seen"] = model.seen
    (options.folder / f"result-{args.process_index}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
