"""`onward_state.json`: what a resume needs and transformers' files have no place for."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onward.checkpoint import layout, manifest
from onward.errors import BrokenCheckpoint

FORMAT = 1


@dataclass(frozen=True)
class RunRecord:
    """The part of a run's state that is ours. All values are JSON-able."""

    run: str
    """Id of the run; a resumed run keeps it."""
    step: int
    """Optimizer steps done."""
    world_size: int = 1
    """Processes that wrote it."""
    cursor: dict[str, Any] | None = None
    """`Cursor.to_dict()`: where in the data the run stands."""
    ranks: list[dict[str, Any]] = field(default_factory=list)
    """For each rank its ``meters`` (`Meters.state_dict()`) and ``extra`` (what the loop hands in beside)."""
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write the record into a checkpoint that is being made."""
        text = json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"
        manifest.write_flushed(folder / layout.RUN_RECORD, text.encode())

    def of_rank(self, rank: int) -> dict[str, Any]:
        """Return what a rank recorded; rank 0's where there were fewer processes then; {} where there is nothing."""
        if not self.ranks:
            return {}
        return self.ranks[rank] if rank < len(self.ranks) else self.ranks[0]


def read_record(folder: str | Path) -> RunRecord | None:
    """Return the record of a checkpoint, or None when it has none (transformers wrote it).

    Raises:
        BrokenCheckpoint: it cannot be read.
    """
    path = Path(folder) / layout.RUN_RECORD
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        known = {name: body[name] for name in RunRecord.__dataclass_fields__ if name in body}
        record = RunRecord(**known)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, OSError) as error:
        raise BrokenCheckpoint(f"{folder}: {path.name} cannot be read ({type(error).__name__}: {error})") from error
    if record.format != FORMAT:
        raise BrokenCheckpoint(f"{folder}: {path.name} has format {record.format}, expected {FORMAT}: update onward")
    return record


def new_run_id() -> str:
    """Return a fresh id for a run."""
    return uuid.uuid4().hex[:16]
