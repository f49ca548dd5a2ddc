"""What a model returns, in mixed precision: only what is used of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def loss_alone(model: nn.Module) -> Iterator[None]:
    """Inside, a model in mixed precision returns nothing but its loss, where it has one.

    accelerate converts all that a model returns to float32: also logits that nobody reads, a copy of four bytes for
    each token and word. A model in full precision, or one whose forward hooks may want to see more, is left as it is.

    Args:
        model: as accelerate wrapped it.
    """
    converting: Any = getattr(vars(model).get("forward"), "__wrapped__", None)
    computing = getattr(converting, "model_forward", None)  # in autocast
    if computing is None or model._forward_hooks:
        yield
        return
    converting.model_forward = lambda *args, **kwargs: _without_rest(computing(*args, **kwargs))
    try:
        yield
    finally:
        converting.model_forward = computing


def _without_rest(outputs: Any) -> Any:
    """The entry of a model's outputs that is the loss (`onward.loss.loss_of`); all of them where they have none."""
    if isinstance(outputs, dict):
        return {"loss": outputs["loss"]} if "loss" in outputs else outputs
    return outputs[:1] if type(outputs) is tuple else outputs
