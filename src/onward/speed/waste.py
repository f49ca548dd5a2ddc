"""Where the time of a run went that trained nothing, and the argument that saves most of it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from torch import nn

WORTH_NAMING = 0.05
"""Share of the run's time below which a waste is not mentioned."""

# Dense matrix operations per second in half precision, from the makers' data sheets. First match counts.
_PEAKS = (
    ("GB200", 2.5e15),
    ("B200", 2.25e15),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("A40", 150e12),
    ("A30", 165e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("V100", 125e12),
    ("T4", 65e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
)


@dataclass(frozen=True)
class Spent:
    """What a run spent, in seconds unless said otherwise."""

    training: float
    """From step to step, waiting for batches included."""
    beside: float
    """Evaluating and saving."""
    data_wait: float
    """Of training: waiting for batches."""
    pad_share: float
    """Share of trained positions that were padding."""
    workers: int
    """Loader workers that fetched the batches."""
    packs: bool
    """Whether padding-free training was asked for."""
    processors: int
    """That each process of the run has for its workers."""


def largest_waste(spent: Spent) -> str | None:
    """One sentence that names the largest waste and what removes it, or None if none is worth naming."""
    total = spent.training + spent.beside
    if total <= 0:
        return None
    busy = max(spent.training - spent.data_wait, 0.0)
    found = {
        "padding": spent.pad_share * busy,
        "waiting": spent.data_wait,
        "beside": spent.beside,
    }
    worst = max(found, key=found.__getitem__)
    share = found[worst] / total
    if share < WORTH_NAMING:
        return None
    if worst == "padding":
        # Asked for and not to be had: the run has said why.
        by_length = "train_sampling_strategy='length_aware' with length_aware_window=8"
        remedy = by_length if spent.packs else "padding_free='auto'"
        return f"{spent.pad_share:.0%} of the positions trained on were padding; {remedy} saves that work."
    if worst == "waiting":
        workers = workers_for(spent)
        waited = f"{share:.0%} of the time went into waiting for batches"
        if workers <= spent.workers:
            return f"{waited}, with as many workers as processors: less work per sample, done beforehand, saves it."
        return f"{waited}; dataloader_num_workers={workers} fetches them beside the training."
    return f"{share:.0%} of the time went into evaluating and saving; larger eval_steps and save_steps save that time."


def workers_for(spent: Spent) -> int:
    """How many workers would fetch batches as fast as they are trained on: not more than there are processors."""
    busy = max(spent.training - spent.data_wait, 1e-9)
    fetching = spent.data_wait if not spent.workers else spent.workers * spent.training
    return min(max(spent.workers + 1, math.ceil(fetching / busy)), max(1, spent.processors))


def peak_of(device_name: str) -> float | None:
    """Half-precision operations per second that the chip can do at most, or None if it is not in the list."""
    return next((peak for name, peak in _PEAKS if re.search(rf"\b{name}\b", device_name)), None)


def multiplied(model: nn.Module) -> int:
    """Weights that every token is multiplied with."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    heads = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    # A table that is tied to the output layer is multiplied there.
    return sum(p.numel() for p in model.parameters() if id(p) not in embeddings - heads)


def utilisation(tokens_per_second: float, parameters: int, peak: float, processes: int = 1) -> float:
    """Share of the chips' peak that trained tokens: six operations per weight and token, padding left out.

    Args:
        tokens_per_second: over all processes.
        parameters: weights that are multiplied with each token: all but the embeddings.
        peak: of one chip.
        processes: chips.
    """
    return 6 * parameters * tokens_per_second / (peak * max(1, processes))
