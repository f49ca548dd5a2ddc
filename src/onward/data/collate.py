"""From a list of samples to a batch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from onward.errors import DataError, UsageError

Collator = Callable[[list[Any]], Any]
_LABEL_KEYS = ("label", "label_ids")


def choose_collator(processing_class: Any) -> Collator:
    """The collator for a trainer that was given none.

    Tokenizers and sequence feature extractors of transformers know how to pad; everything else is stacked by
    `default_data_collator`.
    """
    # An object of transformers cannot exist before transformers was imported, and importing it takes seconds.
    if processing_class is None or "transformers" not in sys.modules:
        return default_data_collator
    from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, SequenceFeatureExtractor

    if isinstance(processing_class, (PreTrainedTokenizerBase, SequenceFeatureExtractor)):
        return DataCollatorWithPadding(processing_class)  # type: ignore[arg-type]  # it pads feature extractors too
    return default_data_collator


def default_data_collator(features: Sequence[Any], return_tensors: str = "pt") -> dict[str, Any]:
    """Stack the values of each key. The first sample decides which keys there are; strings and `None` are left out.

    ``label`` (one number a sample) and ``label_ids`` (several) become ``labels``, of type int64 if they are whole
    numbers, else float32.

    Args:
        features: samples, each a mapping or an object with attributes.
        return_tensors: ``"pt"`` for tensors, ``"np"`` for arrays.

    Returns:
        A dictionary of tensors (or arrays) whose first dimension is the sample.

    Raises:
        DataError: the samples are no mappings, lack a key, or have values of different length.
    """
    if return_tensors not in ("pt", "np"):
        raise UsageError(f"return_tensors={return_tensors!r} is unknown, expected 'pt' (tensors) or 'np' (arrays).")
    samples = [f if type(f) is dict or isinstance(f, Mapping) else _attributes(f) for f in features]
    stack, stack_as = (_stack, _stack_as) if return_tensors == "pt" else (_stack_arrays, _stack_arrays_as)
    batch = _collate_labels(samples, stack_as)
    for key, value in samples[0].items():
        if key not in _LABEL_KEYS and value is not None and not isinstance(value, str):
            batch[key] = _collate(key, samples, stack)
    return batch


def not_a_batch(got: Any) -> DataError:
    """The error for a batch that the model cannot be called with."""
    return DataError(
        f"The data_collator returned {type(got).__name__}; expected a dictionary from names of the model's inputs to "
        "tensors. Return one, or override compute_loss to call the model in another way."
    )


def _attributes(feature: Any) -> Mapping[str, Any]:
    try:
        attributes: Mapping[str, Any] = vars(feature)
        return attributes
    except TypeError:
        raise DataError(
            f"A sample is of type {type(feature).__name__}, expected a mapping from names of the model's inputs to "
            "values. Make the data set return dictionaries, or pass a data_collator that builds the batch."
        ) from None


def _collate_labels(samples: list[Mapping[str, Any]], stack_as: Callable[..., Any]) -> dict[str, Any]:
    """``labels`` made of ``label`` or ``label_ids``, the names that transformers' data sets use; empty without them."""
    for key in _LABEL_KEYS:
        value = samples[0].get(key)
        if value is None:
            continue
        if key == "label_ids" and isinstance(value, torch.Tensor):
            return {"labels": _collate(key, samples, torch.stack)}
        label = value[0] if key == "label_ids" else value.item() if isinstance(value, torch.Tensor) else value
        return {"labels": _collate(key, samples, partial(stack_as, whole=isinstance(label, (int, np.integer))))}
    return {}


def _stack(values: list[Any]) -> torch.Tensor:
    if isinstance(values[0], torch.Tensor):
        return torch.stack(values)
    if isinstance(values[0], np.ndarray):
        return torch.from_numpy(np.stack(values))
    return torch.tensor(values)


def _stack_as(values: list[Any], whole: bool) -> torch.Tensor:
    dtype = torch.long if whole else torch.float
    if isinstance(values[0], np.ndarray):
        return torch.from_numpy(np.stack(values)).to(dtype)
    return torch.tensor(values, dtype=dtype)


def _stack_arrays(values: list[Any]) -> np.ndarray[Any, Any]:
    return np.stack(values) if isinstance(values[0], np.ndarray) else np.array(values)


def _stack_arrays_as(values: list[Any], whole: bool) -> np.ndarray[Any, Any]:
    if isinstance(values[0], np.ndarray) and values[0].ndim:
        return np.stack(values)
    return np.array(values, dtype=np.int64 if whole else np.float32)


def _collate(key: str, samples: list[Mapping[str, Any]], stack: Callable[[list[Any]], Any]) -> Any:
    try:
        return stack([sample[key] for sample in samples])
    except KeyError:
        lacking = next(i for i, sample in enumerate(samples) if key not in sample)
        raise DataError(
            f"Sample {lacking} of a batch has no {key!r}, which the first one has; it has "
            f"{sorted(map(str, samples[lacking]))}. Give all samples the same keys, or pass a data_collator that fills "
            "the gaps."
        ) from None
    except (ValueError, RuntimeError, TypeError) as error:
        kinds = sorted({_describe(sample[key]) for sample in samples})
        raise DataError(
            f"The values of {key!r} cannot be stacked into one tensor: got {', '.join(kinds)}; expected numbers or "
            f"arrays of one shape ({error}). Pad them to one length, for example with a tokenizer as processing_class "
            "or with your own data_collator, or remove that column."
        ) from error


def _describe(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is None and isinstance(value, (list, tuple)):
        shape = (len(value),)
    return type(value).__name__ if shape is None else f"{type(value).__name__} of shape {tuple(shape)}"
