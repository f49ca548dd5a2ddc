"""When checkpoints are written, which of them stay, what goes to the Hub, and how a run resumes."""

from __future__ import annotations

from dataclasses import dataclass, field

from onward.arguments.documented import documented
from onward.types import HubStrategy, SaveStrategy


@documented
@dataclass(init=False, repr=False, eq=False)
class SavingArguments:
    """Checkpoints, the Hub, the best model, and resuming."""

    save_only_model: bool = False
    """Write the weights without optimizer, schedule and generators: smaller, and no run can resume from it."""
    save_strategy: SaveStrategy | str = "steps"
    """When to write a checkpoint: ``no``, ``steps``, ``epoch`` or ``best``."""
    save_steps: float = 500
    """Optimizer steps between two checkpoints; a value below 1 is a share of all steps."""
    save_on_each_node: bool = False
    """With several machines, write on each of them; leave it off when they share storage."""
    save_total_limit: int | None = None
    """Checkpoints that stay on disk; the newest and the best always do. None or 0 keeps all."""
    enable_jit_checkpoint: bool = False
    """Write a checkpoint when the process is asked to end (SIGTERM). Done anyway, see ``preemption_signals``."""

    push_to_hub: bool = False
    """Upload the model to the Hugging Face Hub."""
    hub_token: str | None = field(default=None, repr=False)
    """Access token for the Hub; the one of the local login when left out."""
    hub_private_repo: bool | None = None
    """Make a new repository private; None leaves it to the owner's default."""
    hub_model_id: str | None = None
    """Repository to push to; your user name and the name of ``output_dir`` when left out."""
    hub_strategy: HubStrategy | str = "every_save"
    """What is pushed when: ``end``, ``every_save``, ``checkpoint`` or ``all_checkpoints``."""
    hub_always_push: bool = False
    """Push even while the push before is still under way."""
    hub_revision: str | None = None
    """Branch to push to; the main branch when left out."""

    load_best_model_at_end: bool = False
    """Load the best checkpoint when training ends; saves have to fall on evaluations."""
    metric_for_best_model: str | None = None
    """Metric that decides which checkpoint is best, with or without ``eval_``; ``loss`` when left out."""
    greater_is_better: bool | None = None
    """Whether a larger metric is better; when left out it is, unless the name ends in ``loss``."""

    ignore_data_skip: bool = False
    """On resume, start the epoch's data afresh instead of where the checkpoint stood."""
    restore_callback_states_from_checkpoint: bool = False
    """On resume, replace the callbacks that you passed by those of the checkpoint."""
