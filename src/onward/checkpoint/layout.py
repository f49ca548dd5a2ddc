"""Names of files and folders in a run: transformers' for what it reads, our own for the rest."""

from __future__ import annotations

import re
from pathlib import Path

PREFIX = "checkpoint"

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
WEIGHTS_BIN = "pytorch_model.bin"
WEIGHTS_BIN_INDEX = "pytorch_model.bin.index.json"
ADAPTER = "adapter_model.safetensors"
ADAPTER_BIN = "adapter_model.bin"
OPTIMIZER = "optimizer.pt"
SCHEDULER = "scheduler.pt"
SCALER = "scaler.pt"
TRAINER_STATE = "trainer_state.json"
TRAINING_ARGS = "training_args.bin"

RUN_RECORD = "onward_state.json"
"""What a resume needs and transformers' files have no place for: cursor, meters, run id, callback states."""
MANIFEST = "onward_manifest.json"
"""Size and hash of every file; written last. A folder that holds a run record but no manifest is not whole."""

STAGING_PREFIX = ".onward-staging-"
"""Folders of this name, beside the checkpoints, hold what is being written or deleted: never a checkpoint."""
PINS = ".onward-pins"

_STEP = re.compile(rf"^{PREFIX}-(\d+)$")


def name_of(step: int) -> str:
    """Return the folder name of the checkpoint of an optimizer step."""
    return f"{PREFIX}-{step}"


def step_of(path: str | Path) -> int | None:
    """Return the step in a checkpoint folder's name, or None when it is not named like one."""
    match = _STEP.match(Path(path).name)
    return int(match.group(1)) if match else None


def rng_name(rank: int, world_size: int) -> str:
    """Return the name of a rank's file of random-number states."""
    return "rng_state.pth" if world_size <= 1 else f"rng_state_{rank}.pth"


def shard_name(number: int, total: int) -> str:
    """Return the name of shard `number` (from 1) of `total`."""
    return f"model-{number:05d}-of-{total:05d}.safetensors"
