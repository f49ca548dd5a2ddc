"""TensorBoard, written by ourselves: works with ``tensorboard`` or ``tensorboardX`` alone, without transformers."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import time
from typing import Any

from typing_extensions import override

from onward.callbacks.base import TrainerCallback
from onward.errors import MissingDependency
from onward.state import TrainerState

logger = logging.getLogger(__name__)

_SECTIONS = ("eval", "test")


class TensorBoardCallback(TrainerCallback):
    """Writes every log line, the arguments and the model's configuration for TensorBoard, on the first process only.

    Args:
        tb_writer: a ``SummaryWriter`` to use instead of one of our own.

    Files go to the folder in ``TENSORBOARD_LOGGING_DIR``, else to ``<output_dir>/runs/<date>_<host>``; a trial of a
    search gets a folder of its own name within. Where a run is resumed into the same folder, TensorBoard is told to
    forget what the earlier process wrote beyond the step that it resumes from.
    """

    def __init__(self, tb_writer: Any = None) -> None:
        self._writer_class = _summary_writer()
        self.tb_writer = tb_writer
        chosen = os.environ.get("TENSORBOARD_LOGGING_DIR")
        self.logging_dir = os.path.expanduser(chosen) if chosen else None

    @override
    def on_train_begin(self, args: Any, state: TrainerState, control: Any, model: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        if state.is_hyper_param_search and state.trial_name is not None:
            self.logging_dir = os.path.join(args.output_dir, _default_folder(), state.trial_name)
        writer = self._writer(args, state)
        writer.add_text("args", args.to_json_string())
        config: Any = getattr(model, "config", None)
        if callable(getattr(config, "to_json_string", None)):
            writer.add_text("model_config", config.to_json_string())

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
        if not state.is_world_process_zero:
            return
        writer = self._writer(args, state)
        for name, value in {**(rates or {}), **(logs or {})}.items():
            number = _as_number(value)
            if number is not None:
                writer.add_scalar(tag(name), number, state.global_step)
            elif isinstance(value, str):
                writer.add_text(tag(name), value, state.global_step)
            else:
                logger.warning("TensorBoard cannot show %s=%r; log a number or a string.", name, value)
        writer.flush()

    @override
    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.close()

    @override
    def on_train_error(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close the writer; the next log line opens another."""
        if self.tb_writer is not None:
            self.tb_writer.close()
            self.tb_writer = None

    def _writer(self, args: Any, state: TrainerState) -> Any:
        if self.tb_writer is None:
            if self.logging_dir is None:
                self.logging_dir = os.path.join(args.output_dir, _default_folder())
            resumed_after = state.global_step + 1 if state.global_step > 0 else None
            self.tb_writer = self._writer_class(log_dir=self.logging_dir, purge_step=resumed_after)
        return self.tb_writer


def tag(name: str) -> str:
    """TensorBoard's name of a logged value: ``eval_loss`` is ``eval/loss``, ``loss`` is ``train/loss``."""
    section, _, rest = name.partition("_")
    return f"{section}/{rest}" if section in _SECTIONS and rest else f"train/{name}"


def _as_number(value: Any) -> float | None:
    if isinstance(value, (int, float)):
        return value
    if callable(getattr(value, "item", None)) and getattr(value, "size", None) is not None:
        size = value.numel() if hasattr(value, "numel") else value.size
        return value.item() if size == 1 else None
    return None


def _default_folder() -> str:
    return os.path.join("runs", f"{time.strftime('%b%d_%H-%M-%S')}_{socket.gethostname()}")


def _summary_writer() -> Any:
    for module in ("torch.utils.tensorboard", "tensorboardX"):
        try:
            return importlib.import_module(module).SummaryWriter
        except ImportError:
            continue
    raise MissingDependency(
        "report_to='tensorboard' needs the package tensorboard, which is not installed: "
        "pip install 'onward[tensorboard]'."
    )
