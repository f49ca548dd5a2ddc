"""Checkpoint folders as a run would have committed them, small but with every kind of file."""

from __future__ import annotations

import json
import os
from pathlib import Path

from onward.hub.place import Patience

# Tries again at once: what the server asks for is still honoured.
HASTY = Patience(attempts=3, first_wait=0.05, longest_wait=0.1, stall=5.0)


def checkpoint(output_dir: Path, step: int, weights: int = 1000) -> Path:
    """A folder ``checkpoint-<step>`` with `weights` random bytes as weights."""
    folder = output_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(os.urandom(weights))
    (folder / "config.json").write_text(json.dumps({"step": step}))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (folder / name).write_bytes(f"{name} of step {step}".encode())
    for name in ("trainer_state.json", "onward_state.json", "onward_manifest.json"):
        (folder / name).write_text(json.dumps({"global_step": step}))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Relative path -> content of every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def below(files: dict[str, bytes], folder: str) -> dict[str, bytes]:
    """The files of a repository below one of its folders, with their paths in it."""
    return {path.removeprefix(f"{folder}/"): data for path, data in files.items() if path.startswith(f"{folder}/")}
