"""The loss of a batch: label smoothing equals transformers', items are counted over the whole accumulated batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.trainer_pt_utils import LabelSmoother as Theirs

from onward.errors import UsageError
from onward.loss import LabelSmoother, count_items, loss_of
from tests.tiny import pad_tokens, tiny_llama, token_data


def scored(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.randn(3, 7, 11).to(dtype).requires_grad_()
    labels = torch.randint(0, 11, (3, 7))
    labels[0, 3:] = -100
    return logits, labels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("items", [None, 13, torch.tensor(13)])
@pytest.mark.parametrize("shift", [False, True])
def test_smoothing_is_theirs_to_the_bit(shift: bool, items: Any, dtype: torch.dtype) -> None:
    logits, labels = scored(dtype)
    twin = logits.detach().clone().requires_grad_()
    ours = LabelSmoother(epsilon=0.2)({"logits": logits}, labels, shift, items)
    theirs = Theirs(epsilon=0.2)({"logits": twin}, labels, shift, items)
    assert torch.equal(ours, theirs)
    assert ours.dtype == theirs.dtype
    ours.backward(), theirs.backward()
    assert torch.equal(logits.grad, twin.grad)


def test_smoothing_takes_tuples_and_labels_of_a_column() -> None:
    logits, labels = scored()
    as_tuple = LabelSmoother()((logits,), labels.unsqueeze(-1))
    assert torch.equal(as_tuple, LabelSmoother()({"logits": logits}, labels))


def test_without_epsilon_it_is_cross_entropy() -> None:
    logits, labels = scored()
    plain = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert torch.allclose(LabelSmoother(epsilon=0.0)({"logits": logits}, labels), plain)


def test_the_labels_are_left_as_they_were() -> None:
    logits, labels = scored()
    before = labels.clone()
    LabelSmoother()({"logits": logits}, labels)
    assert torch.equal(labels, before)


def test_a_loss_is_found_in_dictionaries_and_tuples() -> None:
    loss = torch.tensor(1.0)
    assert loss_of({"loss": loss, "logits": None}, []) is loss
    assert loss_of((loss, None), []) is loss


@pytest.mark.parametrize("outputs", [{"logits": 1, "states": 2}, {"logits": 1, "states": 2, "loss": None}])
def test_outputs_without_a_loss_are_described(outputs: Any) -> None:
    with pytest.raises(UsageError, match=r"outputs logits, states.* for the inputs x, mask"):
        loss_of(outputs, ["x", "mask"])


def test_micro_batches_of_a_model_sum_to_the_whole() -> None:
    """The reason to count over the accumulated batch: rows of unequal length, split in any way, give the same loss."""
    model = tiny_llama()
    rows = token_data(6, (4, 12))
    whole = pad_tokens(rows)
    parts = [pad_tokens(rows[:1]), pad_tokens(rows[1:3]), pad_tokens(rows[3:])]
    items = count_items(parts, shifted=True)
    assert items == count_items([whole], shifted=True) == sum(len(row["labels"]) - 1 for row in rows)
    with torch.no_grad():
        total = sum(model(**part, num_items_in_batch=items).loss for part in parts)
        assert torch.allclose(total, model(**whole).loss)


def test_what_is_counted() -> None:
    labels = torch.tensor([[1, 2, -100], [3, -100, -100]])
    assert count_items([{"labels": labels}] * 2, shifted=False) == 6
    assert count_items([{"labels": labels}] * 2, shifted=True) == 2
    assert count_items([{"labels": labels, "shift_labels": labels}], shifted=True) == 3


@pytest.mark.parametrize("batches", [[], [{"x": torch.ones(1)}], [{"labels": [{"boxes": 1}]}], [torch.ones(2)]])
def test_what_cannot_be_counted(batches: Any) -> None:
    assert count_items(batches, shifted=True) is None
