"""Fetching and collating samples by index, with draws that depend on their place alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from onward.data.batches import Indices
from onward.data.draws import key_of
from onward.data.pieces import Limit, Pieces, spans
from onward.data.watch import Watch

_COLLATE = -1  # stands in for the position in the key of a collator's draws


class Fetched(list[Any]):
    """The samples of one micro-batch, remembering which they are."""

    used: bool = False
    """Whether a collator has had them."""

    def __init__(self, samples: list[Any], indices: Indices) -> None:
        super().__init__(samples)
        self.indices = indices


def never_draws(dataset: Any) -> bool | None:
    """`False` if the data set is of a kind that draws no random numbers, `None` if that must be found out."""
    if isinstance(dataset, Subset):
        return never_draws(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return False if all(never_draws(part) is False for part in dataset.datasets) else None
    if isinstance(dataset, TensorDataset | list | tuple):
        return False
    formatting = getattr(dataset, "format", None)
    if type(dataset).__module__.startswith("datasets.") and isinstance(formatting, dict):
        return None if formatting.get("type") == "custom" else False
    return None


class Samples(Dataset[Any]):
    """A map-style data set as the training loader sees it: whole micro-batches, each sample under its own seed."""

    def __init__(self, dataset: Any, seed: int) -> None:
        """`seed`: the seed of the data order."""
        self.dataset = dataset
        self.seed = seed
        self.watch = Watch(dataset, never_draws(dataset))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[index]

    def __getattr__(self, name: str) -> Any:
        # People look at `loader.dataset.column_names` and the like.
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitems__(self, indices: list[int]) -> Fetched:
        """Fetch one micro-batch."""
        if not isinstance(indices, Indices):
            indices = Indices(list(indices))
        in_worker = torch.utils.data.get_worker_info() is not None
        samples = self.watch.run(self.plain, self._seeded, indices, epoch=indices.epoch, in_worker=in_worker)
        return Fetched(samples, indices)

    def plain(self, indices: Indices) -> list[Any]:
        """Fetch samples as they are, whatever they draw."""
        fetch_many = getattr(self.dataset, "__getitems__", None)
        if fetch_many is not None:
            return list(fetch_many(list(indices)))
        return [self.dataset[i] for i in indices]

    def _seeded(self, indices: Indices) -> list[Any]:
        samples = []
        for index, position in zip(indices, indices.positions, strict=True):
            self.watch.seed(key_of(self.seed, indices.epoch, position))
            samples.append(self.dataset[index])
        return samples


_PURE_COLLATORS = frozenset(
    {
        "default_data_collator",
        "default_collate",
        "DataCollatorWithPadding",
        "DataCollatorForSeq2Seq",
        "DataCollatorForTokenClassification",
        "DataCollatorWithFlattening",
        "DefaultDataCollator",
    }
)


def collator_never_draws(collator: Any) -> bool | None:
    """`False` for collators known to draw nothing, `None` where that must be found out."""
    inner = getattr(collator, "data_collator", None)  # ours that drops columns
    if inner is not None:
        return collator_never_draws(inner)
    home = getattr(collator, "__module__", "").partition(".")[0]
    name = getattr(collator, "__name__", type(collator).__name__)
    return False if home in ("onward", "torch", "transformers") and name in _PURE_COLLATORS else None


class Collate:
    """A collator whose draws (masks, noise) depend on the place of its micro-batch alone."""

    def __init__(self, collator: Callable[[list[Any]], Any], samples: Samples) -> None:
        self.collator = collator
        self.samples = samples
        self.watch = Watch(collator, collator_never_draws(collator))
        self.limit: Limit | None = None
        """Set where micro-batches are to be given out as `Pieces`, cut to this many samples."""

    def __call__(self, fetched: list[Any]) -> Any:
        """Collate one micro-batch."""
        if self.limit is None or not isinstance(fetched, Fetched):
            return self._collate(fetched)
        return self._pieces(fetched, self.limit.get())

    def again(self, indices: Indices, limit: int) -> Pieces:
        """Fetch the samples of a micro-batch anew and collate them in pieces of at most `limit`."""
        return self._pieces(self.samples.__getitems__(indices), limit)

    def _pieces(self, fetched: Fetched, limit: int) -> Pieces:
        whole = fetched.indices
        pieces = Pieces()
        pieces.indices = whole
        stretches = spans(len(fetched), limit or None)
        pieces.collated = [end - begin for begin, end in stretches]
        for begin, end in stretches:
            pieces.append(self._collate(Fetched(fetched[begin:end], whole.stretch(begin, end))))
        return pieces

    def _collate(self, fetched: list[Any]) -> Any:
        if not isinstance(fetched, Fetched) or self.watch.draws is False:
            return self.collator(list(fetched))
        in_worker = torch.utils.data.get_worker_info() is not None
        epoch = fetched.indices.epoch
        return self.watch.run(self._plain, self._seeded, fetched, epoch=epoch, in_worker=in_worker)

    def _plain(self, fetched: Fetched) -> Any:
        return self.collator(self._fresh(fetched))

    def _seeded(self, fetched: Fetched) -> Any:
        indices, samples = fetched.indices, self._fresh(fetched)
        self.watch.seed(key_of(self.samples.seed, indices.epoch, indices.position, _COLLATE))
        return self.collator(samples)

    def _fresh(self, fetched: Fetched) -> list[Any]:
        """The samples, fetched anew if a collator has had them already, which may have emptied them by popping keys."""
        samples = self.samples.__getitems__(fetched.indices) if fetched.used else fetched
        fetched.used = True
        return list(samples)
