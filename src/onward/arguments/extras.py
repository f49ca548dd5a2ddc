"""What onward offers beyond transformers. Every default keeps a stock script doing what it did, only safer."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Literal

from onward.arguments.documented import documented

NONFINITE_POLICIES = ["skip", "raise", "rollback", "ignore"]
TRIALS_KEPT = ["best", "all", "none"]
PUSH_FAILURES = ["warn", "raise"]
PACKINGS = ["bfd"]


@documented
@dataclass(init=False, repr=False, eq=False)
class OnwardArguments:
    """Durability, bad steps, memory, searches and pushes."""

    async_save: bool = True
    """Write checkpoints in the background; the loop waits only while the weights are copied."""
    max_failed_saves: int = 3
    """Saves in a row that may fail (a full disk, say) before training stops."""
    max_shard_size: str = "50GB"
    """Weights larger than this are written as several files; a number with KB, MB or GB."""
    metrics_file: bool = True
    """Append every log line to ``metrics.jsonl`` in the output folder."""

    preemption_signals: str = "SIGTERM,SIGUSR1"
    """Signals after which the run saves at the next step and leaves, separated by commas; empty for none."""
    preemption_exit_code: int = 143
    """Exit code of a process that left that way, 0 to 255."""
    max_train_seconds: float | None = None
    """Wall-clock seconds after which the run saves and stops; None for no limit."""
    allow_resume_mismatch: bool = False
    """Resume even if data set, seed or batch size differ from the checkpoint's; the data order is then another one."""

    on_nonfinite: str = field(default="skip", metadata={"choices": NONFINITE_POLICIES})
    """What a NaN or infinite step does: ``skip`` it, ``raise``, ``rollback`` to the last checkpoint, or ``ignore``."""
    max_nonfinite_steps: int = 10
    """Such steps in a row before training stops."""
    max_rollbacks: int = 3
    """Rollbacks in one run before training stops."""

    padding_free: Literal["auto", True, False] = False
    """Train on sequences laid end to end instead of padded; ``auto`` where the model allows it."""
    packing: str | None = field(default=None, metadata={"choices": PACKINGS})
    """Fill rows with several samples each, by best-fit decreasing (``bfd``); None for one sample per row."""
    max_tokens_per_batch: int | None = None
    """Tokens in one micro-batch: a step's samples are split by size instead of by number. None for no limit."""
    chunked_loss: Literal["auto", True, False] = False
    """Compute the language-model loss in chunks, so that no full logits exist; ``auto`` where the model allows it."""
    torch_compile_fallback: bool = True
    """Go back to plain steps if compiled ones measure slower; False compiles in any case, and from the first step."""
    length_aware_window: int = 1
    """Optimizer steps that ``length_aware`` sampling sorts together; 1 leaves each step the samples that it has."""

    keep_trials: str = field(default="best", metadata={"choices": TRIALS_KEPT})
    """Checkpoints that stay after a hyperparameter search: of the ``best`` trial, of ``all``, or ``none``."""
    push_failure: str = field(default="warn", metadata={"choices": PUSH_FAILURES})
    """What a repository that refuses at the start, or a push that failed at the end, does: ``warn`` or ``raise``."""
    push_wait_seconds: float = 600.0
    """How long the end of training waits for the last push, in seconds."""


DEFAULTS: dict[str, Any] = {entry.name: entry.default for entry in fields(OnwardArguments)}


def option(args: Any, name: str) -> Any:
    """Return the onward option `name` of `args`, or its default where `args` lacks it.

    A stock ``transformers.TrainingArguments`` (or a subclass, such as TRL's) has none of these options. It may have one
    of the same name that means something else: TRL has a ``packing`` of its own.
    """
    assert name in DEFAULTS, f"{name} is no option of OnwardArguments"
    return getattr(args, name, DEFAULTS[name]) if _is_ours(args.__class__, name) else DEFAULTS[name]


def value_of(args: Any, name: str) -> Any:
    """What argument `name` is set to: a field, or an option of ours unless a subclass means something else by it."""
    return option(args, name) if name in DEFAULTS else getattr(args, name)


@cache
def _is_ours(kind: Any, name: str) -> bool:
    """Whether `name` of such arguments is onward's option: the class that declares it last gave it our type."""
    for base in kind.__mro__:
        declared = vars(base).get("__annotations__", {})
        if name in declared:
            return _spelled(declared[name]) == _spelled(OnwardArguments.__annotations__[name])
    return True


def _spelled(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
