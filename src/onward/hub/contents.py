"""What is pushed where: the files of a checkpoint or of the output folder, and their places in the repository.

Reads folders, never file contents, so it costs the training loop a directory listing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

# Files of a checkpoint that resume a run but are no part of the model: they stay out of the repository's root.
STATE_FILES = [
    "optimizer*", "scheduler.pt", "scaler.pt", "rng_state*", "trainer_state.json", "onward_*", "global_step*",
    "latest", "zero_to_fp32.py", "pytorch_model_fsdp*", "metrics.jsonl",
]  # fmt: skip
# What a push of the final model leaves out of the output folder: what transformers leaves out, and hidden files.
# The checkpoints of a search lie deeper, in folders that the user may name.
NOT_THE_MODEL = ["_*", "checkpoint-*", "*/checkpoint[-_]*", "last-checkpoint", "run-*", ".*", "tmp-*", "*.tmp"]
CARD = "README.md"
REMOVAL = "the removal of "
"""How the names of uploads begin that only delete."""
# Files that the run still writes to: they are read at once instead of being streamed.
LOGS = [CARD, "*.json", "*.jsonl", "*.log", "*.txt", "runs/*"]
# A log larger than this is not pushed along with a checkpoint: it would have to be held in memory.
LARGEST_LOG = 16 * 2**20


@dataclass(frozen=True)
class FileEntry:
    """One file to push: where it lies, its path in the repository, its size in bytes, whether it may still change."""

    local: str
    path: str
    size: int
    volatile: bool = False


@dataclass(frozen=True)
class Upload:
    """One commit to make: `files` from `source`, under `target` (a folder of the repository, "" for its root).

    Files that the repository has under `clear` and that are not among `files` are deleted by the same commit.
    """

    name: str
    message: str
    source: str
    target: str
    files: list[FileEntry] = field(repr=False)
    clear: str | None = None

    def to_request(self) -> dict[str, Any]:
        """The part of a worker's request that says what to commit."""
        files = [vars(entry) for entry in self.files]
        return {"message": self.message, "clear": self.clear, "files": files}


def walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield (relative path with forward slashes, path) for every file below `folder`, sorted."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(place, name)
            yield path.relative_to(folder).as_posix(), path


def matches(path: str, patterns: list[str]) -> bool:
    """Whether the path or the first folder in it matches one of the patterns."""
    return any(fnmatch(path, pattern) or fnmatch(path.split("/")[0], pattern) for pattern in patterns)


def checkpoint_upload(checkpoint: str, output_dir: str, strategy: str, message: str) -> Upload:
    """Say what a committed checkpoint puts into the repository under one of the strategies that push while training.

    ``every_save``: the model at the root, with the card and the logs of the output folder. ``checkpoint`` and
    ``all_checkpoints``: that, and the whole checkpoint under ``last-checkpoint/`` or its own name.
    """
    folder = Path(checkpoint)
    found = [(name, path, path.stat().st_size) for name, path in walk(folder)]
    model = [FileEntry(str(path), name, size) for name, path, size in found if not matches(name, STATE_FILES)]
    if Path(output_dir, CARD).is_file():  # PEFT puts an empty form of a card into every checkpoint
        model = [entry for entry in model if entry.path != CARD]
    files = model + logs_beside({entry.path for entry in model}, Path(output_dir))
    if strategy == "every_save":
        return Upload(folder.name, message, str(folder), "", files)
    target = "last-checkpoint" if strategy == "checkpoint" else folder.name
    files += [FileEntry(str(path), f"{target}/{name}", size) for name, path, size in found]
    return Upload(folder.name, message, str(folder), target, files, clear=target)


def removal(checkpoint: str, output_dir: str, reason: str) -> Upload:
    """Say that the folder of a checkpoint goes from the repository, where it is there."""
    name = Path(checkpoint).name
    return Upload(f"{REMOVAL}{name}", f"Delete {name}: {reason}", output_dir, name, [], clear=name)


def logs_beside(taken: set[str], output_dir: Path) -> list[FileEntry]:
    """List the card and the logs of the output folder whose names the checkpoint does not already fill."""
    if not output_dir.is_dir():
        return []
    top = [path for path in sorted(output_dir.iterdir()) if path.is_file()]
    found = [(path.name, path) for path in top]
    found += [(f"runs/{name}", path) for name, path in walk(output_dir / "runs")]
    wanted = [(name, path) for name, path in found if name not in taken and matches(name, LOGS)]
    entries = []
    for name, path in wanted:
        with contextlib.suppress(FileNotFoundError):  # a log that somebody rotated a moment ago
            entries.append(FileEntry(str(path), name, path.stat().st_size, volatile=True))
    return [entry for entry in entries if entry.size <= LARGEST_LOG and not matches(entry.path, NOT_THE_MODEL)]


def model_upload(output_dir: str, message: str) -> Upload:
    """Say what pushing the final model puts into the repository: the output folder without its checkpoints."""
    folder = Path(output_dir)
    entries = []
    for name, path in walk(folder):
        if matches(name, NOT_THE_MODEL) or any(part.startswith(".") for part in name.split("/")):
            continue
        size = path.stat().st_size
        entries.append(FileEntry(str(path), name, size, volatile=size <= LARGEST_LOG and matches(name, LOGS)))
    return Upload("the model", message, str(folder), "", entries)


def message_of(checkpoint: str, save_strategy: Any, epoch: float | None) -> str:
    """The commit message of a checkpoint, as transformers words it: by step, or by epoch where saves fall on epochs."""
    strategy = getattr(save_strategy, "value", save_strategy)
    if strategy == "epoch" and epoch is not None:
        return f"Training in progress, epoch {int(epoch)}"
    return f"Training in progress, step {Path(checkpoint).name.rsplit('-', 1)[-1]}"
