"""Generators that samplers, data sets and collators keep are found, read, set and seeded."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, Subset

from onward.data.generators import owned_by, restore_states, seed_owned, states_of

KINDS: dict[str, tuple[Any, Any]] = {
    "torch": (lambda: torch.Generator().manual_seed(1), lambda g: torch.rand((), generator=g).item()),
    "numpy": (lambda: np.random.default_rng(1), lambda g: g.normal()),
    "numpy's Mersenne twister": (lambda: np.random.Generator(np.random.MT19937(1)), lambda g: g.normal()),
    "numpy's old one": (lambda: np.random.RandomState(1), lambda g: g.normal()),
    "python": (lambda: random.Random(1), lambda g: g.gauss(0, 1)),
}


class Order(Sampler[int]):
    def __init__(self, generator: Any) -> None:
        self.generator = generator


class Augmented:
    def __init__(self, generator: Any) -> None:
        self.generator, self.samples = generator, list(range(1000))


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_comes_back_through_json(kind: str) -> None:
    make, draw = KINDS[kind]
    generator = make()
    loader = DataLoader([0], batch_sampler=BatchSampler(Order(generator), 1, False))
    draw(generator)
    states = json.loads(json.dumps(states_of(loader)))
    assert len(states) == 1
    wanted = [draw(generator) for _ in range(3)]
    other = make()
    restore_states(DataLoader([0], batch_sampler=BatchSampler(Order(other), 1, False)), states)
    assert [draw(other) for _ in range(3)] == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_is_a_function_of_the_key(kind: str) -> None:
    make, draw = KINDS[kind]
    data = Augmented(make())
    own = owned_by(Subset(data, [0]))  # type: ignore[arg-type,var-annotated]
    assert own == [data.generator]
    drawn = []
    for key in (2**63 + 5, 7, 2**63 + 5):
        seed_owned(own, key)
        drawn.append([draw(data.generator) for _ in range(3)])
    assert drawn[0] == drawn[2] != drawn[1]


def test_one_generator_in_two_places_counts_once() -> None:
    generator = torch.Generator()
    loader = DataLoader([0, 1], shuffle=True, generator=generator)
    assert isinstance(loader.sampler, RandomSampler)
    assert len(states_of(loader)) == 1
    assert states_of([1, 2, 3]) == []
