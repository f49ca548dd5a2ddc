"""`MetricsFileCallback`: every log line as one line of JSON in ``metrics.jsonl``.

A row is ``{"step": …, "time": …, **logs}``: optimizer steps done, seconds since 1970, then what was logged and the
rates of the interval that it closes (samples and tokens per second, share of padding and of waiting for data); in a
search also ``"trial"``. Rows about the run itself carry ``"event"`` (``train_begin``, ``train_end``, ``train_error``,
``batch_size_change``, ``rollback``), so that a reader sees where a run was resumed: the file is only ever appended to,
and steps that a killed run had logged after its last checkpoint appear again below the next ``train_begin``. Of two
rows with the same step and names the last counts.

JSON has no NaN. A value that is not finite is written as ``null``, and the row says under ``"nonfinite"`` what it was:
``{"step": 7, "loss": null, "nonfinite": {"loss": "NaN"}}``. So every line is valid JSON, a column stays a column of
numbers, and nothing that was logged is lost.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import time
import weakref
from typing import Any

from typing_extensions import override

from onward.callbacks.base import TrainerCallback
from onward.state import TrainerState, plain_value

logger = logging.getLogger(__name__)

FILE_NAME = "metrics.jsonl"


class MetricsFileCallback(TrainerCallback):
    """Appends every log line to ``metrics.jsonl`` in ``args.output_dir``, on the first process only.

    Each line is written at once, so that it outlives the process. A file that cannot be written warns once and never
    stops training.
    """

    def __init__(self) -> None:
        # A bare descriptor: one write per line, nothing is held back in this process.
        self._file: int | None = None
        self._closer: weakref.finalize[..., Any] | None = None
        self._path: str | None = None
        self._failed = False
        self._in_run = False

    @override
    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._in_run = True
        self.write(args, state, {"event": "train_begin", "max_steps": state.max_steps})

    @override
    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: Any,
        logs: dict[str, Any] | None = None,
        rates: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self.write(args, state, {**(rates or {}), **(logs or {})})

    def on_batch_size_change(
        self, args: Any, state: TrainerState, control: Any, before: int, now: int, reason: str, **kwargs: Any
    ) -> None:
        """Micro-batches got another size."""
        row = {"event": "batch_size_change", "train_batch_size": now, "previous": before, "reason": reason}
        self.write(args, state, row)

    def on_rollback(
        self, args: Any, state: TrainerState, control: Any, checkpoint: str, reason: str, **kwargs: Any
    ) -> None:
        """The run went back to a checkpoint."""
        self.write(args, state, {"event": "rollback", "checkpoint": checkpoint, "reason": reason})

    @override
    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.write(args, state, {"event": "train_end"})
        self._in_run = False
        self.close()

    @override
    def on_train_error(
        self, args: Any, state: TrainerState, control: Any, error: BaseException | None = None, **kwargs: Any
    ) -> None:
        self.write(args, state, {"event": "train_error", "error": f"{type(error).__name__}: {error}"})
        self._in_run = False
        self.close()

    def write(self, args: Any, state: TrainerState, values: dict[str, Any]) -> None:
        """Append one row with `values`, whose keys win over ``step``, ``time`` and ``trial``."""
        if not state.is_world_process_zero:
            return
        row: dict[str, Any] = {"step": state.global_step, "time": round(time.time(), 3)}
        if state.is_hyper_param_search:
            row["trial"] = state.trial_name
        line = to_line({**row, **values})
        try:
            _write_whole(self._open(os.path.join(args.output_dir, FILE_NAME)), line)
            self._failed = False
        except OSError as error:
            if not self._failed:
                logger.warning("Cannot write metrics to %s (%s); training goes on without.", self._path, error)
            self._failed = True
            self.close()

    def close(self) -> None:
        """Close the file; the next row opens it again."""
        if self._closer is not None:
            self._closer()
        self._file = self._closer = None

    def _open(self, path: str) -> int:
        if self._file is not None and path == self._path:
            return self._file
        self.close()
        self._path = path
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        torn = _ends_in_mid_line(path)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        # Closed with the callback at the latest: a run may end without any event that says so.
        self._closer = weakref.finalize(self, _close_quietly, self._file)
        if torn:
            # The process that wrote it was killed within a line; without this our first row would be lost with it.
            _write_whole(self._file, "\n")
        return self._file


def _write_whole(file: int, line: str) -> None:
    data = line.encode()
    if os.write(file, data) != len(data):
        raise OSError(errno.ENOSPC, "only a part of the line could be written")


def _close_quietly(file: int) -> None:
    with contextlib.suppress(OSError):  # a full disk fails again on close; it was reported when the row was written
        os.close(file)


def to_line(row: dict[str, Any]) -> str:
    """`row` as one line of strict JSON, with its newline."""
    nonfinite: dict[str, str] = {}
    clean = {str(key): _strict(value, str(key), nonfinite) for key, value in row.items()}
    if nonfinite:
        clean["nonfinite"] = nonfinite
    return json.dumps(clean, allow_nan=False) + "\n"


def _strict(value: Any, name: str, nonfinite: dict[str, str]) -> Any:
    """`value` in what strict JSON knows; what is not finite becomes None and is named in `nonfinite`."""
    if isinstance(value, dict):
        return {str(key): _strict(part, f"{name}.{key}", nonfinite) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(part, f"{name}.{index}", nonfinite) for index, part in enumerate(value)]
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        nonfinite[name] = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return None
    try:
        return _strict(plain_value(value), name, nonfinite)
    except TypeError:
        return str(value)


def _ends_in_mid_line(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:
        return False  # no such file, or an empty one
