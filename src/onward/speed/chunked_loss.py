"""The cross-entropy of a language model without its logits.

Logits of (tokens, vocabulary) are most of the memory of a step with a large vocabulary: here they exist for a chunk of
the tokens at a time, and only for tokens that are scored. Gradients are computed in the same pass, so nothing is
computed twice. torch's own `linear_cross_entropy` was five times slower on CPU, and sums in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from onward.loss import IGNORED

CHUNK = {"cpu": 2**24}
"""Logits that exist at once, in the precision of the products, by type of device."""
_CHUNK_ELSEWHERE = 2**26
TILE = {"cpu": 2**19}
"""Those of them that exist in float32 at once: few enough to stay in a processor's cache while they are worked on."""
_TILE_ELSEWHERE = 2**24

_CHANGES_LOGITS = ("final_logit_softcapping", "logits_soft_cap", "output_logits_soft_cap")


def linear_cross_entropy(
    hidden: Tensor, head: nn.Linear, targets: Tensor, divisor: Tensor | int | float | None = None
) -> Tensor:
    """Cross-entropy of ``head(hidden)`` against `targets`, in float32.

    Args:
        hidden: (tokens, width).
        head: the layer from width to vocabulary.
        targets: (tokens,) of classes; `IGNORED` for tokens that are not scored.
        divisor: what the sum is divided by; the number of scored tokens if None.

    Returns:
        The loss, a scalar.
    """
    scored = targets.ne(IGNORED)
    if hidden.device.type == "cpu":
        hidden, targets = hidden[scored], targets[scored]
        scored = torch.ones_like(targets, dtype=torch.bool)
    # On an accelerator choosing rows would mean waiting for their number; there they are scored and count for nothing.
    count = scored.sum() if divisor is None else divisor
    scale = 1.0 / torch.as_tensor(count, dtype=torch.float32, device=hidden.device)
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    with torch.autocast(kind, enabled=False):
        bias = None if head.bias is None else head.bias.to(dtype)
        shares = scored.float() * scale
        loss: Tensor = _Chunked.apply(hidden.to(dtype), head.weight, bias, targets, shares)  # type: ignore[no-untyped-call]
    return loss + 0.0 * scale  # nothing scored: NaN, as everywhere, not 0


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, shares: Tensor
    ) -> Tensor:
        """Sum of each token's loss times its share; the gradients are kept for backward."""
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        used = weight.to(hidden.dtype)
        words, kind = weight.shape[0], weight.device.type
        rows = max(1, min(len(targets), CHUNK.get(kind, _CHUNK_ELSEWHERE) // words))
        chunk = hidden.new_empty(rows, words)  # one for all: fresh memory costs more than the work that is done in it
        of_hidden = torch.empty_like(hidden) if wants_hidden else None
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and wants_bias else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            logits = torch.mm(hidden[part], used.T, out=chunk[: len(targets[part])])
            if bias is not None:
                logits += bias
            loss += _score(logits, targets[part], shares[part], of_bias)
            if of_hidden is not None:
                torch.mm(logits, used, out=of_hidden[part])
            if of_weight is not None:
                of_weight += logits.T @ hidden[part]
        ctx.gradients = (of_hidden, of_weight, of_bias, weight.dtype)
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        """Scale what forward computed."""
        of_hidden, of_weight, of_bias, dtype = ctx.gradients
        del ctx.gradients  # they are scaled in place: a second backward must fail, not be wrong
        (factor,) = outer
        return (
            None if of_hidden is None else of_hidden.mul_(factor),
            None if of_weight is None else of_weight.mul_(factor).to(dtype),
            None if of_bias is None else of_bias.mul_(factor),
            None,
            None,
        )


def _score(logits: Tensor, targets: Tensor, shares: Tensor, of_bias: Tensor | None) -> Tensor:
    """Return the loss of a chunk, put its slopes in the place of its logits and add them up in `of_bias`."""
    loss = torch.zeros((), dtype=torch.float32, device=logits.device)
    rows = max(1, TILE.get(logits.device.type, _TILE_ELSEWHERE) // logits.shape[1])
    for start in range(0, len(targets), rows):
        part = slice(start, start + rows)
        tile, share = logits[part], shares[part].unsqueeze(1)
        index = targets[part].clamp(min=0).unsqueeze(1)
        scores = torch.log_softmax(tile, dim=1, dtype=torch.float32)
        loss -= (scores.gather(1, index) * share).sum()
        slopes = scores.exp_().mul_(share).scatter_add_(1, index, -share)
        if of_bias is not None:
            of_bias += slopes.sum(0)
        tile.copy_(slopes)
    return loss


def why_not(base: Any) -> str | None:
    """Say what keeps this model's loss from being computed in chunks, or return None.

    Args:
        base: the model without wrappers: a causal language model of transformers.
    """
    from transformers.loss.loss_utils import ForCausalLMLoss

    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    if type(head) is not nn.Linear:
        return f"its output layer is {type(head).__name__ if head is not None else 'missing'}, not a plain nn.Linear"
    if head._forward_hooks or head._forward_pre_hooks or head._backward_hooks or "forward" in vars(head):
        return "hooks watch its output layer"
    if base._forward_hooks:
        return "a forward hook may want its logits"
    if getattr(base, "loss_function", None) is not ForCausalLMLoss:
        return "its loss is not transformers' ForCausalLMLoss"
    config = base.config.get_text_config()
    capped = [name for name in _CHANGES_LOGITS if getattr(config, name, None) is not None]
    return f"its logits are changed before the loss ({capped[0]})" if capped else None


@contextmanager
def without_logits(base: Any) -> Iterator[None]:
    """Inside, the model's forward computes its loss in chunks, and what it returns as logits are hidden states.

    Args:
        base: a model that `why_not` has nothing against.
    """
    head = base.get_output_embeddings()
    own = vars(base).get("_loss_function", _ABSENT)
    head.forward = _unchanged  # the loss below does the layer's work
    base._loss_function = _Loss(head)
    try:
        yield
    finally:
        del head.forward
        del base._loss_function
        if own is not _ABSENT:
            base._loss_function = own


_ABSENT = object()


def _unchanged(hidden: Tensor) -> Tensor:
    return hidden


class _Loss:
    """Stands in for transformers' loss of causal language models, given hidden states for logits."""

    def __init__(self, head: nn.Linear) -> None:
        self.head = head

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor | None,
        vocab_size: int,
        num_items_in_batch: Tensor | int | None = None,
        shift_labels: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """The loss of `labels`, each scored by the token before it, or of `shift_labels` as they stand."""
        if shift_labels is None:
            assert labels is not None, "the model asked for a loss without labels"
            shift_labels = nn.functional.pad(labels, (0, 1), value=IGNORED)[..., 1:]
        targets = shift_labels.reshape(-1).to(logits.device)
        return linear_cross_entropy(logits.reshape(len(targets), -1), self.head, targets, num_items_in_batch)
