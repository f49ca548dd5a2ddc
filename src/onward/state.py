"""What a run knows about itself: `TrainerState` is told, `TrainerControl` is asked, and both go into a checkpoint.

``trainer_state.json`` is shared ground with transformers, which loads it as ``TrainerState(**json)``: the fields of
`TrainerState` are therefore its keys, no more and no fewer. What onward knows beyond that has files of its own.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from typing_extensions import override

from onward.errors import BrokenCheckpoint, UnreadableState
from onward.kin import Kin

logger = logging.getLogger(__name__)

Self = TypeVar("Self", bound="ExportableState")
StateT = TypeVar("StateT", bound="TrainerState")


class ExportableState(Kin):
    """Something whose state travels in ``trainer_state.json``: a callback, or the control flags.

    ``state()`` returns ``{"args": keywords of the constructor, "attributes": what to set afterwards}``, of JSON values
    only; `from_state` builds an equal object from it.
    """

    def state(self) -> dict[str, Any]:
        """What it takes to build an equal object."""
        raise NotImplementedError(
            f"{type(self).__name__} derives from ExportableState and must define state(), "
            "returning {'args': {...}, 'attributes': {...}}."
        )

    @classmethod
    def from_state(cls: type[Self], state: dict[str, Any]) -> Self:
        """Build the object whose `state` this is."""
        instance = cls(**state["args"])
        for name, value in state["attributes"].items():
            setattr(instance, name, value)
        return instance


def is_exportable(thing: object) -> bool:
    """Whether `thing` can be saved, be it written against our `ExportableState` or against transformers' class."""
    if isinstance(thing, ExportableState):
        return True
    return callable(getattr(thing, "state", None)) and callable(getattr(type(thing), "from_state", None))


def exportable(things: Iterable[object]) -> list[Any]:
    """Those of `things` whose state goes into a checkpoint, in their order."""
    return [thing for thing in things if is_exportable(thing)]


def check_exported(thing: Any) -> None:
    """Check that the state of a callback can be written into ``trainer_state.json``.

    Raises:
        UnreadableState: it cannot.
    """
    for part, values in _entries("state", thing.state()):
        for name, value in _entries(part, values):
            try:
                json.dumps(value, sort_keys=True, default=plain_value)
            except (TypeError, ValueError) as error:
                raise UnreadableState(
                    f"{type(thing).__name__}.state() has in {part!r} under {name!r} a {type(value).__name__} that "
                    f"cannot be written as JSON ({error}); expected numbers, strings, and lists and dictionaries of "
                    "them. Return those from state(), and make of them what you need in from_state()."
                ) from error


