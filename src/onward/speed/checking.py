"""One batch both ways, before a shortcut trains: what differs is said, and nothing is changed.

Dropout is off, no gradient is kept, and every random number generator stands afterwards where it stood. Models in
float32 are compared in float32, also when autocast trains them, so that rounding cannot hide a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onward.data.draws import capture, restore
from onward.loss import loss_of
from onward.speed import chunked_loss
from onward.speed.padding_free import Row

PLACES = 1024
"""Tokens and padding that a comparison is made on: enough to show a difference, little enough to fit in memory."""


@dataclass(frozen=True)
class _Tolerance:
    loss: float
    """Relative to the loss."""
    hidden: float
    """Length of a token's difference relative to the length of its hidden state."""


_EXACT = _Tolerance(1e-5, 1e-3)
_HALF = _Tolerance(1e-2, 1e-2)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode and keeps no gradients; afterwards all is as before."""
    training = [module for module in model.modules() if module.training]
    streams = capture()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            restore(streams)
            for module in training:
                module.training = True


def few(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first samples of a padded batch, two at least where it has them."""
    ids = inputs["input_ids"]
    count = max(2, PLACES // max(1, ids.shape[1]))
    return {name: value[:count] for name, value in inputs.items()}


def forward_of(model: Any, needs_half: bool) -> Callable[..., Any]:
    """The model's forward as it is compared: below autocast, unless its kernels need half precision."""
    forward: Callable[..., Any] = model if needs_half else getattr(model, "_original_forward", model)
    return forward


def packing_differs(
    forward: Callable[..., Any], head: nn.Module, inputs: Mapping[str, Tensor], row: Row, attending: Any
) -> str | None:
    """Say what differs between a padded batch and its row, or return None.

    Args:
        forward: of the model.
        head: its output layer, which is given the hidden states to compare.
        inputs: the padded batch.
        row: the same as one row.
        attending: context in which rows are attended to.
    """
    loss, hidden = _observe(forward, head, {**inputs, "use_cache": False})
    with attending:
        row_loss, row_hidden = _observe(forward, head, row.inputs)
    width = hidden.shape[-1]
    padded = hidden.reshape(-1, width)
    if len(padded) != inputs["input_ids"].numel() or row_hidden.numel() != len(row.places) * width:
        return "its output layer does not get one hidden state per token"
    expected, got = padded[row.places].float(), row_hidden.reshape(-1, width).float()
    errors = _errors(got, expected)
    tolerance = _tolerance(hidden)
    if tolerance is _HALF:
        tolerance = _Tolerance(tolerance.loss, max(tolerance.hidden, 4 * _noise(forward, head, inputs, padded)))
    worst = int(errors.argmax())
    if not errors[worst] <= tolerance.hidden:  # also for NaN
        sample, token = _place(worst, row.sizes)
        return (
            f"the hidden state of token {token} of sample {sample} is off by {float(errors[worst]):.1e} of its length "
            f"(allowed: {tolerance.hidden:.0e}), so its samples do not stay apart"
        )
    return _losses_differ(loss, row_loss, tolerance)


def chunking_differs(forward: Callable[..., Any], base: Any, inputs: Mapping[str, Any]) -> str | None:
    """Say what differs between the model's loss and the one computed in chunks, or return None.

    Args:
        forward: of the model.
        base: the model without wrappers.
        inputs: a batch, or a row if rows are trained on (its attention is set up by the caller).
    """
    logits: list[Tensor] = []
    head = base.get_output_embeddings()
    handle = head.register_forward_hook(lambda _, __, output: logits.append(output))
    scored: list[Tensor] = []
    own = base.loss_function

    def watched(logits: Tensor, *args: Any, **kwargs: Any) -> Any:
        scored.append(logits)
        return own(logits, *args, **kwargs)

    base._loss_function = watched
    try:
        loss = loss_of(forward(**inputs), inputs)
    finally:
        handle.remove()
        del base._loss_function
    if len(logits) != 1 or len(scored) != 1 or not _same(logits[0], scored[0]):
        return "its logits are changed between output layer and loss"
    with chunked_loss.without_logits(base):
        chunked = loss_of(forward(**inputs), inputs)
    return _losses_differ(loss, chunked, _tolerance(logits[0]))


def _errors(got: Tensor, expected: Tensor) -> Tensor:
    errors: Tensor = (got - expected).norm(dim=1) / expected.norm(dim=1).clamp(min=1e-12)
    return errors


def _noise(forward: Callable[..., Any], head: nn.Module, inputs: Mapping[str, Tensor], padded: Tensor) -> float:
    """How much half precision alone changes the hidden states of two samples: in the batch, and each by itself."""
    worst = 0.0
    length = inputs["input_ids"].shape[1]
    for number in range(min(2, len(inputs["input_ids"]))):
        kept = inputs["attention_mask"][number].ne(0)
        alone = {name: value[number : number + 1][:, kept] for name, value in inputs.items()}
        _, hidden = _observe(forward, head, {**alone, "use_cache": False})
        expected = padded[number * length : (number + 1) * length][kept].float()
        worst = max(worst, float(_errors(hidden.reshape(expected.shape).float(), expected).max()))
    return worst


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one.float(), other.float()))


def _observe(forward: Callable[..., Any], head: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        loss = loss_of(forward(**inputs), inputs)
    finally:
        handle.remove()
    if len(seen) != 1:
        raise RuntimeError(f"the output layer was called {len(seen)} times in one forward")
    return loss, seen[0]


def _tolerance(compared: Tensor) -> _Tolerance:
    return _EXACT if compared.dtype in (torch.float32, torch.float64) else _HALF


def _losses_differ(expected: Tensor, got: Tensor, tolerance: _Tolerance) -> str | None:
    one, other = float(expected), float(got)
    if abs(one - other) <= tolerance.loss * max(1.0, abs(one)):
        return None
    return f"the loss is {other:.7g} instead of {one:.7g} (allowed difference: {tolerance.loss:.0e})"


def _place(index: int, sizes: list[int]) -> tuple[int, int]:
    sample = 0
    while index >= sizes[sample]:
        index -= sizes[sample]
        sample += 1
    return sample, index
