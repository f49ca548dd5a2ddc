"""Out of memory in an evaluation or prediction: the batch is predicted in parts, from then on all are.

The size of training's micro-batches has nothing to do with it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from onward.agreement import Agreement
from onward.data.pieces import cut, size_of
from onward.errors import DataError, OutOfMemory
from onward.loop.shrink import attempt, free, shapes_of, tell_change

if TYPE_CHECKING:
    from torch import nn

    from onward.hooks.base import TrainerBase

Predicted = tuple[Any, Any, Any]


class SmallerEvaluation:
    """Predicts the batches of one evaluation, in parts where memory runs out."""

    def __init__(self, host: TrainerBase) -> None:
        self._host = host
        self._agreement = Agreement.open()
        self._limit = host._eval_limit

    def close(self) -> None:
        """Give back what several processes share; all must call it."""
        self._agreement.close()

    def predict(self, model: nn.Module, inputs: Any, loss_only: bool, ignore_keys: list[str] | None) -> Predicted:
        """`host.prediction_step` of a batch, in one go or in parts.

        Raises:
            OutOfMemory: a single sample does not fit, or the batch cannot be cut.
        """
        while True:
            parts = self._cut(inputs)
            # Within its step a process may wait for the others: all must have got there before one runs out.
            placed, said = self._together(partial(self._place, parts))
            done: Any = None
            if said is None:
                done, said = self._together(partial(self._steps, model, placed, (loss_only, ignore_keys)))
            if said is None:
                return self._joined(done, placed, loss_only)
            largest = max(map(size_of, parts))
            del parts, placed, done
            free()
            self._shrink(largest, inputs, said)

    def _cut(self, inputs: Any) -> list[Any]:
        try:
            return cut(inputs, self._limit)
        except DataError as error:
            raise OutOfMemory(f"Out of memory in evaluation, and the batch cannot be cut: {error}") from None

    def _place(self, parts: list[Any]) -> list[Any]:
        return [self._host._prepare_input(part) for part in parts]

    def _steps(self, model: nn.Module, parts: list[Any], how: tuple[bool, list[str] | None]) -> list[Predicted]:
        loss_only, ignore_keys = how
        return [self._host.prediction_step(model, part, loss_only, ignore_keys=ignore_keys) for part in parts]

    def _together(self, work: Callable[[], Any]) -> tuple[Any, str | None]:
        result, said = attempt(work)
        (anyone,) = self._agreement.largest(int(said is not None))
        return (None, said or "another process ran out of memory") if anyone else (result, None)

    def _shrink(self, size: int, inputs: Any, said: str) -> None:
        (size,) = self._agreement.largest(size)
        if size <= 1:
            raise OutOfMemory(
                f"Out of memory in evaluation with a single sample: {shapes_of(inputs)} ({said}). Shorten it, or "
                "evaluate in bf16 (bf16_full_eval=True), or keep fewer outputs (prediction_loss_only=True)."
            )
        self._limit = self._host._eval_limit = (size + 1) // 2
        tell_change(self._host, size, self._limit, f"Out of memory in evaluation: {said}. The batch is predicted again")

    def _joined(self, done: list[Predicted], parts: list[Any], loss_only: bool) -> Predicted:
        if len(done) == 1:
            return done[0]
        host = self._host
        losses, logits, labels = zip(*done, strict=True)
        loss = None
        if losses[0] is not None:
            items = [host._get_num_items_in_batch([part], host.args.device) for part in parts]
            shares = [size_of(part) if count is None else count for part, count in zip(parts, items, strict=True)]
            weights = torch.as_tensor(shares, dtype=torch.float32, device=losses[0].device)
            loss = (torch.stack(losses).float() * weights).sum() / weights.sum()
        if loss_only:
            return loss, None, None
        return loss, _rows(logits), _rows(labels)


def _rows(parts: tuple[Any, ...]) -> Any:
    """Nests joined along the first dimension; a shorter second one is filled up with -100."""
    first = parts[0]
    if first is None:
        return None
    if isinstance(first, torch.Tensor):
        if first.dim() == 0:
            return first
        if first.dim() > 1 and len({part.shape[1] for part in parts}) > 1:
            longest = max(part.shape[1] for part in parts)
            parts = tuple(_filled(part, longest) for part in parts)
        return torch.cat(parts)
    if isinstance(first, dict):
        return type(first)({name: _rows(tuple(part[name] for part in parts)) for name in first})
    if isinstance(first, (list, tuple)):
        return type(first)(_rows(members) for members in zip(*parts, strict=True))
    return first


def _filled(part: torch.Tensor, length: int) -> torch.Tensor:
    longer = part.new_full((part.shape[0], length, *part.shape[2:]), -100)
    longer[:, : part.shape[1]] = part
    return longer
