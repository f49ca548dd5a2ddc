"""One batch of an evaluation: what the model says to it, in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from onward.gather import detach

if TYPE_CHECKING:
    from torch import nn

    from onward.hooks.base import TrainerBase


def prediction_step(
    host: TrainerBase, model: nn.Module, inputs: dict[str, Any], loss_only: bool, ignore_keys: list[str] | None
) -> tuple[Any, Any, Any]:
    """Loss, logits and labels of one batch of this process, each `None` where there is none."""
    names = host.label_names
    has_labels = len(names) > 0 and all(inputs.get(name) is not None for name in names)
    returns_loss = inputs.get("return_loss")
    returns_loss = host.can_return_loss if returns_loss is None else returns_loss  # as models of the CLIP kind do
    inputs = host._prepare_inputs(inputs)
    if ignore_keys is None:
        config = getattr(host.model, "config", None)
        ignore_keys = [] if config is None else getattr(config, "keys_to_ignore_at_inference", ["past_key_values"])

    loss, labels = None, None
    with torch.no_grad():
        if has_labels or (not names and returns_loss):
            # Before the loss is computed, which may take them out (label smoothing does).
            labels = _unpacked(detach(tuple(inputs.get(name) for name in names)))
            loss, outputs = _loss_and_outputs(host, model, inputs, loss_only)
            skipped: tuple[str, ...] = (*ignore_keys, "loss")
            first = 1
        else:
            with host.compute_loss_context_manager():
                outputs = model(**inputs)
            skipped, first = tuple(ignore_keys), 0
    if loss_only:
        return loss, None, None
    if isinstance(outputs, dict):
        logits: Any = tuple(value for key, value in outputs.items() if key not in skipped)
    else:
        logits = outputs[first:] if first else outputs
    return loss, _unpacked(detach(logits)), labels


def _loss_and_outputs(host: TrainerBase, model: nn.Module, inputs: dict[str, Any], loss_only: bool) -> tuple[Any, Any]:
    items = host._get_num_items_in_batch([inputs], host.args.device)
    with host.compute_loss_context_manager():
        if host.args.use_liger_kernel and loss_only:
            inputs = {**inputs, "skip_logits": True}
        loss, outputs = host.compute_loss(model, inputs, return_outputs=True, num_items_in_batch=items)
    return loss.detach().mean(), outputs


def _unpacked(nest: Any) -> Any:
    """The one member of a tuple of one; a tensor stays whole."""
    return nest[0] if isinstance(nest, (tuple, list)) and len(nest) == 1 else nest
