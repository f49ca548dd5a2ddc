"""What a step that is taken back must not leave behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from onward.loop.undo import Buffers


def normed() -> tuple[nn.BatchNorm1d, Buffers]:
    model = nn.BatchNorm1d(3)
    buffers = Buffers(model)
    model(torch.randn(4, 3))
    buffers.keep()
    return model, buffers


@pytest.mark.parametrize("unless", [None, torch.tensor(False), torch.tensor(True)])
def test_statistics_are_put_back_unless_the_step_is_taken(unless: torch.Tensor | None) -> None:
    model, buffers = normed()
    before = [buffer.clone() for buffer in model.buffers()]
    model(torch.full((4, 3), torch.nan))
    behind = [buffer.clone() for buffer in model.buffers()]
    buffers.put_back(unless)
    expected = behind if unless is not None and unless else before
    for one, other in zip(model.buffers(), expected, strict=True):
        torch.testing.assert_close(one, other, equal_nan=True, rtol=0, atol=0)


def test_a_second_step_is_put_back_to_its_own_start() -> None:
    model, buffers = normed()
    model(torch.full((4, 3), torch.nan))
    buffers.put_back()
    model(torch.randn(4, 3))
    buffers.keep()
    before = [buffer.clone() for buffer in model.buffers()]
    model(torch.randn(4, 3))
    buffers.put_back()
    assert all(torch.equal(one, other) for one, other in zip(model.buffers(), before, strict=True))


class Averaging(nn.Module):
    """Replaces its buffers in forward, as moving averages and queues are often written."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("queue", torch.zeros(0, 3))
        self.register_buffer("first", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        self.queue = torch.cat([self.queue, x])[-6:]
        self.first = x[:1] if self.first is None else self.first
        return x - self.mean


@pytest.mark.parametrize("unless", [None, torch.tensor(False), torch.tensor(True)])
@pytest.mark.parametrize("kept", [0, 1])
def test_buffers_that_forward_replaces(unless: torch.Tensor | None, kept: int) -> None:
    model = Averaging()
    buffers = Buffers(model)
    for _ in range(kept):
        model(torch.randn(4, 3))
        buffers.keep()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.full((4, 3), torch.nan))
    behind = {name: value.clone() for name, value in model.state_dict().items()}
    buffers.put_back(unless)
    expected = behind if unless is not None and unless else before
    now = model.state_dict()
    assert now.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(now[name], value, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize("unless", [None, torch.tensor(False), torch.tensor(True)])
def test_a_buffer_that_repeats_one_element(unless: torch.Tensor | None, anew: bool) -> None:
    model = nn.Module()
    model.register_buffer("mean", torch.ones(1, 3).expand(4, 3))
    buffers = Buffers(model)
    before, strides = model.mean, model.mean.stride()
    if anew:
        model.mean = torch.full((1, 3), 2.0).expand(4, 3)
    else:
        model.mean[:1] += 1
    buffers.put_back(unless)
    assert torch.equal(model.mean, torch.full((4, 3), 2.0 if unless is not None and unless else 1.0))
    assert model.mean.stride() == strides
    assert unless is not None or model.mean is before
