"""The loss of a batch: where it is found in a model's outputs, label smoothing, and what it is divided by.

The mean over an accumulated batch is taken over all its items at once: each micro-batch's sum is divided by
``num_items_in_batch``, the count of the whole accumulated batch. A mean of means would weigh short rows more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onward.errors import UsageError

IGNORED = -100
"""The label that no loss is computed for."""


@dataclass
class LabelSmoother:
    """Cross-entropy against labels that keep ``1 - epsilon`` of their weight and spread the rest over all classes.

    Source: Szegedy et al. 2016, arXiv 1512.00567. Called with a model's outputs and labels; rows whose label is
    ``ignore_index`` count for nothing.
    """

    epsilon: float = 0.1
    ignore_index: int = IGNORED

    def __call__(
        self,
        model_output: Any,
        labels: Tensor,
        shift_labels: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return the smoothed loss, a 0-d tensor.

        Logits are (..., classes), labels (...) or (..., 1). With ``shift_labels`` position i is scored against the
        label of position i + 1. The sum is divided by ``num_items_in_batch``, or by this batch's own count where that
        is None.
        """
        logits = model_output["logits"] if isinstance(model_output, dict) else model_output[0]
        if shift_labels:
            logits, labels = logits[..., :-1, :], labels[..., 1:]
        log_probs = torch.nn.functional.log_softmax(logits, dim=-1)
        if labels.dim() < log_probs.dim():
            labels = labels.unsqueeze(-1)
        ignored = labels.eq(self.ignore_index)
        # Negative labels cannot be looked up; what they look up instead is masked right after.
        of_label = log_probs.gather(dim=-1, index=labels.clamp(min=0))
        # Summed in float32 whatever the dtype of the logits: half precision overflows over a large vocabulary.
        of_all = log_probs.sum(dim=-1, keepdim=True, dtype=torch.float32)
        count = _count(ignored, num_items_in_batch)
        hard = -of_label.masked_fill(ignored, 0.0).sum() / count
        spread = -of_all.masked_fill(ignored, 0.0).sum() / (count * log_probs.shape[-1])
        return (1 - self.epsilon) * hard + self.epsilon * spread


def _count(ignored: Tensor, given: Tensor | int | None) -> Tensor | int:
    if given is None:
        return ignored.numel() - ignored.sum()
    return given.to(ignored.device) if isinstance(given, Tensor) else given


def loss_of(outputs: Any, input_names: Iterable[str], label_names: Iterable[str] = ()) -> Tensor:
    """Return the loss among a model's outputs: the entry ``loss`` of a dictionary, the first entry of a tuple.

    Raises `UsageError` for outputs without one, naming what the model was given (``input_names``) and what it takes for
    labels (``label_names``).
    """
    found: Tensor | None
    if isinstance(outputs, (dict, Mapping)):
        found = outputs.get("loss")
    elif outputs is None or (isinstance(outputs, Tensor) and outputs.shape != (1,)):
        found = None  # a tensor of logits has a first entry, too, which would be trained on
    else:
        found = outputs[0]
    if found is None:
        given, labels = ", ".join(input_names), ", ".join(label_names) or "none"
        raise UsageError(
            f"the model returned no loss: got {_described(outputs)} for the inputs {given}; expected a dictionary with "
            f"an entry 'loss', or a tuple that starts with it. The labels that its forward takes: {labels}. Give the "
            "data set these, pass compute_loss_func, or override compute_loss"
        )
    return found


def _described(outputs: Any) -> str:
    if isinstance(outputs, Mapping):
        return f"outputs {', '.join(outputs)}"
    if outputs is None:
        return "None"
    return f"a tensor of shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__


def unfit_loss(loss: Any) -> UsageError:
    """The error for a loss that backward cannot run on."""
    if not isinstance(loss, Tensor):
        got, remedy = f"a loss of type {type(loss).__name__}", "Return it as a tensor."
    elif loss.numel() != 1:
        got, remedy = f"a loss of shape {tuple(loss.shape)}", "Take its mean; if it is logits, the labels are missing."
    else:
        got = "a loss without a gradient"
        remedy = "Do not detach it or compute it without gradients, and leave a parameter that it depends on trainable."
    return UsageError(f"training got {got}; expected a tensor with one number that depends on the parameters. {remedy}")


def without_labels(batch: Any) -> Any:
    """The batch with every label ignored, so that `count_items` finds nothing in it."""
    if not isinstance(batch, Mapping):
        return batch
    hidden = {
        name: torch.full_like(batch[name], IGNORED)
        for name in ("labels", "shift_labels")
        if isinstance(batch.get(name), Tensor)
    }
    return {**batch, **hidden}


def count_items(batches: Sequence[Any], shifted: bool) -> Tensor | None:
    """Count the labels that a loss is computed for, over the micro-batches of one optimizer step.

    With ``shifted`` (the model's loss predicts the next position) the first label of each row is no target and is not
    counted; a collator that brings ``shift_labels`` has decided itself. Returns a 0-d integer tensor on the batches'
    device, None where batches have no tensor of labels.
    """
    if not batches or not isinstance(batches[0], Mapping) or "labels" not in batches[0]:
        return None
    total: Tensor | None = None
    for batch in batches:
        targets = batch.get("shift_labels", batch["labels"])
        if not isinstance(targets, Tensor):
            return None  # object detection: a list of dictionaries
        if shifted and "shift_labels" not in batch:
            targets = targets[..., 1:]
        count = targets.ne(IGNORED).sum()
        total = count if total is None else total + count.to(total.device)
    return total
