"""The manifest of a checkpoint: which files it has, how long each is and what its bytes hash to.

It is written last and names everything before it, so a checkpoint with a manifest that agrees is whole. Files that
others add later (a model card, an evaluation) are not in it and are no damage.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onward.checkpoint import layout
from onward.checkpoint.digest import ALGORITHMS, CURRENT, FileRecord, digest_file
from onward.errors import BrokenCheckpoint

FORMAT = 2
_NO_SUCH_CALL = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF})


@dataclass(frozen=True)
class Manifest:
    """What a whole checkpoint consists of, and which run made it at which optimizer step."""

    run: str
    step: int
    saved_at: float
    """Seconds since the epoch, by the clock of the machine that wrote it."""
    files: dict[str, FileRecord] = field(default_factory=dict)
    algorithm: str = CURRENT
    """Of the files' digests, by its name in `digest.ALGORITHMS`."""

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(record.size for record in self.files.values())


def seal(
    folder: Path, run: str, step: int, saved_after: float = 0.0, flushed: Mapping[Path, FileRecord] | None = None
) -> Manifest:
    """Flush every file under `folder` to disk, then write and flush the manifest that names them all.

    Args:
        folder: what shall be whole.
        run: id of the run.
        step: optimizer step.
        saved_after: when the newest checkpoint beside it was saved. The clock may have been set back since then, and
            the run that saved last must stay the newest.
        flushed: files that are on disk already, with what was written to them; these are not read again.

    Raises:
        OSError: the disk refused, or one of `flushed` is not as long as what was written.
    """
    files: dict[str, FileRecord] = {}
    folders = {folder}
    for path in _files_under(folder):
        record = (flushed or {}).get(path)
        if record is None:
            record = digest_file(path, flush=True)
        elif (size := path.stat().st_size) != record.size:
            raise OSError(errno.EIO, f"has {size} bytes after {record.size} were written", os.fspath(path))
        files[path.relative_to(folder).as_posix()] = record
        folders.update(parent for parent in path.parents if folder in parent.parents)
    manifest = Manifest(run=run, step=step, saved_at=max(time.time(), saved_after + 0.001), files=files)
    write_flushed(folder / layout.MANIFEST, _encode(manifest))
    for each in sorted(folders, reverse=True):
        flush_folder(each)
    return manifest


def read(folder: Path) -> Manifest | None:
    """Return the manifest of a checkpoint, or None when it has none.

    Raises:
        BrokenCheckpoint: it has one that cannot be trusted (not JSON, altered, or of a newer format).
    """
    try:
        text = (folder / layout.MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BrokenCheckpoint(f"{folder}: {layout.MANIFEST} cannot be read ({error})") from error
    try:
        return _decode(text)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenCheckpoint(f"{folder}: {layout.MANIFEST} {_describe(text, error)}") from error


def compare(folder: Path, manifest: Manifest, deep: bool = True) -> list[str]:
    """Return what differs between a folder and its manifest, one line per file; an empty list means whole.

    With `deep=False` only names and sizes are compared, which reads no file.
    """
    problems = []
    for name, record in manifest.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != record.size:
                problems.append(f"{name} has {size} bytes, expected {record.size}")
            elif deep and digest_file(path, manifest.algorithm).digest != record.digest:
                problems.append(f"{name} has the right size but its content was altered (hash differs)")
        except FileNotFoundError:
            problems.append(f"{name} is missing")
        except OSError as error:
            problems.append(f"{name} cannot be read ({error})")
    return problems


def flush_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a new or renamed name in it survives a power cut.

    Some network and user-space file systems refuse that for folders; no checkpoint could be saved there otherwise.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SUCH_CALL:
            raise
    finally:
        os.close(descriptor)


def write_flushed(path: Path, data: bytes) -> None:
    """Write a small file and flush it to disk."""
    with open(path, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def _files_under(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / layout.MANIFEST:
            yield path


def _encode(manifest: Manifest) -> bytes:
    body: dict[str, Any] = {
        "format": FORMAT,
        "run": manifest.run,
        "step": manifest.step,
        "saved_at": manifest.saved_at,
        "algorithm": manifest.algorithm,
        "files": {name: {"size": r.size, "digest": r.digest} for name, r in manifest.files.items()},
    }
    # A flipped bit in the step or the run id would send rotation and resume astray, so the manifest vouches for itself.
    body["self"] = _digest(body)
    return (json.dumps(body, indent=1) + "\n").encode()


def _decode(text: bytes) -> Manifest:
    body = json.loads(text)
    claimed = body.pop("self")
    if body["format"] not in (1, FORMAT):
        raise ValueError(f"has format {body['format']!r}, this version of onward reads formats 1 to {FORMAT}")
    if claimed != _digest(body):
        raise ValueError("was altered (its own hash differs)")
    algorithm, key = ("sha256", "sha256") if body["format"] == 1 else (str(body["algorithm"]), "digest")
    if algorithm not in ALGORITHMS:
        raise ValueError(f"has digests by {algorithm}, this version of onward knows {', '.join(ALGORITHMS)}")
    files = {str(name): FileRecord(int(r["size"]), str(r[key])) for name, r in body["files"].items()}
    return Manifest(str(body["run"]), int(body["step"]), float(body["saved_at"]), files, algorithm)


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _describe(text: bytes, error: Exception) -> str:
    if not text:
        return "is empty"
    if isinstance(error, ValueError) and str(error).startswith(("has ", "was ")):
        return str(error)
    return f"is not readable as a manifest ({type(error).__name__}: {error})"
