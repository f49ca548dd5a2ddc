"""The checkpoints of a run folder: which there are, which is the newest whole one, which may go."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from onward.checkpoint import layout, manifest, pins, staging, structure
from onward.errors import BrokenCheckpoint, NoCheckpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder and what is recorded about it (`run` is None where there is no readable manifest)."""

    path: Path
    step: int
    run: str | None = None
    saved_at: float | None = None


def list_checkpoints(folder: str | Path) -> list[Checkpoint]:
    """Return the committed checkpoints of a run folder, in the order in which a resume prefers them (best last).

    That order is by run, the run that saved last coming last, then by step. Checkpoints that record no run (written by
    transformers, or with a broken manifest) are placed by their step among those of the latest run. With one run in
    the folder this is the order of steps, as in transformers.
    """
    root = Path(folder)
    found = [_describe(path) for path in root.iterdir() if layout.step_of(path) is not None and path.is_dir()]
    latest: dict[str, float] = {}
    for each in found:
        if each.run is not None and each.saved_at is not None:
            latest[each.run] = max(each.saved_at, latest.get(each.run, each.saved_at))
    newest = max(latest.values(), default=0.0)

    def order(each: Checkpoint) -> tuple[float, int]:
        return (newest if each.run is None else latest[each.run], each.step)

    return sorted(found, key=order)


def problems(path: str | Path, deep: bool = True) -> list[str]:
    """Return what is wrong with a checkpoint, one line per file; an empty list means whole.

    `deep=True` hashes every file (at the speed of the disk); `deep=False` compares names and sizes only.
    """
    folder = Path(path)
    try:
        recorded = manifest.read(folder)
    except BrokenCheckpoint as error:
        return [str(error).removeprefix(f"{folder}: ")]
    if recorded is not None:
        return manifest.compare(folder, recorded, deep=deep)
    if (folder / layout.RUN_RECORD).exists():
        return [f"{layout.MANIFEST} is missing"]
    return structure.check(folder)


def newest_whole(folder: str | Path) -> tuple[Path | None, dict[Path, list[str]]]:
    """Return the newest whole checkpoint of a run folder, and the newer ones that were skipped with what is wrong."""
    skipped: dict[Path, list[str]] = {}
    for each in reversed(list_checkpoints(folder)):
        wrong = problems(each.path)
        if not wrong:
            return each.path, skipped
        skipped[each.path] = wrong
    return None, skipped


def get_last_checkpoint(folder: str | Path) -> str | None:
    """Return the newest whole checkpoint of a run folder, or None where there is none.

    Like transformers' function of this name, except that a checkpoint with a missing, short or altered file is skipped,
    with a warning that names it, and that a folder which is not there (yet: another process may be about to make it)
    holds none.
    """
    if not Path(folder).is_dir():
        return None
    path, skipped = newest_whole(folder)
    _warn_of(skipped)
    return None if path is None else str(path)


def resolve_checkpoint(
    resume_from_checkpoint: str | os.PathLike[str] | bool | None, output_dir: str | Path
) -> Path | None:
    """Return the checkpoint that `train(resume_from_checkpoint=…)` means, verified whole; None to start afresh.

    Raises:
        NoCheckpoint: True with no checkpoint in `output_dir`, or a path that is no checkpoint.
        BrokenCheckpoint: the named one is not whole, or True and none of them is.
    """
    if resume_from_checkpoint is None or resume_from_checkpoint is False:
        return None
    if resume_from_checkpoint is True:
        return _resolve_newest(Path(output_dir))
    return _resolve_named(Path(resume_from_checkpoint))


def rotate(folder: Path, limit: int | None, run: str, keep: Path, best: Path | None = None) -> list[Path]:
    """Delete old checkpoints until `limit` are left, and return the deleted.

    Oldest means: first those of other runs than `run`, then by recorded step. Never deleted are `keep` (the one just
    committed, hence the last whole one), `best`, and whatever is pinned. None or a limit below 1 deletes nothing.
    """
    if limit is None or limit <= 0:
        return []
    present = list_checkpoints(folder)
    present.sort(key=lambda each: each.run == run)  # stable: within a run the order of steps remains
    spared = {os.path.realpath(path) for path in (keep, best) if path is not None}
    surplus = len(present) - max(limit, len(spared))
    deleted: list[Path] = []
    for each in present:
        if len(deleted) >= surplus:
            break
        if os.path.realpath(each.path) in spared or pins.is_pinned(each.path):
            continue
        staging.remove_checkpoint(each.path)
        deleted.append(each.path)
    return deleted


def _describe(path: Path) -> Checkpoint:
    step = layout.step_of(path)
    assert step is not None
    try:
        recorded = manifest.read(path)
    except BrokenCheckpoint:
        recorded = None
    if recorded is None:
        return Checkpoint(path, step)
    return Checkpoint(path, recorded.step, recorded.run, recorded.saved_at)


def _resolve_newest(folder: Path) -> Path:
    path, skipped = newest_whole(folder) if folder.is_dir() else (None, {})
    if path is not None:
        _warn_of(skipped)
        return path
    if skipped:
        raise BrokenCheckpoint(
            f"resume_from_checkpoint=True: none of the {len(skipped)} checkpoints in {folder} is whole.\n"
            + "\n".join(_tell(each, wrong) for each, wrong in skipped.items())
            + "\nStart afresh with resume_from_checkpoint=False."
        )
    raise NoCheckpoint(
        f"resume_from_checkpoint=True, but there is no valid checkpoint in the output directory ({folder}): expected a "
        f"folder named {layout.name_of(0)[:-1]}<step> in it. Pass its path, or leave the option out to start afresh."
    )


def _resolve_named(path: Path) -> Path:
    if not path.is_dir():
        raise NoCheckpoint(f"Can't find a valid checkpoint at {path}: no such folder. Check resume_from_checkpoint.")
    if not structure.has_weights(path) and not (path / layout.MANIFEST).exists():
        inside = sorted(each.name for each in path.iterdir() if layout.step_of(each) is not None)
        hint = f" It holds {', '.join(inside)}: name one of these." if inside else ""
        raise NoCheckpoint(f"Can't find a valid checkpoint at {path}: it holds no weights.{hint}")
    if wrong := problems(path):
        raise BrokenCheckpoint(
            f"{_tell(path, wrong)}\nName another, or pass resume_from_checkpoint=True for the newest whole one."
        )
    return path


def recorded_step(path: Path) -> int | None:
    """Return the optimizer step that a checkpoint records, or None where it can't be read."""
    try:
        step = json.loads((path / layout.TRAINER_STATE).read_text(encoding="utf-8"))["global_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return layout.step_of(path)
    return step if isinstance(step, int) else layout.step_of(path)


def _tell(path: Path, wrong: list[str]) -> str:
    return f"The checkpoint {path} is not whole: {'; '.join(wrong)}."


def _warn_of(skipped: dict[Path, list[str]]) -> None:
    for path, wrong in skipped.items():
        logger.warning("%s It is skipped.", _tell(path, wrong))
