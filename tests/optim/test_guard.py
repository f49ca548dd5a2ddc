"""A guarded step leaves weights and optimizer state untouched to the bit when the numbers were not finite."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tests.tiny import TinyRegression
from torch import nn

from onward.optim.adafactor import Adafactor
from onward.optim.guard import _step_with_flag, all_finite, guarded_step, innermost, plain_step, takes_flag
from onward.optim.schedulers import make_scheduler

GOOD, BAD = torch.tensor(True), torch.tensor(False)

OPTIMIZERS: dict[str, Any] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, fused=True),
    "sgd fused, no momentum": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "adagrad fused": lambda p: torch.optim.Adagrad(p, lr=0.1, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9),
    "adafactor": lambda p: Adafactor(p, lr=0.1, scale_parameter=False, relative_step=False, beta1=0.9),
}
FUSED = [name for name in OPTIMIZERS if "fused" in name]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def backward(model: nn.Module, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(8, 4, generator=generator), torch.randn(8, generator=generator)
    device = next(model.parameters()).device
    model.zero_grad()
    (model(x.to(device), y.to(device))["loss"] * scale).backward()


def frozen(model: nn.Module, optimizer: Any) -> Any:
    return copy.deepcopy((model.state_dict(), optimizer.state_dict()))


def assert_equal(a: Any, b: Any) -> None:
    """Compare nested states to the bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
        assert a.dtype == b.dtype
        assert a.device == b.device
    else:
        assert a == b


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_bad_step_leaves_everything_as_it_was(name: str, device: str) -> None:
    model = TinyRegression().to(device)
    optimizer = OPTIMIZERS[name](model.parameters())
    for seed in range(3):
        backward(model, seed)
        guarded_step(optimizer, GOOD.to(device))
    before = frozen(model, optimizer)
    backward(model, 3, scale=math.nan)
    guarded_step(optimizer, BAD.to(device))
    assert_equal(frozen(model, optimizer), before)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_around_a_bad_one_are_those_of_a_run_without_it(name: str, device: str) -> None:
    """Also when the very first step is the bad one, which is where a fused SGD would fill its momentum with rubbish."""
    guarded, plain = TinyRegression().to(device), TinyRegression().to(device)
    a, b = OPTIMIZERS[name](guarded.parameters()), OPTIMIZERS[name](plain.parameters())
    for seed in (None, 0, None, 1, None, None, 2):
        backward(guarded, seed or 0, scale=math.nan if seed is None else 1.0)
        guarded_step(a, (BAD if seed is None else GOOD).to(device))
        if seed is not None:
            backward(plain, seed)
            b.step()
    assert_equal(frozen(guarded, a), frozen(plain, b))


@pytest.mark.parametrize("name", FUSED)
def test_the_flag_works_inside_the_kernel(name: str) -> None:
    """The way an accelerator takes, on the CPU's fused kernels, which read the same flag."""
    model = TinyRegression()
    optimizer = OPTIMIZERS[name](model.parameters())
    backward(model, 0)
    _step_with_flag(optimizer, optimizer, GOOD)
    before = frozen(model, optimizer)
    backward(model, 1, scale=math.inf)
    assert takes_flag(optimizer)
    _step_with_flag(optimizer, optimizer, BAD)
    assert_equal(frozen(model, optimizer), before)
    assert not hasattr(optimizer, "found_inf")  # else it would decide over the next plain step
    backward(model, 2)
    _step_with_flag(optimizer, optimizer, GOOD)
    assert not torch.equal(model.body.weight, before[0]["body.weight"])


def test_who_can_be_told_on_the_device() -> None:
    class Own(torch.optim.AdamW):
        pass

    parameters = [nn.Parameter(torch.ones(1))]
    assert {name for name, make in OPTIMIZERS.items() if takes_flag(make(parameters))} == {
        "adamw fused",
        "sgd fused, no momentum",
        "adagrad fused",
    }
    assert not takes_flag(Own(parameters, fused=True))


