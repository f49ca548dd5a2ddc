"""Logs, metrics and callbacks: what a run says about itself."""

from __future__ import annotations

import json
import logging
import os
import sys
import weakref
from typing import TYPE_CHECKING, Any

import torch

from onward import engine
from onward.arguments import option
from onward.callbacks import DefaultFlowCallback, MetricsFileCallback, PrinterCallback, ProgressCallback
from onward.hooks.base import TrainerBase
from onward.meters import speed_metrics
from onward.state import write_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onward.arguments import TrainingArguments

logger = logging.getLogger(__name__)

MEGABYTE = 2**20


def set_log_level(args: TrainingArguments) -> None:
    """Let onward, and transformers where it is loaded, say as much as ``log_level`` asks for."""
    ours, level = logging.getLogger("onward"), args.get_process_log_level()
    if level != ours.getEffectiveLevel():  # or "passive" would pin the level against a later basicConfig
        ours.setLevel(level)
    if level < logging.WARNING and not ours.hasHandlers():
        # Python alone shows warnings and worse. Once the script has handlers of its own, they do.
        handler = logging.StreamHandler()
        handler.addFilter(lambda _: not logging.root.handlers)
        ours.addHandler(handler)
    asked = args.log_level if args.should_log else args.log_level_replica
    if asked != "passive" and "transformers" in sys.modules:
        logging.getLogger("transformers").setLevel(level)


