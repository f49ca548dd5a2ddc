"""Few lengths for a compiled model, and the same loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BatchEncoding

from onward import Trainer, TrainingArguments
from onward.data.fetch import collator_never_draws
from onward.speed.buckets import BucketCollator, bucket_of, pad_to_bucket
from tests.tiny import RegressionData, TinyRegression, pad_tokens, tiny_classifier, tiny_llama, token_data

LONG = 4096


def test_few_lengths_and_little_padding() -> None:
    buckets = [bucket_of(length) for length in range(1, LONG + 1)]
    assert len(set(buckets)) == 4 + 4 * 6  # 16 to 64, and four to each of the doublings up to 4096
    assert buckets == sorted(buckets)
    for length, bucket in enumerate(buckets, 1):
        assert length <= bucket < max(length * 1.25, length + 16)
        assert bucket_of(bucket) == bucket
    assert sorted(set(buckets))[:10] == [16, 32, 48, 64, 80, 96, 112, 128, 160, 192]


def test_a_bucket_is_no_longer_than_the_model_takes() -> None:
    assert bucket_of(97, 100) == 100
    assert bucket_of(100, 100) == 100
    assert bucket_of(130, 100) == 130, "what is too long already stays for the model to refuse"


def batch(**more: Any) -> dict[str, Any]:
    return {**pad_tokens(token_data(3, (5, 13))), **more}


def test_only_what_is_known_is_padded() -> None:
    given = batch(token_type_ids=torch.ones(3, 13, dtype=torch.long), weights=torch.ones(3), text=["a", "b", "c"])
    given = {name: value[:, :13] if getattr(value, "ndim", 0) == 2 else value for name, value in given.items()}
    before = {name: value.shape for name, value in given.items() if torch.is_tensor(value)}
    padded = pad_to_bucket(given, 7)
    assert {n: v.shape for n, v in given.items() if torch.is_tensor(v)} == before
    added = {name: padded[name][:, before[name][1] :].unique().tolist() for name in ("input_ids", "labels")}
    assert added == {"input_ids": [7], "labels": [-100]}
    assert padded["attention_mask"][:, before["attention_mask"][1] :].sum() == 0
    assert padded["token_type_ids"].shape == padded["input_ids"].shape == (3, 16)
    assert padded["weights"] is given["weights"]
    assert isinstance(pad_to_bucket(BatchEncoding(batch()), 0), BatchEncoding)


@pytest.mark.parametrize(
    "other",
    [{"attention_mask": None}, {"scores": torch.ones(3, 13)}, {"boxes": torch.ones(3, 13, 4)}],
    ids=["no mask", "unknown", "unknown and deeper"],
)
def test_anything_else_is_left_alone(other: dict[str, Any]) -> None:
    longest = pad_tokens([{"input_ids": [5] * n, "attention_mask": [1] * n, "labels": [5] * n} for n in (5, 9, 13)])
    given = {**longest, **other}
    assert pad_to_bucket(given, 0) is given


def test_the_loss_stays_the_same() -> None:
    tokens = batch()
    for side in ("right", "left"):
        if side == "left":
            tokens = {name: value.flip(1) for name, value in tokens.items()}
        for model, given in (
            (tiny_llama(), tokens),
            (tiny_classifier(), {**tokens, "labels": torch.tensor([0, 1, 2])}),
        ):
            model.eval()
            losses = [model(**each).loss.item() for each in (given, pad_to_bucket(given, 0))]
            assert losses[0] == pytest.approx(losses[1], rel=1e-6), (type(model).__name__, side)


def widths(folder: Path, model: Any, data: Any, collator: Any, **options: Any) -> set[int]:
    given: dict[str, Any] = {"max_steps": 8, "report_to": "none", "use_cpu": True, "per_device_train_batch_size": 2}
    trainer = Trainer(model, TrainingArguments(str(folder), **(given | options)), collator, train_dataset=data)
    return {next(iter(b.values())).shape[1] for step in range(1, 9) for b in trainer.batch_at(step)}


def test_compiled_runs_see_few_lengths(tmp_path: Path) -> None:
    compiled = {"torch_compile_backend": "eager"}
    data = token_data(16, (3, 63))
    plain = widths(tmp_path, tiny_llama(), data, pad_tokens)
    few = widths(tmp_path, tiny_llama(max_position_embeddings=63), data, pad_tokens, **compiled)
    assert few == {min(bucket_of(width), 63) for width in plain}
    assert few <= {16, 32, 48, 63} < plain | {16, 32, 48, 63}
    assert widths(tmp_path, TinyRegression(), RegressionData(16), None, **compiled) == {4}


def test_what_is_known_of_the_collator_stays_known() -> None:
    from onward import default_data_collator

    assert collator_never_draws(BucketCollator(default_data_collator, 0, None)) is False