def _entries(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    return value.items() if isinstance(value, dict) else [(name, value)]


class _Requests:
    """Requests to the loop that are no flags of transformers, and in no checkpoint."""

    loss_limit: float | None = None
    """Leave out every step whose loss is above this. Stays until it is set anew."""
    roll_back_before: int | None = None
    """Go back to the newest checkpoint from before this step. Set back when it is acted on, at the next log line."""


@dataclass
class TrainerControl(_Requests, ExportableState):
    """The switches that callbacks set and the loop obeys. Callbacks request; the loop acts, in one place."""

    should_training_stop: bool = False
    """Leave training after this step. Set back when the next training begins."""
    should_epoch_stop: bool = False
    """Leave this epoch after this step. Set back when the next epoch begins."""
    should_save: bool = False
    """Write a checkpoint after this step. Set back when the next step begins, and by the save itself."""
    should_evaluate: bool = False
    """Evaluate after this step. Set back when the next step begins, and by the evaluation itself."""
    should_log: bool = False
    """Log after this step. Set back when the next step begins, and by the log itself."""

    def _new_training(self) -> None:
        self.should_training_stop = False

    def _new_epoch(self) -> None:
        self.should_epoch_stop = False

    def _new_step(self) -> None:
        self.should_save = False
        self.should_evaluate = False
        self.should_log = False

    @override
    def state(self) -> dict[str, Any]:
        return {"args": {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, "attributes": {}}


@dataclass
class TrainerState(Kin):
    """Where a run stands, in numbers that a human or a later process can read.

    A step is an optimizer step, whatever the number of micro-batches that it took.
    """

    epoch: float = 0
    """Epochs done, with the fraction of the running one."""
    global_step: int = 0
    """Optimizer steps done over the whole run, resumed parts included."""
    max_steps: int = 0
    """Optimizer steps that the run will take."""
    logging_steps: int = 500
    """Steps between two log lines, after a fraction of the run was turned into steps."""
    eval_steps: int = 500
    """Steps between two evaluations, likewise."""
    save_steps: int = 500
    """Steps between two checkpoints, likewise."""
    train_batch_size: int | None = None
    """Samples per micro-batch and process; differs from the argument where a search found another."""
    num_train_epochs: int = 0
    """Epochs that the run will take, rounded up."""
    num_input_tokens_seen: int = 0
    """Tokens that went into the model, where ``include_num_input_tokens_seen`` asks for counting."""
    total_flos: float = 0
    """Floating point operations of the whole run."""
    log_history: Any = None
    """Every log line, each a dictionary with its ``step``; a new list unless one is passed in."""
    best_metric: float | None = None
    """Best value so far of ``metric_for_best_model``."""
    best_global_step: int | None = None
    """Step of `best_metric`."""
    best_model_checkpoint: str | None = None
    """Folder of the checkpoint of `best_metric`."""
    is_local_process_zero: bool = True
    """Whether this is the first process of its machine."""
    is_world_process_zero: bool = True
    """Whether this is the first process of all."""
    is_hyper_param_search: bool = False
    """Whether this run is a trial of a search."""
    trial_name: str | None = None
    """Name of the trial, from ``hp_name``."""
    trial_params: dict[str, str | float | int | bool] | None = None
    """Hyperparameters of the trial."""
    stateful_callbacks: Any = None
    """States of callbacks by class name (a list where a class occurs more than once). Callbacks may be passed in."""

    def __post_init__(self) -> None:
        if self.log_history is None:
            self.log_history = []
        if self.stateful_callbacks is None:
            self.stateful_callbacks = {}
        elif not isinstance(self.stateful_callbacks, dict):
            self.stateful_callbacks = _states_by_class(self.stateful_callbacks)

    def save_to_json(self, json_path: str | os.PathLike[str]) -> None:
        """Write the state to `json_path`, whole or not at all.

        NaN and infinity are written as Python's json does (``NaN``), because transformers reads the file with it.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        write_json(values, json_path, indent=2)

    @classmethod
    def load_from_json(cls: type[StateT], json_path: str | os.PathLike[str]) -> StateT:
        """Read a state that onward or transformers wrote.

        Raises:
            BrokenCheckpoint: the file is not JSON, or not an object.
        """
        with open(json_path, encoding="utf-8") as file:
            text = file.read()
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise BrokenCheckpoint(
                f"{os.fspath(json_path)} is not valid JSON ({error}); it was cut short or edited. "
                "Resume from another checkpoint."
            ) from error
        if not isinstance(values, dict):
            raise BrokenCheckpoint(
                f"{os.fspath(json_path)} holds a {type(values).__name__}, expected an object with the trainer's state. "
                "Resume from another checkpoint."
            )
        known = {field.name for field in dataclasses.fields(cls)}
        if strange := sorted(set(values) - known):
            # A newer transformers may add a key; losing it is better than refusing the checkpoint.
            logger.warning("%s has keys that are ignored here: %s", os.fspath(json_path), ", ".join(strange))
        return cls(**{name: value for name, value in values.items() if name in known})

    def compute_steps(self, args: Any, max_steps: int) -> None:
        """Take the intervals over from `args`, turning those below 1 from a fraction of the run into steps."""
        for name in ("logging_steps", "eval_steps", "save_steps"):
            interval = getattr(args, name)
            if interval is not None:
                setattr(self, name, math.ceil(max_steps * interval) if interval < 1 else interval)

    def init_training_references(self, trainer: Any, max_steps: int, num_train_epochs: int, trial: Any) -> None:
        """Note how long the run of `trainer` is, which process this is, and which `trial` of a search it is."""
        self.trial_name = trainer._trial_name()
        params = getattr(trial, "params", trial)
        self.trial_params = dict(params) if hasattr(params, "items") else None
        self.max_steps = max_steps
        self.num_train_epochs = num_train_epochs
        self.is_local_process_zero = trainer.is_local_process_zero()
        self.is_world_process_zero = trainer.is_world_process_zero()


def write_json(values: dict[str, Any], path: str | os.PathLike[str], indent: int) -> None:
    """Write `values` with sorted keys to `path` through a temporary file, so that a crash leaves the old file whole."""
    text = json.dumps(values, indent=indent, sort_keys=True, default=plain_value) + "\n"
    temporary = f"{os.fspath(path)}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)


def plain_value(value: Any) -> Any:
    """Turn what metric functions like to return (numpy or torch scalars and arrays) into what JSON knows.

    Raises:
        TypeError: there is no such form.
    """
    if callable(getattr(value, "tolist", None)):
        return value.tolist()
    raise TypeError(f"A {type(value).__name__} cannot be written as JSON; log numbers or strings.")


def _states_by_class(callbacks: Iterable[Any]) -> dict[str, Any]:
    """Collect the states of `callbacks` under their class names, as transformers lays them out."""
    states: dict[str, Any] = {}
    for callback in callbacks:
        if not is_exportable(callback):
            raise TypeError(
                f"Got a {type(callback).__name__} to be saved, expected an ExportableState: "
                "derive it from TrainerCallback and ExportableState and define state()."
            )
        name = type(callback).__name__
        if name not in states:
            states[name] = callback.state()
        elif isinstance(states[name], list):
            states[name].append(callback.state())
        else:
            states[name] = [states[name], callback.state()]
    return states
