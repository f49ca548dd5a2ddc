"""Which shortcuts a run takes, and how a micro-batch goes through them.

    asked   an argument is True or "auto"
    open    nothing known speaks against it
    taken   from the first batch on which both ways were computed and agreed

With True, whatever speaks against a shortcut is an error; with "auto" it is said once and training goes the long way.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from onward.errors import UsageError
from onward.speed import attention, checking, chunked_loss, padding_free
from onward.speed.padding_free import Row

logger = logging.getLogger(__name__)


@dataclass
class Shortcut:
    """One of them."""

    name: str
    """Its argument."""
    asked: bool | str
    open: bool = True
    taken: bool = False
    told: set[str] = field(default_factory=set)

    def close(self, reason: str, *, level: int = logging.INFO) -> None:
        """Give it up for this run.

        Raises:
            UsageError: it was asked for with True.
        """
        self.pass_over(reason, level=level)
        self.open = self.taken = False

    def pass_over(self, reason: str, *, level: int = logging.INFO) -> None:
        """Leave it out for one batch, and say so the first time.

        Raises:
            UsageError: it was asked for with True.
        """
        if self.asked is True:
            raise UsageError(
                f"{self.name}=True cannot be done: {reason}. Use {self.name}='auto' to train without it in this case."
            )
        if reason not in self.told:
            self.told.add(reason)
            logger.log(level, "%s is not used: %s.", self.name, reason)


class Shortcuts:
    """The shortcuts of one run.

    Args:
        model: as accelerate wrapped it, below DDP; its forward is compared.
        base: the model of transformers in it, without PEFT.
        padding_free: what was asked for.
        chunked_loss: what was asked for.
    """

    def __init__(self, model: Any, base: Any, padding_free: bool | str, chunked_loss: bool | str) -> None:
        self.model, self.base = model, base
        self.packing = Shortcut("padding_free", padding_free, open=bool(padding_free))
        self.chunking = Shortcut("chunked_loss", chunked_loss, open=bool(chunked_loss))
        self.packed_tokens: int | None = None
        """Tokens of the latest micro-batch if it went as a row without padding."""
        self._configs = attention.configs_of(base)
        self._way: str | None = None

    def look(self) -> None:
        """Find out what the model says about itself.

        Raises:
            UsageError: it does not allow what was asked for with True.
        """
        self._way = attention.way_of(self._configs)
        if self.packing.open and self._way is None:
            names = sorted({str(getattr(config, "_attn_implementation", None)) for config in self._configs})
            self.packing.close(f"the model attends by {' and '.join(names)}, which takes no boundaries")
        if self.chunking.open and (reason := chunked_loss.why_not(self.base)):
            self.chunking.close(reason)

    @contextmanager
    def taking(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Inside, call the model with what is yielded, and run backward."""
        row = self._row(inputs) if self.packing.open else None
        if self.chunking.open and not self.chunking.taken:
            self._check_chunking(inputs, row)
        self.packed_tokens = None if row is None else sum(row.sizes)
        with ExitStack() as stack:
            if row is not None:
                stack.enter_context(self._attending())
            if self.chunking.taken:
                stack.enter_context(chunked_loss.without_logits(self.base))
            yield inputs if row is None else row.inputs

    def _attending(self) -> Any:
        assert self._way is not None, "a shortcut without a way was closed"
        return attention.attending(self._configs, self._way)

    def _row(self, inputs: Mapping[str, Any]) -> Row | None:
        """The batch as a row, or None where it is not to be one."""
        if reason := padding_free.why_not(inputs):
            self.packing.pass_over(reason)
            return None
        if not self.packing.taken:
            if len(inputs["input_ids"]) < 2:
                return None  # one sample cannot show whether samples stay apart
            self._check_packing(inputs)
            if not self.packing.taken:
                return None
        row = padding_free.as_row(inputs)
        has_padding = len(row.places) < inputs["input_ids"].numel()
        return row if has_padding and row.sizes else None

    def _forward(self) -> Any:
        return checking.forward_of(self.model, str(self._way).startswith("flash"))

    def _check_packing(self, inputs: Mapping[str, Any]) -> None:
        few = checking.few(inputs)
        head = self.base.get_output_embeddings()
        with checking.undisturbed(self.model):
            try:
                reason = checking.packing_differs(
                    self._forward(), head, few, padding_free.as_row(few), self._attending()
                )
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever a model does when called in a way it does not know
                reason = f"{type(self.base).__name__} cannot be called with samples end to end ({error})"
        if reason is None:
            self.packing.taken = True
            logger.info("padding_free: checked on the first batch, and used.")
        else:
            self.packing.close(f"trained without padding, {reason}", level=logging.WARNING)

    def _check_chunking(self, inputs: Mapping[str, Any], row: Row | None) -> None:
        if "labels" not in inputs or not isinstance(inputs["labels"], torch.Tensor):
            self.chunking.pass_over("the batch has no tensor of labels")
            return
        batch: Mapping[str, Any] = inputs
        if row is not None:
            batch = padding_free.as_row(checking.few(inputs)).inputs
        elif padding_free.why_not(inputs) is None:
            batch = checking.few(inputs)
        with checking.undisturbed(self.model), ExitStack() as stack:
            if row is not None:
                stack.enter_context(self._attending())
            reason = checking.chunking_differs(self._forward(), self.base, batch)
        if reason is None:
            self.chunking.taken = True
            logger.info("chunked_loss: checked on the first batch, and used.")
        else:
            self.chunking.close(reason, level=logging.WARNING)
