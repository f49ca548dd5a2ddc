"""The loss in chunks against the loss of logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from onward.loss import IGNORED
from onward.speed import chunked_loss
from onward.speed.chunked_loss import linear_cross_entropy

WORDS, WIDTH, TOKENS = 50, 12, 23


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_loss, "CHUNK", {"cpu": WORDS * 5})
    monkeypatch.setattr(chunked_loss, "TILE", {"cpu": WORDS * 2})


def given(bias: bool, masked: int) -> tuple[Tensor, nn.Linear, Tensor]:
    torch.manual_seed(3)
    targets = torch.randint(WORDS, (TOKENS,))
    targets[:masked] = IGNORED
    return torch.randn(TOKENS, WIDTH, requires_grad=True), nn.Linear(WIDTH, WORDS, bias=bias), targets


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("masked", [0, 9])
@pytest.mark.parametrize("divisor", [None, 7, torch.tensor(7.0)], ids=["own count", "number", "tensor"])
def test_equals_the_loss_of_logits(bias: bool, masked: int, divisor: int | Tensor | None) -> None:
    hidden, head, targets = given(bias, masked)
    expected = nn.functional.cross_entropy(head(hidden), targets, reduction="mean" if divisor is None else "sum")
    (3 * (expected if divisor is None else expected / divisor)).backward()
    wanted = [parameter.grad for parameter in (hidden, *head.parameters())]
    hidden.grad = None
    head.zero_grad()
    loss = linear_cross_entropy(hidden, head, targets, divisor)
    (3 * loss).backward()
    torch.testing.assert_close(loss, expected if divisor is None else expected / divisor, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close([p.grad for p in (hidden, *head.parameters())], wanted, rtol=1e-5, atol=1e-6)


def test_frozen_parts_get_no_gradient() -> None:
    hidden, head, targets = given(True, 4)
    head.weight.requires_grad_(False)
    linear_cross_entropy(hidden, head, targets).backward()
    assert head.weight.grad is None
    assert hidden.grad is not None


def test_under_autocast_as_exact_as_logits_in_bfloat16() -> None:
    hidden, head, targets = given(False, 4)
    exact = nn.functional.cross_entropy(head(hidden), targets)
    with torch.autocast("cpu", torch.bfloat16):
        usual = nn.functional.cross_entropy(head(hidden).float(), targets)
        loss = linear_cross_entropy(hidden, head, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(usual.item(), rel=1e-5)
    loss.backward()
    assert head.weight.grad is not None
    assert head.weight.grad.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)


def test_nothing_to_score_is_nan_as_everywhere() -> None:
    hidden, head, targets = given(False, TOKENS)
    assert torch.isnan(nn.functional.cross_entropy(head(hidden), targets))
    assert torch.isnan(linear_cross_entropy(hidden, head, targets))
