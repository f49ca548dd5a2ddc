"""Compiling a model: as a whole or block by block, whether that pays, and what the compiler did."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from onward.arguments.optimization import BLOCKS
from onward.errors import UsageError
from onward.model_setup import blocks_of

logger = logging.getLogger(__name__)

TRIAL_STEPS = 40
"""Optimizer steps at the begin of a run that are taken in turn compiled and plain, to see which are faster."""

_FEWEST = 4  # measured micro-batches of each kind that a choice needs
_COMPILERS = ("c++", "g++", "clang++", "cl")

Everyone = Callable[[Any], list[Any]]
"""Gives the values of all processes for that of this one."""


# -- whether there is a compiler --------------------------------------------------------------------------------------


def missing_compiler(backend: str | None, device_type: str) -> str | None:
    """Say what the inductor backend lacks to compile for this type of device, or return None."""
    if backend not in (None, "inductor"):
        return None
    if device_type == "cpu":
        named = os.environ.get("CXX")
        found = shutil.which(named) if named else next(filter(None, map(shutil.which, _COMPILERS)), None)
        return None if found else f"no C++ compiler was found ({named or ', '.join(_COMPILERS)})"
    return None if importlib.util.find_spec("triton") else "the package triton is missing"


def broken_compiler(backend: str | None, device: torch.device) -> str | None:
    """Compile a line of code with the inductor backend; say why that does not work, or return None.

    Missing headers, libraries and rights show only like this. It takes some seconds once, and later less than one,
    because the compiler keeps its results.
    """
    if backend not in (None, "inductor"):
        return None
    try:
        torch.compile(_probe, backend="inductor")(torch.ones(8, device=device))
    except Exception as error:  # whatever the tools below it raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"compiling one line of code failed ({type(error).__name__}: {' '.join(lines[:2])[:300]})"
    return None


def _probe(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(x) + 1


# -- block by block ---------------------------------------------------------------------------------------------------


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks that a model is mostly made of: the members of its lists and sequences whose class occurs twice.

    Wrappers around the model (PEFT, DDP) do not hide them.
    """
    blocks = blocks_of(model)
    kinds = Counter(map(_kind, blocks))
    return [block for block in blocks if kinds[_kind(block)] > 1]


def _kind(block: nn.Module) -> tuple[str, str]:
    return type(block).__module__, type(block).__qualname__  # classes made for activation checkpointing share these


# -- what the compiler did --------------------------------------------------------------------------------------------


@dataclass
class Compiled:
    """Counts of the compiler in this process."""

    graphs: int = 0
    frames: int = 0
    """Pieces of Python code that were looked at, those that gave no graph included."""
    recompiles: int = 0
    """How often code was compiled again, for other shapes or values than before."""
    breaks: Counter[str] = field(default_factory=Counter)
    """Places where Python interrupts the graphs, by reason."""

    @classmethod
    def so_far(cls) -> Compiled:
        """The counts since the process began; nothing is imported for them."""
        utils = sys.modules.get("torch._dynamo.utils")
        frames = sys.modules.get("torch._dynamo.convert_frame")
        if utils is None or frames is None:
            return cls()
        counters = utils.counters
        return cls(
            counters["stats"]["unique_graphs"],
            counters["frames"]["total"],
            sum(times - 1 for times in frames.FRAME_COMPILE_COUNTER.values()),
            Counter({str(reason): count for reason, count in counters["graph_break"].items()}),
        )

    def since(self, before: Compiled) -> Compiled:
        """What was added to `before`."""
        return Compiled(
            self.graphs - before.graphs,
            self.frames - before.frames,
            self.recompiles - before.recompiles,
            self.breaks - before.breaks,
        )

    def metrics(self) -> dict[str, float]:
        """For `TrainOutput.metrics`."""
        return {
            "train_compiled_graphs": self.graphs,
            "train_recompiles": self.recompiles,
            "train_graph_breaks": self.breaks.total(),
        }

    def __str__(self) -> str:
        text = (
            f"{self.graphs} graphs were compiled, {self.recompiles} times code was compiled again for other shapes or "
            f"values, and Python interrupted the graphs at {self.breaks.total()} places"
        )
        if self.breaks:
            reason, count = self.breaks.most_common(1)[0]
            text += f"; most often ({count}) by: {reason.strip().splitlines()[0]}"
        return text


# -- the run ----------------------------------------------------------------------------------------------------------


