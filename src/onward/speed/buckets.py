"""Batches whose length is one of few, so that a compiled model sees few shapes.

A batch is padded a little further, to the next of lengths that lie an eighth of a power of two apart: 16, 32, 48, 64,
80, …, 128, 160, …, 256, 320 and so on, four to each doubling. Up to a length of L that makes about 4 log2(L / 16).
What is added is padding as the collator's own: masked, and with labels that no loss looks at.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import pad

IGNORED = -100
_SHORTEST = 16
_FILL = {"attention_mask": 0, "labels": IGNORED, "token_type_ids": 0, "position_ids": 0, "special_tokens_mask": 1}


def bucket_of(length: int, longest: int | None = None) -> int:
    """The length that a batch of `length` positions is padded to; no more than `longest` that the model can take."""
    step = max(_SHORTEST, 1 << max(0, (length - 1).bit_length() - 3))
    bucket = -(-length // step) * step
    return bucket if longest is None else max(length, min(bucket, longest))


class BucketCollator:
    """Collates, then pads a batch to its bucket."""

    def __init__(self, data_collator: Callable[[list[Any]], Any], pad_token: int, longest: int | None) -> None:
        """`pad_token` is put into ``input_ids``; `longest` is the most positions that the model has."""
        self.data_collator = data_collator
        self.pad_token = pad_token
        self.longest = longest

    def __call__(self, features: list[Any]) -> Any:
        """Collate a list of samples."""
        return pad_to_bucket(self.data_collator(features), self.pad_token, self.longest)


def pad_to_bucket(batch: Any, pad_token: int, longest: int | None = None) -> Any:
    """Pad all tensors of shape (samples, length) to the bucket of `length`; the batch itself is not changed.

    A batch without an ``attention_mask`` of that shape, or with such a tensor that is not known, stays as it is.
    """
    mask = batch.get("attention_mask") if hasattr(batch, "get") else None
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
        return batch
    missing = bucket_of(mask.shape[1], longest) - mask.shape[1]
    if not missing:
        return batch
    fill = {**_FILL, "input_ids": pad_token}
    padded = copy.copy(batch)
    for name, value in batch.items():
        if not isinstance(value, torch.Tensor) or value.shape[:2] != mask.shape:
            continue
        if name not in fill or value.dim() != 2 or value.is_floating_point():
            return batch
        padded[name] = pad(value, (0, missing), value=fill[name])
    return padded