def test_through_accelerates_wrapper_and_with_a_schedule() -> None:
    """The schedule goes on after a step that was left out, without torch's warning about a step that never was."""
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(TinyRegression(), OPTIMIZERS["adamw fused"](TinyRegression().parameters()))
    optimizer.optimizer.param_groups[0]["params"] = list(model.parameters())
    schedule = make_scheduler("linear", optimizer, 0, 10)
    before = frozen(model, optimizer)
    backward(model, 0, scale=math.nan)
    guarded_step(optimizer, BAD)
    schedule.step()
    assert not optimizer.step_was_skipped
    assert not accelerator.optimizer_step_was_skipped
    assert_equal(model.state_dict(), before[0])
    assert not optimizer.state_dict()["state"]
    backward(model, 1)
    guarded_step(optimizer, GOOD)
    assert innermost(optimizer) is optimizer.optimizer
    assert not torch.equal(model.body.weight, before[0]["body.weight"])


def test_the_wrapper_is_passed_by_only_where_it_does_nothing() -> None:
    accelerator = Accelerator(cpu=True)
    model = TinyRegression()
    model, optimizer = accelerator.prepare(model, OPTIMIZERS["sgd"](model.parameters()))
    make_scheduler("linear", optimizer, 0, 10)
    backward(model, 0)
    before = frozen(model, optimizer)
    accelerator.gradient_state._set_sync_gradients(False)
    plain_step(optimizer)  # in the middle of an accumulation, which the wrapper sits out
    assert_equal(frozen(model, optimizer), before)
    accelerator.gradient_state._set_sync_gradients(True)
    calls = []
    inner_step, optimizer.step = optimizer.step, lambda: calls.append(1)
    plain_step(optimizer)  # somebody has put a function of their own in the place of step
    assert calls == [1]
    assert_equal(frozen(model, optimizer), before)
    optimizer.step = inner_step
    plain_step(optimizer)
    assert optimizer._opt_called
    assert not torch.equal(model.body.weight, before[0]["body.weight"])


class Scaler:
    """Just enough of a gradient scaler for accelerate's wrapper: one that finds an overflow where it is told."""

    def __init__(self) -> None:
        self.overflow = False

    def step(self, optimizer: Any, closure: Any) -> None:
        if not self.overflow:
            optimizer.step()

    def update(self) -> None:
        pass


def test_an_fp16_scaler_keeps_its_own_skip() -> None:
    from accelerate.optimizer import AcceleratedOptimizer

    Accelerator(cpu=True)
    model, scaler = TinyRegression(), Scaler()
    optimizer = AcceleratedOptimizer(OPTIMIZERS["sgd"](model.parameters()), scaler=scaler)
    before = frozen(model, optimizer)
    backward(model, 0)
    scaler.overflow = True
    guarded_step(optimizer, BAD)
    assert optimizer.step_was_skipped
    assert_equal(frozen(model, optimizer), before)
    scaler.overflow = False
    guarded_step(optimizer, GOOD)
    assert not optimizer.step_was_skipped
    assert not torch.equal(model.body.weight, before[0]["body.weight"])


def test_finite_is_the_conjunction() -> None:
    one, nan, inf = torch.tensor(1.0), torch.tensor(math.nan), torch.tensor(math.inf)
    assert all_finite(one, None, one)
    assert not all_finite(one, nan)
    assert not all_finite(inf, one)
    assert all_finite(one).shape == ()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", ["adamw fused", "sgd fused, no momentum", "sgd fused"])
def test_the_host_does_not_wait(name: str) -> None:
    from onward.optim.clip import Gradients

    model = TinyRegression().cuda()
    optimizer, gradients = OPTIMIZERS[name](model.parameters()), Gradients(model, Accelerator())
    batches = [(torch.randn(8, 4).cuda(), torch.randn(8).cuda()) for _ in range(4)]
    for index, (x, y) in enumerate(batches):
        model.zero_grad()
        loss = model(x, y)["loss"]
        loss.backward()
        if index == 1:  # the first step may fill states
            torch.cuda.set_sync_debug_mode("error")
        try:
            guarded_step(optimizer, all_finite(loss.detach(), gradients.clip(1.0)))
        finally:
            torch.cuda.set_sync_debug_mode("default")
