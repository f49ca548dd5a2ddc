"""What can be said about a checkpoint that has no manifest, such as one that transformers wrote.

Without hashes only the structure can be checked: the weights are all there and as long as their headers say, archives
have their directory, JSON parses. A flipped bit inside a tensor is not seen.
"""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

from onward.checkpoint import layout

_ARCHIVES = (layout.OPTIMIZER, layout.SCHEDULER, layout.SCALER)


def has_weights(folder: Path) -> bool:
    """True when the folder holds a model or an adapter in any layout that can be loaded."""
    single = (layout.WEIGHTS, layout.WEIGHTS_INDEX, layout.WEIGHTS_BIN, layout.WEIGHTS_BIN_INDEX)
    if any((folder / name).is_file() for name in (*single, layout.ADAPTER, layout.ADAPTER_BIN)):
        return True
    return bool(adapter_folders(folder)) or bool(_sharded_states(folder))


def adapter_folders(folder: Path) -> list[Path]:
    """Return the sub-folders that hold a PEFT adapter of their own."""
    if not folder.is_dir():
        return []
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and any((path / name).is_file() for name in (layout.ADAPTER, layout.ADAPTER_BIN)):
            found.append(path)
    return found


def check(folder: Path) -> list[str]:
    """Return what is structurally wrong with a checkpoint, one line per file; an empty list means nothing seen."""
    problems = []
    if not has_weights(folder):
        problems.append(f"no weights ({layout.WEIGHTS}, an index of shards, {layout.WEIGHTS_BIN} or an adapter)")
    for path in sorted(folder.rglob("*.safetensors")):
        problems += _check_safetensors(path, folder)
    for index in (layout.WEIGHTS_INDEX, layout.WEIGHTS_BIN_INDEX):
        problems += _check_index(folder / index)
    archives = [folder / name for name in _ARCHIVES]
    for path in (*archives, *sorted(folder.glob("pytorch_model*.bin")), *sorted(folder.glob("rng_state*.pth"))):
        if path.exists() and not zipfile.is_zipfile(path):
            problems.append(f"{path.name} is empty or cut short (not a torch archive)")
    return problems + _check_state(folder)


def _check_state(folder: Path) -> list[str]:
    path = folder / layout.TRAINER_STATE
    if not path.exists():
        return [f"{path.name} is missing"]
    try:
        step = json.loads(path.read_text(encoding="utf-8"))["global_step"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        return [f"{path.name} is not readable ({type(error).__name__}: {error})"]
    return [] if isinstance(step, int) else [f"{path.name} has global_step {step!r}, expected a whole number"]


def _check_safetensors(path: Path, folder: Path) -> list[str]:
    name = path.relative_to(folder).as_posix()
    try:
        size = path.stat().st_size
        with open(path, "rb") as handle:
            start = handle.read(8)
            if len(start) < 8:
                return [f"{name} has {size} bytes, too short for a safetensors file"]
            (length,) = struct.unpack("<Q", start)
            if length > size:
                return [f"{name} is cut short or altered (its header is longer than the file)"]
            header = json.loads(handle.read(length))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        return [f"{name} has an unreadable header ({type(error).__name__}: {error})"]
    return [] if size == expected else [f"{name} has {size} bytes, expected {expected}"]


def _check_index(path: Path) -> list[str]:
    if not path.exists():
        return []
    try:
        shards = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        return [f"{path.name} is not readable ({type(error).__name__}: {error})"]
    missing = (shard for shard in sorted(shards) if not (path.parent / shard).is_file())
    return [f"{shard} is missing (named in {path.name})" for shard in missing]


def _sharded_states(folder: Path) -> list[Path]:
    """Return FSDP's sharded model folders (`pytorch_model_fsdp_0`), which `torch.distributed.checkpoint` reads."""
    return list(folder.glob("pytorch_model_fsdp*"))
