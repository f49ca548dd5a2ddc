"""Staging folders: a checkpoint is written out of sight, then appears under its name in one rename.

    run/.onward-staging-<owner>-<random>/checkpoint-20/…    being written, or being deleted
    run/checkpoint-20/…                                     committed

The inner folder already has its final name, for hooks of subclasses that parse it. The owner is part of the outer
folder's name, so there is no moment in which a staging folder has none.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onward.checkpoint import layout, manifest
from onward.checkpoint.digest import FileRecord
from onward.checkpoint.owner import Owner, current
from onward.errors import BrokenCheckpoint

_REPLACED = "replaced-"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@dataclass(frozen=True)
class Staging:
    """A checkpoint in the making: write into `path`, then `commit` or `discard`."""

    outer: Path
    path: Path
    target: Path

    @classmethod
    def create(cls, target: Path) -> Staging:
        """Make a staging folder beside `target`; raises OSError where that cannot be."""
        target.parent.mkdir(parents=True, exist_ok=True)
        outer = _new_outer(target.parent)
        try:
            return cls.at(outer / target.name, target)
        except OSError:
            shutil.rmtree(outer, ignore_errors=True)
            raise

    @classmethod
    def at(cls, path: Path, target: Path) -> Staging:
        """Join a staging folder by the path that another rank made up."""
        path.mkdir(parents=True, exist_ok=True)
        return cls(path.parent, path, target)

    def commit(self, run: str, step: int, flushed: Mapping[Path, FileRecord] | None = None) -> manifest.Manifest:
        """Flush and seal what was written, then let it appear as `target`, replacing an older one of that name.

        `flushed`: the files that are on disk and hashed already (`sink.Sinks.records`).
        """
        sealed = manifest.seal(self.path, run, step, _latest_save(self.target.parent), flushed)
        _move_into_place(self.path, self.target, self.outer)
        manifest.flush_folder(self.target.parent)
        self.discard()
        return sealed

    def discard(self) -> None:
        """Delete what is left in the staging folder."""
        shutil.rmtree(self.outer, ignore_errors=True)


@dataclass(frozen=True)
class Stale:
    """A staging folder that is not this process's: `gone` tells whether its owner certainly no longer runs."""

    path: Path
    gone: bool
    size: int


def find_staging(folder: Path) -> list[Stale]:
    """Return the staging folders in a run folder that this process does not own."""
    found = []
    me = current()
    for path in sorted(folder.glob(f"{layout.STAGING_PREFIX}*")) if folder.is_dir() else []:
        owner = Owner.from_token(path.name.removeprefix(layout.STAGING_PREFIX).rsplit("-", 1)[0])
        if owner != me:
            gone = owner is not None and owner.is_gone()
            found.append(Stale(path, gone, _size_of(path)))
    return found


def sweep(folder: Path) -> list[Path]:
    """Delete the staging folders whose owner is certainly gone, and return them."""
    swept = []
    for stale in find_staging(folder):
        if stale.gone:
            remove_staging(stale.path)
            swept.append(stale.path)
    return swept


def remove_staging(outer: Path) -> None:
    """Delete one staging folder, first putting back a committed checkpoint that was moved aside and not replaced."""
    for aside in outer.glob(f"{_REPLACED}*"):
        target = outer.parent / aside.name.removeprefix(_REPLACED)
        if not target.exists():
            os.rename(aside, target)
    shutil.rmtree(outer, ignore_errors=True)


def remove_checkpoint(path: Path) -> None:
    """Delete a checkpoint: out of sight in one rename first, so that nobody ever meets half of it under its name."""
    outer = _new_outer(path.parent)
    try:
        os.rename(path, outer / path.name)
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def _latest_save(folder: Path) -> float:
    latest = 0.0
    for path in folder.glob(f"{layout.PREFIX}-*/{layout.MANIFEST}"):
        with contextlib.suppress(BrokenCheckpoint):
            latest = max(latest, getattr(manifest.read(path.parent), "saved_at", 0.0))
    return latest


def _new_outer(folder: Path) -> Path:
    outer = folder / f"{layout.STAGING_PREFIX}{current().token()}-{uuid.uuid4().hex[:8]}"
    outer.mkdir()
    return outer


def _move_into_place(source: Path, target: Path, outer: Path) -> None:
    if not target.exists():
        os.rename(source, target)
        return
    if _exchange(source, target):
        return
    aside = outer / f"{_REPLACED}{target.name}"
    os.rename(target, aside)
    try:
        os.rename(source, target)
    except OSError:
        os.rename(aside, target)
        raise


def _exchange(source: Path, target: Path) -> bool:
    """Swap two folders in one step where kernel and file system can, so that no crash finds neither."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    swapped: int = rename(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE)
    return swapped == 0


def _size_of(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.lstat().st_size
    return total
