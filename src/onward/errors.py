"""Every error that onward raises on purpose.

    OnwardError
    ├── UsageError              an argument or object that cannot work        (ValueError, RuntimeError)
    │   ├── UnknownArgument     a keyword that is no argument                 (also TypeError)
    │   ├── DataError           the data set or a batch is at fault
    │   ├── UnknownMetric       metric_for_best_model is not there    (KeyError)
    │   └── CheckpointError     a checkpoint is at fault
    │       ├── NoCheckpoint        nothing to resume from
    │       ├── BrokenCheckpoint    a file is missing, short or altered
    │       ├── UnreadableState     a state holds what cannot be read back  (also TypeError)
    │       └── CheckpointMismatch  made by a run that this one cannot continue
    ├── MissingDependency       an optional package is not installed          (ImportError)
    ├── NotSupported            transformers has it, onward does not          (NotImplementedError)
    ├── HubError                the Hub refused, or could not be reached      (RuntimeError)
    └── TrainingFailed          the run itself cannot go on                   (RuntimeError)
        ├── OutOfMemory             one sample does not fit
        ├── NonFinite               too many steps in a row were NaN or infinite
        └── SaveFailed              too many saves in a row failed

`Preempted` is no error but the `SystemExit` of a run that saved itself, after a signal or before a time limit.

Messages say what was got, what was expected, and what to do.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping


class OnwardError(Exception):
    """Base of all errors that onward raises on purpose."""


class UsageError(OnwardError, ValueError, RuntimeError):
    """An argument or object that cannot work.

    It is both a `ValueError` and a `RuntimeError`, because transformers raises one or the other for these and
    scripts already catch them.
    """


class UnknownArgument(UsageError, TypeError):
    """A keyword that is no argument. Python raises a `TypeError` for these, so callers may catch that."""


class DataError(UsageError):
    """The data set, the loader or a batch cannot be trained on."""


class UnknownMetric(UsageError, KeyError):
    """`metric_for_best_model` is none of the metrics that evaluation gives. A `KeyError` too, as in transformers."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the message in quotes


class CheckpointError(UsageError):
    """A checkpoint cannot be used."""


class NoCheckpoint(CheckpointError):
    """There is nothing to resume from."""


class BrokenCheckpoint(CheckpointError):
    """A file of the checkpoint is missing, short or altered."""


class UnreadableState(CheckpointError, TypeError):
    """A state holds objects that a checkpoint cannot keep, or that are not read from one without permission."""


class CheckpointMismatch(CheckpointError):
    """The checkpoint was made by a run that this one cannot continue."""


class MissingDependency(OnwardError, ImportError):
    """An optional package is not installed; the message names the command that installs it."""


class NotSupported(OnwardError, NotImplementedError):
    """A path of transformers that onward does not have."""


class HubError(OnwardError, RuntimeError):
    """The Hub refused what was asked of it, or could not be reached."""


class TrainingFailed(OnwardError, RuntimeError):
    """The run itself cannot go on."""


class OutOfMemory(TrainingFailed):
    """Even one sample at a time does not fit in memory."""


class NonFinite(TrainingFailed):
    """Too many optimizer steps in a row had a NaN or infinite loss or gradient."""


class SaveFailed(TrainingFailed):
    """Too many checkpoints in a row could not be written."""


class Preempted(SystemExit):
    """The run was asked to leave and has saved itself; ``code`` is `preemption_exit_code`."""


class SignatureOfInit:
    """As ``__signature__`` of a class whose ``__new__`` takes anything: what its ``__init__`` takes.

    Scripts ask ``inspect.signature(trainer_class)`` which names they may pass; Python would look at ``__new__`` first.
    """

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        signature = inspect.signature(owner.__init__)  # type: ignore[misc]
        return signature.replace(parameters=list(signature.parameters.values())[1:])


def check_keywords(cls: type, given: Iterable[str], kind: str, former: Mapping[str, str]) -> None:
    """Raise `UnknownArgument`, with a hint, for a keyword that ``cls.__init__`` does not take.

    Args:
        cls: the class that is being made.
        given: the keywords that it was given.
        kind: what its keywords are, for the message.
        former: names that older scripts use, and what does their work now.
    """
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return  # a subclass with an __init__ of its own takes what it likes
    for name in given:
        if name not in parameters:
            hint = f" It is now: {former[name]}." if name in former else did_you_mean(name, parameters)
            raise UnknownArgument(
                f"{cls.__name__} got the unknown argument '{name}'; expected one of its {kind}.{hint}"
            )


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(str(got), list(known), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""