class ReportingHooks(TrainerBase):
    """The verbs log, save_metrics, save_state, add_callback … and the count of floating point operations."""

    _interval_rates: dict[str, float] | None = None
    """Rates of the interval that the next log line closes; callbacks get them as ``rates``."""
    _watchers: list[Any] | None = None
    """Callbacks of the trainer's own, made on first use."""
    _parameter_count: tuple[weakref.ref[Any], weakref.ref[Any], int] | None = None
    """The model, its wrapper, and how many parameters it had without embeddings."""

    # -- logs -----------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add where the run stands to `logs`, keep them in ``state.log_history`` and hand them to the callbacks.

        Args:
            logs: values by name; ``epoch`` and, where the arguments ask for it, token counts are added to it.
            start_time: `time.time()` at the beginning of training, for the speed in tokens.
        """
        if self.state.epoch is not None:
            logs["epoch"] = self.state.epoch
        if self.args.include_num_input_tokens_seen != "no":
            seen = self.state.num_input_tokens_seen
            logs["num_input_tokens_seen"] = seen
            if start_time is not None:
                logs.update(speed_metrics("train", start_time, num_tokens=seen - self._initial_num_input_tokens_seen))
        self.state.log_history.append({**logs, "step": self.state.global_step})
        rates, self._interval_rates = self._interval_rates, None
        extra = {} if rates is None else {"rates": rates}
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs, **extra)

    @staticmethod
    def metrics_format(metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Metrics in units that people read: hours and minutes, megabytes, gigaflops, four decimals."""
        return {name: _readable(name, value) for name, value in metrics.items()}

    def log_metrics(self, split: str, metrics: Mapping[str, Any]) -> None:
        """Print `metrics` as a table, on the first process.

        Args:
            split: what they are about (``train``, ``eval``, ``test`` …), for the heading.
            metrics: what `train`, `evaluate` or `predict` returned.
        """
        if not self.is_world_process_zero():
            return
        print(f"***** {split} metrics *****")
        shown = self.metrics_format(metrics)
        names = max((len(name) for name in shown), default=0)
        values = max((len(str(value)) for value in shown.values()), default=0)
        for name in sorted(shown):
            print(f"  {name:<{names}} = {shown[name]!s:>{values}}")

    def save_metrics(self, split: str, metrics: Mapping[str, Any], combined: bool = True) -> None:
        """Write `metrics` to ``{split}_results.json`` in the output folder, on the first process.

        Args:
            split: what they are about (``train``, ``eval``, ``test`` …).
            metrics: raw numbers; JSON as Python writes it, so ``NaN`` stays ``NaN``.
            combined: also merge them into ``all_results.json``.
        """
        if not self.is_world_process_zero():
            return
        folder = str(self.args.output_dir)
        os.makedirs(folder, exist_ok=True)
        write_json(dict(metrics), os.path.join(folder, f"{split}_results.json"), indent=4)
        if combined:
            path = os.path.join(folder, "all_results.json")
            write_json({**_read_json(path), **metrics}, path, indent=4)

    def save_state(self) -> None:
        """Write ``trainer_state.json`` into the output folder, on the first process."""
        if self.is_world_process_zero():
            folder = str(self.args.output_dir)
            os.makedirs(folder, exist_ok=True)
            self.state.save_to_json(os.path.join(folder, "trainer_state.json"))

    # -- callbacks ------------------------------------------------------------------------------------------------

    def add_callback(self, callback: Any) -> None:
        """Add a callback, or an instance of a callback class, behind the others."""
        self.callback_handler.add_callback(callback)

    def pop_callback(self, callback: Any) -> Any:
        """Remove and return a callback, or the first one of a class; None where there is none."""
        return self.callback_handler.pop_callback(callback)

    def remove_callback(self, callback: Any) -> None:
        """Remove a callback, or the first one of a class if there is one."""
        self.callback_handler.remove_callback(callback)

    def _default_callbacks(self) -> list[Any]:
        """The callbacks that come before the user's."""
        return [DefaultFlowCallback(), *self._report_callbacks()]

    def _report_callbacks(self) -> list[Any]:
        """The callbacks that write logs where ``report_to`` says."""
        from onward.sinks import report_callbacks

        return report_callbacks(self.args.report_to)

    def _attend(self) -> None:
        """Let the callbacks that are the trainer's own business hear of everything: ``metrics.jsonl``.

        TRL for one puts a handler of transformers in the place of ours, which knows no watchers.
        """
        if self._watchers is None:
            self._watchers = [MetricsFileCallback()] if option(self.args, "metrics_file") else []
        handler: Any = self.callback_handler
        if hasattr(handler, "watchers"):
            handler.watchers = self._watchers
        else:
            handler.callbacks += [watcher for watcher in self._watchers if watcher not in handler.callbacks]

    def _progress_callback(self) -> Any:
        """The callback that comes after the user's: it shows progress, or prints where bars are not wanted."""
        return PrinterCallback() if self.args.disable_tqdm else ProgressCallback()

    def _tell_of_error(self, error: BaseException) -> None:
        """Let callbacks give back what they hold, because `error` ends training; no failure of theirs hides it."""
        handler: Any = getattr(self, "callback_handler", None)
        try:
            if hasattr(handler, "on_train_error"):
                handler.on_train_error(self.args, self.state, self.control, error=error)
                return
            for callback in getattr(handler, "callbacks", []):  # a handler of transformers, put in place of ours
                if hasattr(callback, "on_train_error"):
                    callback.on_train_error(self.args, self.state, self.control, error=error)
        except Exception:
            logger.exception("A callback failed while training ended with %s.", type(error).__name__)

    # -- who is who -----------------------------------------------------------------------------------------------

    def is_local_process_zero(self) -> bool:
        """Whether this is the first process of its machine."""
        return self.args.local_process_index == 0

    def is_world_process_zero(self) -> bool:
        """Whether this is the first process of all."""
        return self.args.process_index == 0

    # -- floating point operations --------------------------------------------------------------------------------

    def store_flos(self) -> None:
        """Add the operations counted since the last call, over all processes, to ``state.total_flos``."""
        add_up = engine.sums_over_processes(self.accelerator)
        flos = self.current_flos
        self.state.total_flos += flos if add_up is None else add_up(torch.tensor(flos, dtype=torch.float64)).item()
        self.current_flos = 0

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> float:
        """Operations of one forward and backward pass: six per token and parameter (Kaplan et al. 2020, section 2.1).

        Override it for models of another kind. 0 where the model does not say how many parameters it has.
        """
        main_input = self._main_input_name()
        if main_input not in inputs or not hasattr(self.model, "num_parameters"):
            return 0
        tokens: int = inputs[main_input].numel()
        return 6 * tokens * self._count_parameters()

    def _main_input_name(self) -> str:
        """What the model calls its main input. Looked up once: a module is slow to say that it lacks an attribute."""
        known = self._main_input
        if known is None or known[0]() is not self.model:
            known = (weakref.ref(self.model), getattr(self.model, "main_input_name", "input_ids"))
            self._main_input = known
        return known[1]

    def _count_parameters(self) -> int:
        # Walking over all modules at each micro-batch costs more than a small model's step. The number can only
        # change with the model or with what it is wrapped in (sharding splits parameters up), so both are the key.
        # Weak, or a trial's model would outlive it.
        known = self._parameter_count
        wrapped = getattr(self, "model_wrapped", self.model)
        if known is None or known[0]() is not self.model or known[1]() is not wrapped:
            number: int = self.model.num_parameters(exclude_embeddings=True)  # type: ignore[operator]
            known = (weakref.ref(self.model), weakref.ref(wrapped), number)
            self._parameter_count = known
        return known[2]


def _readable(name: str, value: Any) -> Any:
    if "_mem_" in name or "_peak_memory_" in name:
        return f"{int(value) // MEGABYTE}MB"
    if "_runtime" in name:
        seconds = int(value)
        hundredths = int(abs(value - seconds) * 100)
        hours, rest = divmod(seconds, 3600)
        days, hours = divmod(hours, 24)
        span = f"{days} day{'s' if days != 1 else ''}, " if days else ""
        return f"{span}{hours}:{rest // 60:02d}:{rest % 60:02d}.{hundredths:02d}"
    if name == "total_flos":
        return f"{int(value) // 2**30}GF"
    return round(value, 4) if isinstance(value, float) else value


def _read_json(path: str) -> dict[str, Any]:
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as file:
        content: dict[str, Any] = json.load(file)
    return content
