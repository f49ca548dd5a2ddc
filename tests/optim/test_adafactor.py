"""Our Adafactor equals transformers' to the bit, and either side goes on from the other's state."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from onward.errors import UsageError
from onward.optim.adafactor import Adafactor

FIXED = {"scale_parameter": False, "relative_step": False, "lr": 1e-2}
OPTIONS: list[dict[str, Any]] = [
    FIXED,
    {**FIXED, "beta1": 0.9},
    {**FIXED, "weight_decay": 0.1, "clip_threshold": 0.5, "decay_rate": -0.6},
    {},
    {"warmup_init": True, "beta1": 0.8},
    {"scale_parameter": True, "relative_step": False, "lr": 1e-2, "weight_decay": 0.01},
]


def weights(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5,), (7, 3), (2, 3, 4), ()]
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def give_gradients(parameters: list[torch.nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def run(optimizer: Any, parameters: list[torch.nn.Parameter], steps: range) -> None:
    for step in steps:
        give_gradients(parameters, step)
        optimizer.step()


def states(optimizer: Any) -> list[Any]:
    return [value for state in optimizer.state_dict()["state"].values() for value in state.items()]


def assert_same(ours: Any, theirs: Any, a: list[torch.nn.Parameter], b: list[torch.nn.Parameter]) -> None:
    for p, q in zip(a, b, strict=True):
        assert torch.equal(p, q)
    for (name, mine), (other, its) in zip(sorted(states(ours), key=str), sorted(states(theirs), key=str), strict=True):
        assert name == other
        assert type(mine) is type(its)
        assert torch.equal(torch.as_tensor(mine), torch.as_tensor(its))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS)
def test_steps_are_equal_to_the_bit(options: dict[str, Any], dtype: torch.dtype) -> None:
    from transformers import Adafactor as Theirs

    a, b = weights(dtype), weights(dtype)
    ours, theirs = Adafactor(a, **options), Theirs(b, **options)
    assert ours.defaults == theirs.defaults
    run(ours, a, range(6)), run(theirs, b, range(6))
    assert_same(ours, theirs, a, b)
    if dtype is torch.float32:  # a warm-up's steps of 1e-6 are less than bfloat16 can hold
        assert not torch.equal(a[1], weights(dtype)[1])


def test_state_goes_both_ways() -> None:
    from transformers import Adafactor as Theirs

    a, b = weights(torch.float32), weights(torch.float32)
    ours, theirs = Adafactor(a, **OPTIONS[1]), Theirs(b, **OPTIONS[1])
    run(ours, a, range(3)), run(theirs, b, range(3))
    loaded_ours, loaded_theirs = Adafactor(a, **OPTIONS[1]), Theirs(b, **OPTIONS[1])
    loaded_ours.load_state_dict(theirs.state_dict())
    loaded_theirs.load_state_dict(ours.state_dict())
    run(loaded_ours, a, range(3, 6)), run(loaded_theirs, b, range(3, 6))
    assert_same(loaded_ours, loaded_theirs, a, b)


def test_closure_and_weights_without_gradient() -> None:
    a = weights(torch.float32)
    before = [p.clone() for p in a]
    a[1].grad = torch.ones_like(a[1])
    assert Adafactor(a, **FIXED).step(lambda: 3.5) == 3.5
    assert [torch.equal(p, q) for p, q in zip(a, before, strict=True)] == [True, False, True, True]


def test_contradicting_options_are_named() -> None:
    with pytest.raises(UsageError, match="relative_step"):
        Adafactor(weights(torch.float32), lr=1e-3)
    with pytest.raises(UsageError, match="warmup_init"):
        Adafactor(weights(torch.float32), lr=1e-3, relative_step=False, warmup_init=True)


def test_sparse_gradients_are_refused() -> None:
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(UsageError, match="sparse"):
        Adafactor(embedding.parameters(), **FIXED).step()
