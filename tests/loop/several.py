"""Trains on what processes there are and writes the weights down, for `test_processes.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from tests.resume.data import SizedStream
from tests.tiny import RegressionData, RegressionStream, TinyRegression, tiny_llama

from onward import Trainer, TrainingArguments


class Shards(RegressionStream):
    """Four files, each longer than the one before; a process may have some of them."""

    def __init__(self, shards: tuple[int, ...] = (0, 1, 2, 3)) -> None:
        super().__init__(30)
        self.shards, self.num_shards = shards, len(shards)

    @classmethod
    def of(cls, size: int) -> Shards:
        """All of them, whatever `size` is asked for."""
        return cls()

    def shard(self, num_shards: int, index: int) -> Shards:
        """Every `num_shards`-th file."""
        return Shards(self.shards[index::num_shards])

    def __iter__(self) -> Any:
        begins = [0, 3, 9, 18, 30]
        for shard in self.shards:
            yield from (self.data[at] for at in range(begins[shard], begins[shard + 1]))


STREAMS: dict[str, Any] = {
    "stream": RegressionStream,
    "stream with a length": SizedStream,
    "shards": lambda _: Shards(),
}


def pad(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Token batches with labels that leave the padding out."""
    longest = max(len(s["input_ids"]) for s in samples)
    ids = torch.zeros(len(samples), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, sample in enumerate(samples):
        tokens = torch.tensor(sample["input_ids"])
        ids[row, : len(tokens)] = labels[row, : len(tokens)] = tokens
    return {"input_ids": ids, "attention_mask": (labels != -100).long(), "labels": labels}


def main() -> None:
    kind, size, batch, accumulation, out = sys.argv[1], *map(int, sys.argv[2:5]), Path(sys.argv[5])
    kind, _, finds = kind.partition("+")
    evaluates, kind = kind.endswith(" evaluated"), kind.removesuffix(" evaluated")
    compiled, kind = kind.endswith(" compiled"), kind.removesuffix(" compiled")
    resume = sys.argv[6] if len(sys.argv) > 6 else None
    generator = torch.Generator().manual_seed(1)
    data: Any
    model: Any
    if kind in STREAMS:
        data, model = STREAMS[kind](size), TinyRegression()
    elif kind != "regression":
        lengths = torch.randint(3, 20, (size,), generator=generator).tolist()
        data = [{"input_ids": torch.randint(3, 60, (n,), generator=generator).tolist()} for n in lengths]
        model = tiny_llama()
    else:
        data, model = RegressionData(size), TinyRegression()
    endless = kind in ("stream", "shards")
    length: dict[str, Any] = {"max_steps": 2 * -(-size // 8)} if endless else {"num_train_epochs": 2}
    args = TrainingArguments(
        output_dir=str(out / "run"),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-2,
        optim="sgd",
        logging_steps=1,
        save_strategy="steps",
        save_steps=1,
        auto_find_batch_size=finds or False,
        report_to="none",
        use_cpu=True,
        ddp_find_unused_parameters=False,
        train_sampling_strategy="length_aware" if kind == "tokens by length" else "random",
        **length,
        **({"torch_compile_backend": "eager"} if compiled else {}),
        **({"torch_compile_mode": "blocks", "torch_compile_backend": "eager"} if kind == "tokens by blocks" else {}),
    )
    options = {"data_collator": pad} if kind.startswith("tokens") else {}
    trainer = Trainer(model, args, train_dataset=data, eval_dataset=data if evaluates else None, **options)
    if evaluates:
        trainer.evaluate()
    trainer.train(resume_from_checkpoint=resume)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    state = {name: value.double() for name, value in trainer.model.state_dict().items()}
    result = {"losses": losses, "weights": state, "found": trainer.state.train_batch_size}
    torch.save(result, out / f"{args.process_index}.pt")


if __name__ == "__main__":
    main()
