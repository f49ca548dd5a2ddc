"""What a run reports about its speed when it ends. Wall-clock figures stay out of the log history, which resumes."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

import torch

from onward import memory
from onward.arguments import option
from onward.speed.compiling import Compiled
from onward.speed.waste import Spent, largest_waste, multiplied, peak_of, utilisation

if TYPE_CHECKING:
    from onward.hooks.base import TrainerBase

logger = logging.getLogger(__name__)

SEEN_BY_ALL = 60
"""Seconds from which on a run's remark about its speed is logged as a warning, which is shown by default."""


def speed_account(host: TrainerBase, start_time: float) -> dict[str, float]:
    """Figures for `TrainOutput.metrics`, and one line in the log about the largest waste.

    Args:
        host: the trainer; its meters' last interval is closed.
        start_time: when this call of `train` began.
    """
    meters = host.meters
    rates = meters.figures()
    account = {f"train_{name}": rates[name] for name in ("pad_fraction", "data_wait_fraction") if name in rates}
    account |= {f"train_{name}": value for name, value in chip_share(host, rates).items()}
    # What came before a resume was spent by another process; only its training is known.
    whole_run = host._initial_global_step == 0
    beside = max(time.time() - start_time - meters.train_seconds, 0.0) if whole_run else 0.0
    waste = largest_waste(
        Spent(
            training=meters.train_seconds,
            beside=beside,
            data_wait=meters.data_wait,
            pad_share=rates.get("pad_fraction", 0.0),
            workers=host.args.dataloader_num_workers,
            packs=bool(option(host.args, "padding_free")),
            processors=processors(),
        )
    )
    compiled = None if host._compilation is None else Compiled.so_far().since(host._compilation.before)
    if compiled is not None:
        account |= compiled.metrics()
    if host.is_world_process_zero():
        # Who waited for a minute wants to see it without having asked for it; after a trial of seconds nobody does.
        level = logging.WARNING if meters.train_seconds + beside >= SEEN_BY_ALL else logging.INFO
        for line in filter(None, (compiled if compiled and compiled.graphs else None, waste)):
            logger.log(level, "Speed: %s", line)
    return account


def processors() -> int:
    """Processors that this process may use, by its share where several processes of the run are on one machine."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    count = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return max(1, count // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def interval_account(host: TrainerBase, rates: dict[str, float]) -> dict[str, float]:
    """What goes beside a log line: the rates of its interval, the share of the chip's peak, peak memory in bytes."""
    peaks = {name.removeprefix("train_"): value for name, value in memory.peak_figures("train").items()}
    return {**rates, **chip_share(host, rates), **peaks}


def chip_share(host: TrainerBase, rates: dict[str, float]) -> dict[str, float]:
    """Share of the chips' peak that trained tokens, as ``mfu``; empty where the peak or the tokens are not known."""
    if "tokens_per_second" not in rates or host.args.device.type != "cuda":
        return {}
    peak = peak_of(torch.cuda.get_device_name(host.args.device))
    if peak is None:
        return {}
    share = utilisation(rates["tokens_per_second"], multiplied(host.model), peak, host.accelerator.num_processes)
    return {"mfu": round(share, 4)}
