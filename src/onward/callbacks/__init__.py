"""Observers of a run: the events, what to derive from, and the callbacks that come along.

events          what fires where in the loop
base            TrainerCallback
handler         CallbackHandler: passes events on
flow            asks for logs, evaluations and checkpoints as the arguments say
progress        the display in a terminal, a notebook or a plain log
early_stopping  ends training when the metric no longer improves
metrics_file    metrics.jsonl
spikes          notices when the loss jumps
"""

from onward.callbacks.base import TrainerCallback
from onward.callbacks.early_stopping import EarlyStoppingCallback
from onward.callbacks.events import EVENTS
from onward.callbacks.flow import DefaultFlowCallback
from onward.callbacks.handler import CallbackHandler
from onward.callbacks.metrics_file import MetricsFileCallback
from onward.callbacks.progress import PrinterCallback, ProgressCallback
from onward.callbacks.spikes import LossSpikeCallback
from onward.kin import become_kin

__all__ = [
    "EVENTS",
    "CallbackHandler",
    "DefaultFlowCallback",
    "EarlyStoppingCallback",
    "LossSpikeCallback",
    "MetricsFileCallback",
    "PrinterCallback",
    "ProgressCallback",
    "TrainerCallback",
]

become_kin()
