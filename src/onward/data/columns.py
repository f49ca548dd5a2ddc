"""Which columns of the data the model takes."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

from onward.data.collate import default_data_collator
from onward.errors import DataError

logger = logging.getLogger(__name__)


def signature_columns(forward: Callable[..., Any], label_names: Sequence[str]) -> list[str]:
    """Names that a model's forward takes, and the names that labels go by before they are collated."""
    names = list(inspect.signature(forward).parameters)
    return names + sorted({"label", "label_ids", *label_names} - {*names})


def remove_unused(dataset: Any, wanted: Sequence[str], model_name: str, description: str | None) -> Any:
    """Drop the columns of a `datasets.Dataset` that the model does not take.

    Raises:
        DataError: nothing would be left.
    """
    ignored = [name for name in dataset.column_names if name not in set(wanted)]
    if len(ignored) == len(dataset.column_names):
        raise DataError(
            f"No column of the {description or 'given'} data set fits {model_name}.forward: the data set has "
            f"[{', '.join(dataset.column_names)}], forward takes [{', '.join(wanted)}]. Rename or tokenize the "
            "columns, or pass "
            "remove_unused_columns=False if your collator makes the model's inputs from them."
        )
    if ignored:
        logger.info(
            "Columns of the %s set that %s.forward does not take are left out: %s.",
            description, model_name, ", ".join(ignored),
        )  # fmt: skip
    return dataset.remove_columns(ignored)


class ColumnDroppingCollator:
    """Drops the keys that the model does not take from every sample, then collates."""

    def __init__(
        self, data_collator: Callable[[list[Any]], Any], wanted: Sequence[str], model_name: str, description: str | None
    ) -> None:
        self.data_collator = data_collator
        self.signature_columns = list(wanted)
        self.model_name = model_name
        self.description = description
        self._wanted = frozenset(wanted)
        self._told = False

    def __call__(self, features: list[Any]) -> Any:
        """Collate a list of samples; those that are not dictionaries pass as they are."""
        if not (set(map(type, features)) == {dict} and all(map(self._wanted.issuperset, features))):
            features = [self._drop(f) if isinstance(f, dict) else f for f in features]
        elif self.data_collator is not default_data_collator:  # others may take keys out of what the data set keeps
            features = list(map(dict, features))
        return self.data_collator(features)

    def _drop(self, sample: dict[str, Any]) -> dict[str, Any]:
        kept = {k: v for k, v in sample.items() if k in self._wanted}
        if sample and not kept:
            raise DataError(
                f"No key of the samples fits {self.model_name}.forward: a sample has "
                f"[{', '.join(map(str, sample))}], forward takes "
                f"[{', '.join(self.signature_columns)}]. Rename the keys, or pass remove_unused_columns=False if your "
                "collator makes the model's inputs from them."
            )
        if len(kept) < len(sample) and not self._told:
            self._told = True
            dropped = ", ".join(str(k) for k in sample if k not in self._wanted)
            logger.info(
                "Keys in the %s set that %s.forward does not take are left out: %s.",
                self.description, self.model_name, dropped,
            )  # fmt: skip
        return kept


def fingerprint(dataset: Any) -> str | None:
    """A short name for the content of a `datasets.Dataset`, from its columns and 16 rows; `None` for other data.

    Rows are read without the user's transforms. `datasets` has a fingerprint of its own, but it differs from process
    to process where a transform cannot be pickled.
    """
    if not type(dataset).__module__.startswith("datasets.") or not hasattr(dataset, "with_format"):
        return None
    import hashlib

    if isinstance(dataset, dict):  # several sets by name, which a subclass samples from
        parts = repr([(name, fingerprint(part)) for name, part in dataset.items()])
        return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()
    raw = dataset.with_format(None)
    total = len(raw) if hasattr(raw, "__len__") else 0
    if not total:
        return None
    digest = hashlib.blake2b(repr((sorted(raw.column_names), total)).encode(), digest_size=16)
    for number in range(16):
        digest.update(repr(raw[number * (total - 1) // 15]).encode())
    return digest.hexdigest()
