"""A padded batch as one row without padding.

    samples   a a a . .        row        a a a b b b b b
              b b b b b   →    positions  0 1 2 0 1 2 3 4

The samples, their labels and so the loss stay what they were; what is saved is the work on padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onward.loss import IGNORED
from onward.onhost import on_host, to_device

_PER_TOKEN = ("input_ids", "labels", "shift_labels", "position_ids", "token_type_ids")


@dataclass(frozen=True)
class Row:
    """Samples end to end."""

    inputs: dict[str, Any]
    """What the model is called with."""
    sizes: list[int]
    """Tokens of each sample."""
    places: Tensor
    """Index of each token in the flattened padded batch: (tokens,)."""


def why_not(inputs: Any) -> str | None:
    """Say what keeps this batch from becoming one row, or return None."""
    if not isinstance(inputs, Mapping) or not isinstance(inputs.get("input_ids"), Tensor):
        return "the batch has no tensor 'input_ids'"
    mask, ids = inputs.get("attention_mask"), inputs["input_ids"]
    if not isinstance(mask, Tensor):
        return "the batch has no 'attention_mask', which says what is padding"
    if ids.dim() != 2 or mask.shape != ids.shape:
        return f"input_ids and attention_mask have the shapes {tuple(ids.shape)} and {tuple(mask.shape)}"
    if "labels" not in inputs and "shift_labels" not in inputs:
        return "the batch has no 'labels'"
    for name, value in inputs.items():
        if name == "attention_mask":
            continue
        if name not in _PER_TOKEN or not isinstance(value, Tensor) or value.shape != ids.shape:
            return f"the batch holds '{name}', which is not one value per token"
    return None


def as_row(inputs: Mapping[str, Any]) -> Row:
    """Lay the samples of a padded batch end to end.

    Padding may be on either side. Waits for the device where the host has kept no mask of the batch (see `on_host`).

    Args:
        inputs: a batch that `why_not` has nothing against.
    """
    mask = on_host(inputs["attention_mask"]).ne(0)
    lengths = mask.sum(1)
    lengths = lengths[lengths > 0]
    found = mask.flatten().nonzero().flatten()
    bounds = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    torch.cumsum(lengths, 0, out=bounds[1:])
    firsts = bounds[:-1].long()
    device = inputs["input_ids"].device
    places = to_device(found, device)
    row = {name: inputs[name].flatten()[places].unsqueeze(0) for name in _PER_TOKEN if name in inputs}
    if "labels" in row and "shift_labels" not in row:
        # A row's first label is never a target; here the token before it is another sample's last.
        row["labels"] = row["labels"].index_fill(1, to_device(firsts, device), IGNORED)
    if "position_ids" not in row:
        columns = found % mask.shape[1]
        positions = columns - columns[firsts].repeat_interleave(lengths)
        row["position_ids"] = to_device(positions.unsqueeze(0), device)
    sizes = lengths.tolist()
    longest = max(sizes, default=0)
    bounds = to_device(bounds, device)
    # A cache would keep transformers from seeing where samples begin, and let them attend to each other unseen.
    row |= {"use_cache": False, "cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
    row |= {"max_length_q": longest, "max_length_k": longest}
    return Row(row, sizes, places)
