"""What a run says about itself, where, and how often; and when it evaluates."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Literal

from onward.arguments.documented import documented
from onward.types import IntervalStrategy

LOG_LEVELS = {"detail": 10, "debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50, "passive": -1}
"""Words for `log_level` and the levels of `logging` that they stand for; -1 leaves the level as it is."""
METRIC_EXTRAS = ["inputs", "loss"]


def passive_log_level() -> int:
    """The level that the script has chosen: that of transformers, where it was changed there, else that of onward.

    Scripts silence a trainer by ``transformers.logging.set_verbosity_error()`` or TRANSFORMERS_VERBOSITY.
    """
    theirs = logging.getLogger("transformers").level  # not set where transformers is not loaded
    chosen = theirs not in (logging.NOTSET, logging.WARNING)
    return theirs if chosen else logging.getLogger("onward").getEffectiveLevel()


@documented
@dataclass(init=False, repr=False, eq=False)
class ReportingArguments:
    """Log lines, progress display and experiment trackers."""

    logging_strategy: IntervalStrategy | str = "steps"
    """When to write a log line: ``no``, ``steps`` or ``epoch``."""
    logging_steps: float = 500
    """Optimizer steps between two log lines; a value below 1 is a share of all steps."""
    logging_first_step: bool = False
    """Also log the first optimizer step."""
    log_on_each_node: bool = True
    """With several machines, log once on each of them instead of only on the first."""
    logging_nan_inf_filter: bool = True
    """Keep NaN and infinite losses out of the logged mean; it changes the log, never the training."""
    include_num_input_tokens_seen: str | bool = "no"
    """Count input tokens in the log: ``all``, ``non_padding`` or ``no``; True means ``all``, False ``no``."""
    log_level: str = field(default="passive", metadata={"choices": LOG_LEVELS.keys()})
    """Log level of the main process; ``passive`` leaves it as it is."""
    log_level_replica: str = field(default="warning", metadata={"choices": LOG_LEVELS.keys()})
    """Log level of the other processes."""
    disable_tqdm: bool | None = None
    """Show no progress display. When left out it is shown, unless the log level is above warning."""

    report_to: None | str | list[str] = "none"  # noqa: RUF036  # the first type is what a parser reads
    """Experiment trackers to report to, by name; ``all`` for each one installed, ``none`` for none."""
    run_name: str | None = None
    """Name of the run in the trackers."""
    project: str = "huggingface"
    """Name of the project in the trackers that have projects."""
    trackio_space_id: str | None = None
    """Hugging Face Space that shows trackio's dashboard while the run goes on; None keeps it local."""
    trackio_bucket_id: str | None = None
    """Hugging Face bucket that holds trackio's data; None lets trackio choose."""
    trackio_static_space_id: str | None | Literal[False] = None  # noqa: RUF036
    """Space for trackio's static dashboard after the run; False makes none, None makes one when the model is pushed."""


@documented
@dataclass(init=False, repr=False, eq=False)
class EvaluationArguments:
    """When to evaluate, in which portions, and what the metrics get to see."""

    eval_strategy: IntervalStrategy | str = "no"
    """When to evaluate while training: ``no``, ``steps`` or ``epoch``."""
    eval_steps: float | None = None
    """Optimizer steps between two evaluations; below 1 a share of all steps. ``logging_steps`` when left out."""
    eval_delay: float = 0
    """Epochs or steps, after ``eval_strategy``, before the first evaluation."""
    per_device_eval_batch_size: int = 8
    """Samples in one evaluation batch on one process."""
    prediction_loss_only: bool = False
    """Return only the loss from evaluation and prediction."""
    eval_on_start: bool = False
    """Evaluate once before the first optimizer step."""
    eval_do_concat_batches: bool = True
    """Join the outputs of all batches; when off, they stay a list of batches."""
    eval_use_gather_object: bool = False
    """Gather outputs of any type between processes, not just tensors; slow."""
    eval_accumulation_steps: int | None = None
    """Nothing to tune: outputs move to host memory batch by batch, beside the computation of the next one."""

    include_for_metrics: list[str] = field(default_factory=list)
    """What else ``compute_metrics`` receives: ``inputs`` and/or ``loss``."""
    batch_eval_metrics: bool = False
    """Call ``compute_metrics`` after each batch, with ``compute_result=True`` at the last, and keep no outputs."""
