"""Training a language model on sequences of different lengths, by every peer: what the rows about speed share."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks import peers
from benchmarks.result import HAND, LIGHTNING, ONWARD, TRANSFORMERS

IGNORED = -100
Rows = list[dict[str, list[int]]]
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Workload:
    """Model, data and batch."""

    model: str
    vocabulary: int
    batch: int
    longest: int
    mean: float
    learning_rate: float = 1e-3

    def shrunk(self) -> Workload:
        """The same shape, so small that it only shows that everything runs."""
        model = f"{self.model.partition('-')[0]}-tiny"
        return replace(self, model=model, vocabulary=512, batch=4, longest=64, mean=self.mean * 64 / self.longest)

    def build(self) -> Any:
        """The model, always with the same weights."""
        from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        if self.model in GPT2S:
            no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
            return GPT2LMHeadModel(GPT2Config(vocab_size=self.vocabulary, **no_dropout, **GPT2S[self.model]))
        width, layers, inner = LLAMAS[self.model]
        sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": inner}
        heads = {"num_attention_heads": width // 64, "num_key_value_heads": max(1, width // 256)}
        return LlamaForCausalLM(LlamaConfig(vocab_size=self.vocabulary, pad_token_id=0, **sizes, **heads))

    def rows(self, count: int) -> Rows:
        """Sequences with log-normal lengths of about `mean`, or all of length `longest` where that is the mean.

        The same in every round: on a CPU, oneDNN keeps code for each new shape, in all peers alike.
        """
        generator = torch.Generator().manual_seed(1)
        if self.mean >= self.longest:
            lengths = [self.longest] * count
        else:
            spread = 0.85
            centre = math.log(self.mean) - spread**2 / 2
            drawn = torch.empty(count).log_normal_(centre, spread, generator=generator)
            lengths = drawn.round().clamp(4, self.longest).int().tolist()
        return [{"input_ids": torch.randint(3, self.vocabulary, (n,), generator=generator).tolist()} for n in lengths]


# hidden size, layers, intermediate size
LLAMAS = {"llama-4x256": (256, 4, 1024), "llama-1b": (2048, 16, 8192), "llama-tiny": (64, 2, 128)}
GPT2S: dict[str, dict[str, int]] = {"gpt2": {}, "gpt2-tiny": {"n_embd": 64, "n_layer": 2, "n_head": 2}}


@dataclass(frozen=True)
class Task:
    """How one round trains."""

    steps: int
    bf16: bool
    device: str
    keep_losses: bool = False
    flattened: bool = False
    """Hand-written loop: sequences one behind the other in one row instead of padded."""
    options: tuple[tuple[str, Any], ...] = ()
    """Arguments that only onward has."""


def padded(rows: Rows) -> Batch:
    """One row per sequence, filled up with pads that neither attention nor loss sees."""
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([[*row["input_ids"], *[0] * (width - len(row["input_ids"]))] for row in rows])
    lengths = torch.tensor([[len(row["input_ids"])] for row in rows])
    mask = (torch.arange(width) < lengths).long()
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[:, 0] = IGNORED  # never a target; transformers would count it among GPT-2's
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def flattened(rows: Rows) -> Batch:
    """All sequences in one row; positions that begin anew tell them apart."""
    ids = torch.tensor([[token for row in rows for token in row["input_ids"]]])
    positions = torch.cat([torch.arange(len(row["input_ids"])) for row in rows])[None]
    return {"input_ids": ids, "position_ids": positions, "labels": ids.masked_fill(positions == 0, IGNORED)}


class Watch:
    """How long the steps behind the first one took.

    On a CPU the peers take turns after every step: what is compared happened within seconds. On a GPU, where a step
    ends long after the host has left it, the host waits for it at the first and the last step only; in between torch is
    told to warn whenever it waits.
    """

    def __init__(self, steps: int, device: str) -> None:
        self.steps, self.device, self.done = steps, device, 0
        self.began = self.seconds = 0.0

    def step(self) -> None:
        self.done += 1
        first, last = self.done == 1, self.done == self.steps
        if self.device == "cuda":
            if not (first or last):
                return
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
        if not first:
            self.seconds += time.perf_counter() - self.began
        if last:
            return
        if self.device == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        else:
            peers.pause({})
        self.began = time.perf_counter()


def turns(device: str, steps: int) -> int:
    """How often a run has to be asked until it is over: see `Watch`."""
    return 1 if device == "cuda" else steps


@contextlib.contextmanager
def counted_syncs() -> Iterator[list[int]]:
    """How often the host waited for the GPU inside; one number, known at the end."""
    found: list[int] = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield found
        found.append(sum("synchronizing CUDA operation" in str(warning.message) for warning in told))


def by_hand(workload: Workload, task: Task, rows: Rows, watch: Watch) -> list[float]:
    """The floor: a loop with autocast, clipping and a schedule."""
    model = workload.build().to(task.device)
    model.train()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=workload.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / task.steps))
    collate = flattened if task.flattened else padded
    losses: list[torch.Tensor] = []
    for at in range(task.steps):
        batch = collate(rows[at * workload.batch : (at + 1) * workload.batch])
        batch = {key: value.to(task.device, non_blocking=True) for key, value in batch.items()}
        with torch.autocast(task.device, torch.bfloat16) if task.bf16 else contextlib.nullcontext():
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        watch.step()
    return [loss.item() for loss in losses]


def with_trainer(library: Any, workload: Workload, task: Task, rows: Rows, watch: Watch) -> list[float]:
    """transformers' trainer or onward's."""
    from transformers import TrainerCallback

    class Steps(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            watch.step()

    with tempfile.TemporaryDirectory() as folder:
        args = library.TrainingArguments(
            output_dir=folder,
            max_steps=task.steps,
            per_device_train_batch_size=workload.batch,
            learning_rate=workload.learning_rate,
            weight_decay=0.01,
            bf16=task.bf16,
            train_sampling_strategy="sequential",
            logging_steps=1 if task.keep_losses else task.steps,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            log_level="error",
            use_cpu=task.device == "cpu",
            **dict(task.options),
        )
        trainer = library.Trainer(
            model=workload.build(), args=args, train_dataset=rows, data_collator=padded, callbacks=[Steps()]
        )
        trainer.remove_callback(library.PrinterCallback)
        trainer.train()
        return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def with_transformers(workload: Workload, task: Task, rows: Rows, watch: Watch) -> list[float]:
    import transformers

    return with_trainer(transformers, workload, task, rows, watch)


def with_onward(workload: Workload, task: Task, rows: Rows, watch: Watch) -> list[float]:
    import onward

    return with_trainer(onward, workload, task, rows, watch)


def with_lightning(workload: Workload, task: Task, rows: Rows, watch: Watch) -> list[float]:
    import lightning
    from torch.utils.data import DataLoader

    losses: list[torch.Tensor] = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = workload.build()

        def training_step(self, batch: Any, _: int) -> Any:
            loss = self.model(**batch, use_cache=False).loss
            losses.append(loss.detach())
            return loss

        def on_train_batch_end(self, *_: Any) -> None:
            watch.step()

        def configure_optimizers(self) -> Any:
            groups = [
                {"params": [p for p in self.parameters() if p.ndim > 1], "weight_decay": 0.01},
                {"params": [p for p in self.parameters() if p.ndim <= 1], "weight_decay": 0.0},
            ]
            # Under mixed precision Lightning refuses to clip for a fused optimizer.
            optimizer = torch.optim.AdamW(groups, lr=workload.learning_rate, fused=not task.bf16)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / task.steps))
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    trainer = lightning.Trainer(
        accelerator=task.device,
        devices=1,
        max_steps=task.steps,
        gradient_clip_val=1.0,
        precision="bf16-mixed" if task.bf16 else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), DataLoader(rows, batch_size=workload.batch, collate_fn=padded))  # type: ignore[arg-type]
    return [loss.item() for loss in losses]


TRAIN: dict[str, Callable[[Workload, Task, Rows, Watch], list[float]]] = {
    HAND: by_hand,
    TRANSFORMERS: with_transformers,
    LIGHTNING: with_lightning,
    ONWARD: with_onward,
}


def answer(peer: str, workload: Workload, task: Task) -> dict[str, Any]:
    """Train one round; speed without the first step, losses, and the most memory that was held."""
    import transformers  # noqa: F401  (part of every peer's baseline)

    rows = workload.rows(task.steps * workload.batch)
    watch = Watch(task.steps, task.device)
    cuda = task.device == "cuda"
    peers.clean_up()
    baseline = peers.resident()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        peers.forget_peak()
    with counted_syncs() as syncs:
        losses = TRAIN[peer](workload, task, rows, watch)
    tokens = sum(len(row["input_ids"]) for row in rows[workload.batch :])
    per_second = tokens / max(watch.seconds, 1e-9)
    return {
        "losses": losses,
        "tokens_per_second": per_second,
        "peak": torch.cuda.max_memory_allocated() if cuda else peers.peak(),
        "reserved": torch.cuda.max_memory_reserved() if cuda else None,
        "syncs": syncs[0] if cuda else None,
        "mfu": share_of_peak(workload, per_second) if cuda else None,
        "baseline": baseline,
    }


def share_of_peak(workload: Workload, tokens_per_second: float) -> float | None:
    """Of the chip's half-precision operations; None where its peak is not known."""
    from onward.speed.waste import multiplied, peak_of, utilisation

    peak = peak_of(torch.cuda.get_device_name())
    with torch.device("meta"):
        weights = multiplied(workload.build())
    return None if peak is None else utilisation(tokens_per_second, weights, peak)
