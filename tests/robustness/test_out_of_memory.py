"""A step that does not fit is taken again with smaller micro-batches, and the run ends as if it had begun with them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from onward import Trainer, TrainerCallback, TrainingArguments
from onward.errors import OutOfMemory
from onward.memory_errors import is_out_of_memory
from tests.tiny import RegressionData, RegressionStream, TinyRegression, pad_tokens, tiny_llama, token_data


class Small(TinyRegression):
    """A model on a device with room for `room` samples from its `after`-th forward on."""

    def __init__(self, room: int = 99, after: int = 0, in_backward: bool = False, dropout: float = 0.0) -> None:
        super().__init__(dropout)
        self.room, self.after, self.in_backward, self.calls = room, after, in_backward, 0
        self.sizes: list[int] = []

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        self.calls += 1
        if self.calls > self.after and len(x) > self.room:
            if not self.in_backward:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            x = x + 0 * Exploding.apply(self.body.weight).sum()
        self.sizes.append(len(x))
        return super().forward(x, labels)


class Exploding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def trainer(folder: Path, model: nn.Module, data: Any = None, **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "auto_find_batch_size": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    extra = {name: options.pop(name) for name in ("callbacks", "data_collator", "eval_dataset") if name in options}
    args = TrainingArguments(output_dir=str(folder), **(settings | options))
    return Trainer(model, args, train_dataset=RegressionData(36) if data is None else data, **extra)


def close(one: Trainer, other: Trainer) -> None:
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    lines = [[line["loss"] for line in it.state.log_history if "loss" in line] for it in (one, other)]
    assert lines[0] == pytest.approx(lines[1], abs=1e-5)
    rates = [[line["learning_rate"] for line in it.state.log_history if "loss" in line] for it in (one, other)]
    assert rates[0] == rates[1]


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("room", [5, 3])
def test_it_ends_as_a_run_that_was_small_from_the_start(in_backward: bool, room: int, tmp_path: Path) -> None:
    it = trainer(tmp_path / "a", Small(room, after=4, in_backward=in_backward))
    it.train()
    fits = {5: 4, 3: 2}[room]
    small = trainer(
        tmp_path / "b", Small(), per_device_train_batch_size=fits, gradient_accumulation_steps=8 // fits,
        auto_find_batch_size=False,
    )  # fmt: skip
    small.train()
    close(it, small)
    assert it.state.global_step == small.state.global_step == 10
    assert it._train_batch_size == it.state.train_batch_size == fits
    assert max(it.model.sizes[7:]) <= fits  # the first attempts at step 6 are in it


def test_in_bf16_too(tmp_path: Path) -> None:
    # Out of memory from the first step on: bf16 would round the gradient of a whole batch otherwise.
    it = trainer(tmp_path / "a", Small(4, in_backward=True), bf16=True)
    it.train()
    small = trainer(
        tmp_path / "b", Small(), bf16=True, per_device_train_batch_size=4, gradient_accumulation_steps=2,
        auto_find_batch_size=False,
    )  # fmt: skip
    small.train()
    close(it, small)
    assert it._train_batch_size == 4


def test_a_size_that_does_not_divide_keeps_the_mean(tmp_path: Path) -> None:
    it = trainer(tmp_path / "a", Small(4, after=2), per_device_train_batch_size=6)
    it.train()
    whole = trainer(tmp_path / "b", Small(), per_device_train_batch_size=6)
    whole.train()
    assert it._train_batch_size == 3
    close(it, whole)
    it = trainer(tmp_path / "c", Small(4, after=2), per_device_train_batch_size=7)
    it.train()
    whole = trainer(tmp_path / "d", Small(), per_device_train_batch_size=7)
    whole.train()
    assert it._train_batch_size == 4
    close(it, whole)


def test_random_numbers_are_drawn_again(tmp_path: Path) -> None:
    it = trainer(tmp_path / "a", Small(4, after=4, in_backward=True, dropout=0.5))
    it.train()
    straight = trainer(tmp_path / "b", Small(4, after=4, dropout=0.5))  # fails before it draws
    straight.train()
    close(it, straight)


def test_accumulation(tmp_path: Path) -> None:
    it = trainer(tmp_path / "a", Small(2, after=3), per_device_train_batch_size=4, gradient_accumulation_steps=2)
    it.train()
    small = trainer(
        tmp_path / "b",
        Small(),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        auto_find_batch_size=False,
    )
    small.train()
    close(it, small)


def test_tokens_are_padded_anew_and_counted_over_the_step(tmp_path: Path) -> None:
    data = token_data(16, (4, 12))

    def run(name: str, room: int | None, **options: Any) -> tuple[Trainer, list[tuple[int, ...]]]:
        shapes: list[tuple[int, ...]] = []
        model = tiny_llama()
        forward = model.forward

        def limited(input_ids: Tensor, **rest: Any) -> Any:
            if room is not None and len(input_ids) > room:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            shapes.append(tuple(input_ids.shape))
            return forward(input_ids=input_ids, **rest)

        model.forward = limited  # type: ignore[method-assign]
        it = trainer(tmp_path / name, model, data, data_collator=pad_tokens, num_train_epochs=1,
                     remove_unused_columns=False, **options)  # fmt: skip
        it.train()
        return it, shapes

    it, shapes = run("a", 2)
    small, wanted = run("b", None, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    close(it, small)
    assert shapes == wanted


@pytest.mark.parametrize("workers", [0, 1])
def test_streams_and_loaders_are_sliced(workers: int, tmp_path: Path) -> None:
    def run(name: str, model: Small, **options: Any) -> Trainer:
        it = trainer(tmp_path / name, model, RegressionStream(64), max_steps=6, dataloader_num_workers=workers,
                     **options)  # fmt: skip
        it.train()
        return it

    close(run("a", Small(4, after=2)), run("b", Small(), per_device_train_batch_size=4, gradient_accumulation_steps=2))


def test_an_iterable_of_batches_is_sliced(tmp_path: Path) -> None:
    class Own(Trainer):
        def get_train_dataloader(self) -> Any:
            return Batches(DataLoader(self.train_dataset, batch_size=8))

    class Batches:
        def __init__(self, loader: Any) -> None:
            self.loader = loader
            self.dataset = loader.dataset

        def __len__(self) -> int:
            return len(self.loader)

        def __iter__(self) -> Any:
            return iter(self.loader)

    results = []
    for name, model in (("a", Small(4, after=2)), ("b", Small())):
        args = TrainingArguments(
            str(tmp_path / name), auto_find_batch_size=True, logging_steps=1, save_strategy="no", report_to="none",
            disable_tqdm=True, num_train_epochs=1,
        )  # fmt: skip
        it = Own(model, args, train_dataset=RegressionData(32))
        it.train()
        results.append(it)
    close(*results)
    assert results[0]._train_batch_size == 4


def test_every_change_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told: list[tuple[int, int]] = []

    class Listener(TrainerCallback):
        def on_batch_size_change(
            self, args: Any, state: Any, control: Any, before: int, now: int, **kwargs: Any
        ) -> None:
            told.append((before, now))

    caplog.set_level(logging.WARNING)
    it = trainer(tmp_path, Small(2, after=3), callbacks=[Listener()])
    it.train()
    assert told == [(8, 4), (4, 2)]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    changes = [row for row in rows if row.get("event") == "batch_size_change"]
    assert [(row["previous"], row["train_batch_size"], row["step"]) for row in changes] == [(8, 4, 3), (4, 2, 3)]
    assert len([r for r in caplog.records if r.message.startswith("Out of memory at step 4, micro-batch 1 of")]) == 2


def test_steps_and_events_are_those_of_one_step(tmp_path: Path) -> None:
    events: list[str] = []

    class Listener(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            events.append("begin")

        def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            events.append("optimizer")

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            events.append("end")

    trainer(tmp_path, Small(4, after=1), callbacks=[Listener()], num_train_epochs=1).train()
    assert events == ["begin", "optimizer", "end"] * 5


def test_one_sample_that_does_not_fit_is_an_error_that_says_so(tmp_path: Path) -> None:
    it = trainer(tmp_path, Small(0, after=2), train_sampling_strategy="sequential")
    before = None
    with pytest.raises(
        OutOfMemory, match=r"index 16 of the training data, x of shape \(1, 4\), labels of shape \(1,\)"
    ):
        it.train()
    assert before is None


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    class Wrong(TinyRegression):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        trainer(tmp_path, Wrong()).train()


def test_without_the_option_it_is_raised(tmp_path: Path) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        trainer(tmp_path, Small(4), auto_find_batch_size=False).train()


def test_the_size_found_is_used_by_a_resume(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 3}
    it = trainer(tmp_path, Small(4, after=2), **options)
    it.train()
    model = Small(99)
    again = trainer(tmp_path, model, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert max(model.sizes) == 4
    assert again._train_batch_size == again.state.train_batch_size == 4
    for a, b in zip(it.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_running_statistics_are_taken_back_and_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Normed(Small):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.norm = nn.BatchNorm1d(8)  # type: ignore[assignment]

    it = trainer(tmp_path / "a", Normed(4, after=3, in_backward=True))
    it.train()
    small = trainer(tmp_path / "b", Normed(4, after=3))
    small.train()
    assert "BatchNorm" in caplog.text
    for a, b in zip(it.model.buffers(), small.model.buffers(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch", "sgd", "adafactor"])
@pytest.mark.parametrize("at", [1, 4])
def test_an_optimizer_step_happens_whole_or_not_at_all(optim: str, at: int, tmp_path: Path) -> None:
    """The step fails when it has changed some of the weights."""
    it = trainer(tmp_path / "a", Small(), optim=optim)
    it.create_optimizer()
    plain, calls = it.optimizer.step, []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        result = plain(*args, **kwargs)
        if len(calls) == at:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return result

    it.optimizer.step = failing
    if optim == "adamw_torch_fused" and at > 1:
        # Its later steps allocate nothing, so that they are not copied for; what fails there is no memory.
        from onward.optim.whole_step import allocates

        it.optimizer.step = plain
        it.train()
        for weight in it.model.parameters():
            weight.grad = torch.zeros_like(weight)
        assert not allocates(it.optimizer.optimizer)
        return
    it.train()
    assert it._train_batch_size == 4
    small = trainer(tmp_path / "b", Small(), optim=optim, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    small.train()
    close(it, small)


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OutOfMemory("CUDA out of memory"), False),
        (ValueError("out of memory"), False),
    ],
)  # fmt: skip
def test_what_counts_as_out_of_memory(error: Exception, is_it: bool) -> None:
    assert is_out_of_memory(error) is is_it
