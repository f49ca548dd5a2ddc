"""A padded batch laid end to end."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from onward.loss import IGNORED
from onward.speed.attention import CannotAttendError, attend
from onward.speed.padding_free import as_row, why_not
from tests.tiny import pad_tokens, token_data


def batch() -> dict[str, Any]:
    return pad_tokens(token_data(3, (2, 7), seed=4))


def test_tokens_labels_and_positions() -> None:
    ids = torch.tensor([[5, 6, 0, 0], [7, 8, 9, 4]])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    row = as_row({"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED)})
    assert row.inputs["input_ids"].tolist() == [[5, 6, 7, 8, 9, 4]]
    assert row.inputs["labels"].tolist() == [[IGNORED, 6, IGNORED, 8, 9, 4]]
    assert row.inputs["position_ids"].tolist() == [[0, 1, 0, 1, 2, 3]]
    assert row.inputs["cu_seq_lens_q"].tolist() == [0, 2, 6]
    assert row.inputs["max_length_q"] == 4
    assert row.inputs["use_cache"] is False
    assert row.sizes == [2, 4]


def test_padding_on_the_left_and_empty_samples() -> None:
    ids = torch.tensor([[0, 0, 5, 6], [0, 0, 0, 0], [7, 8, 9, 4]])
    mask = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    row = as_row({"input_ids": ids, "attention_mask": mask, "labels": ids})
    assert row.inputs["input_ids"].tolist() == [[5, 6, 7, 8, 9, 4]]
    assert row.inputs["position_ids"].tolist() == [[0, 1, 0, 1, 2, 3]]
    assert row.sizes == [2, 4]


def test_labels_that_are_shifted_already_stay() -> None:
    given = batch()
    given["shift_labels"] = given.pop("labels")
    row = as_row(given)
    assert row.inputs["shift_labels"].tolist() == [given["shift_labels"][given["attention_mask"] == 1].tolist()]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"attention_mask": None}, "no 'attention_mask'"),
        ({"attention_mask": torch.ones(3, 1, 4, 4)}, "shapes"),
        ({"labels": None}, "no 'labels'"),
        ({"pixel_values": torch.ones(3, 8)}, "pixel_values"),
        ({"names": ["a", "b", "c"]}, "names"),
        ({"input_ids": None}, "no tensor 'input_ids'"),
    ],
)
def test_what_cannot_become_a_row(change: dict[str, Any], reason: str) -> None:
    given = {name: value for name, value in {**batch(), **change}.items() if value is not None}
    found = why_not(given)
    assert found is not None
    assert reason in found
    assert why_not(batch()) is None


def attended(sizes: list[int], **options: Any) -> torch.Tensor:
    torch.manual_seed(0)
    query = torch.randn(1, 4, sum(sizes), 8)
    key, value = torch.randn(2, 1, 2, sum(sizes), 8).unbind()
    bounds = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()], dtype=torch.int32)
    output, _ = attend(torch.nn.Module(), query, key, value, None, cu_seq_lens_q=bounds, **options)
    at = torch.arange(sum(sizes))
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    distance = at[:, None] - at[None, :]
    allowed = (owner[:, None] == owner[None, :]) & (distance >= 0)
    if options.get("sliding_window"):
        allowed &= distance < options["sliding_window"]
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=allowed, scale=options.get("scaling"), enable_gqa=True
    )
    torch.testing.assert_close(output, expected.transpose(1, 2), rtol=1e-4, atol=1e-5)
    return output


def test_attention_is_that_of_a_block_diagonal_mask() -> None:
    attended([3, 1, 6])
    attended([3, 1, 6], scaling=0.3)
    windowed = attended([3, 1, 6], sliding_window=2)
    assert not torch.allclose(windowed, attended([3, 1, 6]))


@pytest.mark.parametrize("autocast", [False, True])
def test_short_sequences_in_half_precision_are_attended_to_in_float32(autocast: bool) -> None:
    """To the bit: no product of theirs is rounded but the last."""
    parts = torch.randn(3, 1, 2, 9, 8).bfloat16()
    bounds = torch.tensor([0, 4, 9], dtype=torch.int32)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        half, _ = attend(torch.nn.Module(), *parts, None, cu_seq_lens_q=bounds)
    full, _ = attend(torch.nn.Module(), *parts.float(), None, cu_seq_lens_q=bounds)
    assert half.dtype is torch.bfloat16
    assert torch.equal(half, full.bfloat16())


@pytest.mark.parametrize(
    ("options", "named"),
    [({"softcap": 30.0}, "softcap"), ({"s_aux": torch.ones(4)}, "s_aux"), ({"cu_seq_lens_q": None}, "no boundaries")],
)
def test_attention_that_it_does_not_know_is_refused(options: dict[str, Any], named: str) -> None:
    given = {"cu_seq_lens_q": torch.tensor([0, 3]), **options}
    part = torch.randn(1, 4, 3, 8)
    with pytest.raises(CannotAttendError, match=named):
        attend(torch.nn.Module(), part, part, part, None, **given)
