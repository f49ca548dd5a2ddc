"""Batches for a causal language model whose samples hold tokens but no labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from onward.data.collate import Collator, default_data_collator

logger = logging.getLogger(__name__)

IGNORED = -100
"""The label that torch's and transformers' losses leave out."""
_LABELS = ("labels", "label", "label_ids")


class NextTokenCollator:
    """Makes the next token the label where a causal language model is given ``input_ids`` and nothing to compare with.

    A tokenized text holds all that such a model learns from, so without this a plain script of ``tokenizer`` and
    ``Trainer`` would end in "cannot be stacked" or "no loss". Samples that have labels of any name are passed on as
    they are.

    Args:
        collate: what builds a batch otherwise. A tokenizer's collator pads by itself; for `default_data_collator`
            samples are padded on the right, with token 0, attention 0 and label -100.
    """

    def __init__(self, collate: Collator) -> None:
        self.collate = collate
        self._told = False

    def __call__(self, samples: list[Any]) -> Any:
        """Build a batch; with ``labels`` of shape (samples, tokens) if the samples had none."""
        if not _lacks_labels(samples[0]):
            return self.collate(samples)
        if not self._told:
            logger.info("The samples hold input_ids and no labels: the model learns to predict each next token.")
            self._told = True
        if self.collate is default_data_collator:
            samples = _pad(samples)
        batch = self.collate(samples)
        mask = batch.get("attention_mask")
        ids = batch["input_ids"]
        batch["labels"] = ids.clone() if mask is None else ids.masked_fill(mask == 0, IGNORED)
        return batch


def _lacks_labels(sample: Any) -> bool:
    return isinstance(sample, Mapping) and "input_ids" in sample and not any(name in sample for name in _LABELS)


def _pad(samples: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Bring every column with one value a token to the length of the longest sample."""
    sizes = [len(sample["input_ids"]) for sample in samples]
    longest = max(1, *sizes)  # texts have empty lines, and a batch of nothing else must still be one of some shape
    if min(sizes) == longest:
        return [dict(sample) for sample in samples]
    return [
        {key: _lengthened(value, size, longest) for key, value in {"attention_mask": [1] * size, **sample}.items()}
        for sample, size in zip(samples, sizes, strict=True)
    ]


def _lengthened(value: Any, size: int, wanted: int) -> Any:
    """`value` with zeros behind it if it has one entry for each of `size` tokens."""
    if isinstance(value, str) or not hasattr(value, "__len__") or len(value) != size:
        return value
    entries = torch.as_tensor(value) if size else torch.zeros(0, dtype=torch.long)  # of [] torch makes floats
    return torch.cat([entries, entries.new_zeros(wanted - size, *entries.shape[1:])])
