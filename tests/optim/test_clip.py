"""Norm and clipping equal what accelerate does, to the bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tests.tiny import TinyRegression, tiny_llama
from torch import nn

from onward.optim.clip import Gradients


def with_gradients(make: Any, size: float = 1.0) -> tuple[nn.Module, nn.Module]:
    """Two copies of a model with the same gradients, of which one weight has none."""
    model = make()
    twin = copy.deepcopy(model)
    for p, q in list(zip(model.parameters(), twin.parameters(), strict=True))[1:]:
        p.grad = size * torch.randn(p.shape).to(p.dtype)
        q.grad = p.grad.clone()
    return model, twin


def halves() -> nn.Module:
    """A model of two dtypes, whose norms are computed per dtype."""
    model = TinyRegression()
    model.head.to(torch.bfloat16)
    return model


@pytest.mark.parametrize("max_norm", [0.5, 1.0, 1e6])
@pytest.mark.parametrize("make", [TinyRegression, tiny_llama, halves])
def test_clipping_is_accelerates(make: Any, max_norm: float) -> None:
    accelerator = Accelerator(cpu=True)
    ours, theirs = with_gradients(make)
    norm = Gradients(ours, accelerator).clip(max_norm)
    expected = accelerator.clip_grad_norm_(theirs.parameters(), max_norm)
    assert torch.equal(norm, expected)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or torch.equal(p.grad, q.grad)


def test_the_norm_alone_changes_nothing() -> None:
    accelerator = Accelerator(cpu=True)
    model, before = with_gradients(TinyRegression, size=1e3)
    norm = Gradients(model, accelerator).norm()
    assert torch.equal(norm, accelerator.clip_grad_norm_(before.parameters(), float("inf")))
    for p, q in zip(model.parameters(), before.parameters(), strict=True):
        assert p.grad is None or torch.equal(p.grad, q.grad)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gradient_shows_in_the_norm(bad: float) -> None:
    model, _ = with_gradients(TinyRegression)
    model.head.bias.grad.fill_(bad)
    norm = Gradients(model, Accelerator(cpu=True)).clip(1.0)
    assert not torch.isfinite(norm)


def test_weights_are_listed_once_but_gradients_are_read_anew() -> None:
    accelerator = Accelerator(cpu=True)
    model, _ = with_gradients(TinyRegression)
    gradients = Gradients(model, accelerator)
    first = gradients.norm()
    model.zero_grad()
    assert gradients.norm() == 0.0
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    assert gradients.norm() == sum(p.numel() for p in model.parameters()) ** 0.5
    assert first > 0


def test_sharded_gradients_are_left_to_accelerate() -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    accelerator = Accelerator(cpu=True)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model = nn.Linear(2, 2)
        model.weight = nn.Parameter(distribute_tensor(torch.ones(2, 2), mesh, [Replicate()]))
        model.weight.grad = distribute_tensor(torch.ones(2, 2), mesh, [Replicate()])
        model.bias.grad = torch.ones(2)
        norm = Gradients(model, accelerator).clip(1.0)
        assert norm.item() == pytest.approx(6**0.5)
        assert model.weight.grad.full_tensor()[0, 0].item() == pytest.approx(1 / 6**0.5, rel=1e-5)
    finally:
        dist.destroy_process_group()
