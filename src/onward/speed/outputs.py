"""What a model returns, in mixed precision: only what is used of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from onward.loss import loss_of


@contextmanager
def loss_alone(model: nn.Module) -> Iterator[None]:
    """Inside, a model in mixed precision returns its loss alone, in float32.

    accelerate converts all that a model returns to float32: also logits that nobody reads, a copy of four bytes for
    each token and word. A model in full precision, or one whose forward hooks may want to see more, is left as it is.

    Args:
        model: as accelerate wrapped it.
    """
    converting: Any = vars(model).get("forward")
    computing = getattr(getattr(converting, "__wrapped__", None), "model_forward", None)  # in autocast
    if computing is None or model._forward_hooks:
        yield
        return
    bound = (model,) if hasattr(converting, "__self__") else ()

    def forward(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
        return {"loss": loss_of(computing(*bound, *args, **kwargs), kwargs).float()}

    model.forward = forward
    try:
        yield
    finally:
        model.forward = converting
