"""Checkpoints: written out of sight and committed in one rename, verified by hash on the way back."""

from onward.checkpoint.pins import pin
from onward.checkpoint.record import RunRecord, read_record
from onward.checkpoint.store import get_last_checkpoint, list_checkpoints, problems, resolve_checkpoint

__all__ = [
    "RunRecord",
    "get_last_checkpoint",
    "list_checkpoints",
    "pin",
    "problems",
    "read_record",
    "resolve_checkpoint",
]
