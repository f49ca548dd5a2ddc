"""What a run reports about its speed when it ends. Wall-clock figures stay out of the log history, which resumes."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import torch

from onward.arguments import option
from onward.speed.compiling import Compiled
from onward.speed.waste import Spent, largest_waste, peak_of, utilisation

if TYPE_CHECKING:
    from onward.hooks.base import TrainerBase

logger = logging.getLogger(__name__)


def speed_account(host: TrainerBase, start_time: float) -> dict[str, float]:
    """Figures for `TrainOutput.metrics`, and one line in the log about the largest waste.

    Args:
        host: the trainer; its meters' last interval is closed.
        start_time: when this call of `train` began.
    """
    meters = host.meters
    rates = meters.figures()
    account = {f"train_{name}": rates[name] for name in ("pad_fraction", "data_wait_fraction") if name in rates}
    if "tokens_per_second" in rates and host.args.device.type == "cuda":
        peak = peak_of(torch.cuda.get_device_name(host.args.device))
        if peak is not None:
            per_second = rates["tokens_per_second"]
            account["train_mfu"] = round(
                utilisation(per_second, _multiplied(host.model), peak, host.accelerator.num_processes), 4
            )
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
        )
    )
    compiled = None if host._compilation is None else Compiled.so_far().since(host._compilation.before)
    if compiled is not None:
        account |= compiled.metrics()
    if host.is_world_process_zero():
        for line in filter(None, (compiled if compiled and compiled.graphs else None, waste)):
            logger.info("Speed: %s", line)
    return account


def _multiplied(model: torch.nn.Module) -> int:
    """Weights that every token is multiplied with."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    heads = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Linear)}
    # A table that is tied to the output layer is multiplied there.
    return sum(p.numel() for p in model.parameters() if id(p) not in embeddings - heads)