class Compilation:
    """How the steps of one run are computed: compiled or plain.

    With `measures`, the first `TRIAL_STEPS` steps are compiled in turn, and then the faster way is kept. Which way a
    step of the trial goes depends on its number alone, and the choice, once made, belongs to the checkpoint: only the
    choice itself depends on the clock.

    Args:
        name: of what is compiled and how; a choice that was made for another one is not taken over.
        device: that the model trains on.
        measures: whether to go back to plain steps if compiled ones are slower.
        everyone: gathers over processes, so that all choose the same.
    """

    def __init__(self, name: str, device: torch.device, *, measures: bool, everyone: Everyone) -> None:
        self.name = name
        self.device = device
        self.everyone = everyone
        self.chosen: bool | None = None if measures else True
        """Whether steps are compiled; None as long as that is being measured."""
        self.on = True
        self.before = Compiled.so_far()
        self._until: int | None = None
        self._seconds: dict[bool, list[float]] = {True: [], False: []}
        self._blocks: list[nn.Module] = []

    def give_up(self, reason: str) -> None:
        """Take plain steps only, and say why."""
        logger.warning("torch_compile is not used: %s.", reason)
        self.chosen = self.on = False

    def compile_blocks(self, model: nn.Module, backend: str | None) -> None:
        """Compile each repeated block, in place: names of weights, hooks and wrappers stay. Only training uses it.

        Raises:
            UsageError: the model has no such blocks.
        """
        self._blocks = repeated_blocks(model)
        if not self._blocks:
            raise UsageError(
                f"torch_compile_mode='{BLOCKS}' got a {type(model).__name__} without repeated blocks; expected layers "
                "with parts of their own, two or more of a class, in an nn.ModuleList or nn.Sequential. Use "
                "torch_compile=True to compile it as a whole."
            )
        for block in self._blocks:
            block._compiled_call_impl = self._either(block, backend or "inductor")

    def _either(self, block: Any, backend: str) -> Callable[..., Any]:
        compiled = torch.compile(block._call_impl, backend=backend)

        def call(*args: Any, **kwargs: Any) -> Any:
            # Evaluation has other lengths, and generation a cache: each would be compiled for itself.
            use = compiled if self.on and block.training else block._call_impl
            return use(*args, **kwargs)

        return call

    def close(self) -> None:
        """Give the blocks back as they were."""
        for block in self._blocks:
            block._compiled_call_impl = None
        self._blocks = []

    @contextmanager
    def computing(self, step: int, model: nn.Module, inputs: Any) -> Iterator[nn.Module]:
        """Inside, run what is yielded forward and backward.

        Args:
            step: number of the optimizer step, from 0.
            model: as accelerate wrapped it.
            inputs: the micro-batch, on the device.
        """
        if self.chosen is None:
            self._until = step + TRIAL_STEPS if self._until is None else self._until
            if step >= self._until:
                self._choose()
        self.on = step % 2 == 0 if self.chosen is None else self.chosen
        whole = model if self.on or self._blocks else getattr(model, "_orig_mod", model)
        if self.chosen is not None:
            yield whole
            return
        frames = Compiled.so_far().frames
        began = self._now()
        yield whole
        seconds = self._now() - began
        if Compiled.so_far().frames == frames:  # else the compiler was at work too
            self._seconds[self.on].append(seconds / _places(inputs))

    def _now(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)  # host sync, in the trial only
        return time.perf_counter()

    def _choose(self) -> None:
        medians = {way: statistics.median(seconds or [0.0]) for way, seconds in self._seconds.items()}
        ranks = self.everyone(({way: len(seconds) for way, seconds in self._seconds.items()}, medians))
        # All processes wait for the slowest one.
        compiled, plain = (max(median[way] for _, median in ranks) for way in (True, False))
        measured = min(count[way] for count, _ in ranks for way in (True, False))
        self._seconds = {True: [], False: []}
        if measured < _FEWEST:
            self.chosen = False
            logger.warning(
                "torch_compile is not used from here on: in %d steps only %d micro-batches could be computed without "
                "compiling anew (see TORCH_LOGS=recompiles). torch_compile_fallback=False compiles nevertheless.",
                TRIAL_STEPS, measured,
            )  # fmt: skip
            return
        self.chosen = compiled <= plain
        outcome = "goes on" if self.chosen else "is not used from here on (torch_compile_fallback=False keeps it)"
        logger.log(
            logging.INFO if self.chosen else logging.WARNING,
            "torch_compile %s: measured over %d steps, compiled ones took %.2f of the time of plain ones.",
            outcome, TRIAL_STEPS, compiled / plain,
        )  # fmt: skip

    # -- across a resume ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The choice, or what was measured for it; JSON-able."""
        seconds = [self._seconds[True], self._seconds[False]]
        return {"name": self.name, "chosen": self.chosen, "until": self._until, "seconds": seconds}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Take over the choice of the run that goes on; measure on where it had not been made."""
        if self.chosen is None and state is not None and state["name"] == self.name:
            self.chosen, self._until = state["chosen"], state["until"]
            self._seconds = dict(zip((True, False), map(list, state["seconds"]), strict=True))


def _places(inputs: Any) -> int:
    """Size of a micro-batch: positions of token batches, samples of others."""
    values: Any = getattr(inputs, "values", list)()
    tensors = [value for value in values if isinstance(value, torch.Tensor) and value.dim()]
    tokens = [value.numel() for value in tensors if value.dim() == 2 and not value.is_floating_point()]
    return max(tokens or [len(value) for value in tensors], default=1) or 1
