"""Say in words where two records differ. No tolerance anywhere: floats are compared as hexadecimal text."""

from __future__ import annotations

from typing import Any

# Measured, not computed: how long things took and how much memory they needed.
MEASURED = ("runtime", "per_second", "_mem_", "memory", "peak", "compilation_time", "preparation_time", "step_time")

# Log entries that only onward writes, each described in docs/differences.md or docs/performance.md.
OURS = ("train_pad_fraction", "train_data_wait_fraction", "train_mfu")

# Files of a checkpoint that only onward writes.
OUR_FILES = ("onward_state.json", "onward_manifest.json")

MISSING = "(missing)"


def measured(key: str) -> bool:
    """Whether `key` names a measurement, which no two runs share."""
    return any(part in key for part in MEASURED)


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """Every difference between the record of transformers and that of onward; empty if there is none."""
    found: list[str] = []
    for part in theirs.keys() | ours.keys():
        if part == "events":
            found += sequence("events", theirs.get(part, []), ours.get(part, []))
        else:
            found += difference(part, theirs.get(part, MISSING), ours.get(part, MISSING))
    return sorted(found, key=rank)


def rank(line: str) -> int:
    """Where a line belongs: the first difference in the course of a run explains most of those after it."""
    order = ("log_history", "events", "train_output", "checkpoints", "weights")
    return next((index for index, part in enumerate(order) if line.startswith(part)), -1)


def difference(path: str, theirs: Any, ours: Any) -> list[str]:
    """Differences below `path`, keys that are measurements or only ours left out."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = [*theirs, *(key for key in ours if key not in theirs and key not in OURS)]
        return [
            line
            for key in keys
            if not measured(key)
            for line in difference(f"{path}.{key}", theirs.get(key, MISSING), ours.get(key, MISSING))
        ]
    if isinstance(theirs, list) and isinstance(ours, list):
        if path.endswith(".files"):
            ours = [name for name in ours if name not in OUR_FILES]
        elif path.endswith(".given"):  # callbacks may be handed more than transformers hands them
            ours = [name for name in ours if name in theirs]
        if len(theirs) == len(ours):
            pairs = zip(theirs, ours, strict=True)
            return [line for at, (a, b) in enumerate(pairs) for line in difference(f"{path}[{at}]", a, b)]
        return sequence(path, theirs, ours)
    if theirs == ours and type(theirs) is type(ours):
        return []
    return [f"{path}: transformers {readable(theirs)}, onward {readable(ours)}"]


def sequence(path: str, theirs: list[Any], ours: list[Any]) -> list[str]:
    """The first entry at which two lists part, and their lengths if those differ."""
    found = []
    if len(theirs) != len(ours):
        found.append(f"{path}: transformers has {len(theirs)} entries, onward {len(ours)}")
    for at in range(max(len(theirs), len(ours))):
        a = theirs[at] if at < len(theirs) else MISSING
        b = ours[at] if at < len(ours) else MISSING
        lines = difference(f"{path}[{at}]", a, b)
        if lines:
            before = f" (after {readable(theirs[at - 1])})" if at else ""
            return [*found, lines[0] + before, *lines[1:]]
    return found


def readable(value: Any) -> str:
    """Hexadecimal floats with their decimal reading, anything else as it is."""
    if isinstance(value, str) and value.startswith(("0x", "-0x")):
        return f"{float.fromhex(value)!r} ({value})"
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}…"
