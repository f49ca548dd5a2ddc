"""How long to train, and how weights move."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from onward.arguments.documented import documented
from onward.types import OptimizerNames, SchedulerType

BLOCKS = "blocks"
"""The `torch_compile_mode` that compiles each repeated block once, so that start-up does not grow with depth."""
COMPILE_MODES = ["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs", BLOCKS]


@documented
@dataclass(init=False, repr=False, eq=False)
class OptimizationArguments:
    """Where results go, how long a run is, and everything between a gradient and a weight."""

    output_dir: str | None = None
    """Folder for checkpoints, logs and the final model; ``trainer_output`` when left out."""
    per_device_train_batch_size: int = 8
    """Samples in one micro-batch on one process."""
    num_train_epochs: float = 3.0
    """Passes over the training set; a fraction ends inside a pass. Ignored when ``max_steps`` is positive."""
    max_steps: int = -1
    """Optimizer steps of the whole run; -1 leaves it to ``num_train_epochs``. A stream without a length needs it."""

    learning_rate: float = 5e-5
    """Peak learning rate, before the schedule scales it."""
    lr_scheduler_type: SchedulerType | str = "linear"
    """Shape of the learning rate over the run, one of `SchedulerType`."""
    lr_scheduler_kwargs: dict | str | None = None  # type: ignore[type-arg]
    """Further settings of the schedule, as a dict or a JSON object."""
    warmup_steps: float = 0
    """Optimizer steps over which the learning rate rises from 0; a value below 1 is a share of all steps."""

    optim: OptimizerNames | str = "adamw_torch_fused"
    """Optimizer, one of `OptimizerNames`."""
    optim_args: str | None = None
    """Further settings of the optimizer, written ``key=value,key=value``."""
    weight_decay: float = 0.0
    """Decoupled weight decay per step and unit of learning rate; biases and norm weights are left out."""
    adam_beta1: float = 0.9
    """Decay per step of the running mean of gradients, for the Adam family."""
    adam_beta2: float = 0.999
    """Decay per step of the running mean of squared gradients, for the Adam family."""
    adam_epsilon: float = 1e-8
    """Term that keeps the Adam family from dividing by zero."""
    optim_target_modules: None | str | list[str] = None  # noqa: RUF036  # the first type is what a parser reads
    """Names or patterns of the linear modules that GaLore or APOLLO project."""

    gradient_accumulation_steps: int = 1
    """Micro-batches whose gradients are summed before one optimizer step."""
    average_tokens_across_devices: bool = True
    """Divide the loss by the number of label tokens over all processes, not just over this one."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this L2 norm over all parameters; 0 or None switches that off."""
    label_smoothing_factor: float = 0.0
    """Share of each target's probability that is spread over all classes, from 0 to 1."""


@documented
@dataclass(init=False, repr=False, eq=False)
class ComputeArguments:
    """Number formats, compilation, kernels, and what is traded for memory."""

    bf16: bool = False
    """Train under bfloat16 autocast."""
    fp16: bool = False
    """Train under float16 autocast with a loss scaler; on the CPU, which has neither, in float32."""
    bf16_full_eval: bool = False
    """Convert the model to bfloat16 for evaluation."""
    fp16_full_eval: bool = False
    """Convert the model to float16 for evaluation."""
    tf32: bool | None = None
    """Allow TensorFloat-32 in matrix products (Ampere GPUs or newer); None leaves torch's setting alone."""

    activation_checkpointing: bool | None = field(default=None, metadata={"nargs": "?", "const": True})
    """Recompute activations in the backward pass instead of keeping them: less memory, more time. Off when left out."""
    activation_checkpointing_kwargs: dict[str, Any] | str | None = None
    """Settings handed to the model's checkpointing (``use_reentrant`` and so on), as a dict or a JSON object."""
    gradient_checkpointing: bool | None = field(default=None, metadata={"nargs": "?", "const": True})
    """Older name of ``activation_checkpointing``; it mirrors the new name, which wins when both are given."""
    gradient_checkpointing_kwargs: dict[str, Any] | str | None = None
    """Older name of ``activation_checkpointing_kwargs``."""

    torch_compile: bool = False
    """Compile the model with torch.compile."""
    torch_compile_backend: str | None = None
    """Backend of torch.compile; naming one switches compilation on. ``inductor`` when left out."""
    torch_compile_mode: str | None = None
    """Mode of torch.compile, or ``blocks`` for each repeated block by itself; naming one switches compilation on."""

    use_liger_kernel: bool = False
    """Replace layers by the kernels of the liger-kernel package."""
    liger_kernel_config: dict[str, bool] | None = None
    """Which Liger kernels to apply, by name; None applies its defaults for the model."""

    use_cache: bool = False
    """Let the model keep a key/value cache while training; some PEFT methods need it."""
    neftune_noise_alpha: float | None = None
    """Scale of the uniform noise added to embeddings while training (NEFTune, arXiv:2310.05914); 5 to 15 is usual."""
    torch_empty_cache_steps: int | None = None
    """Optimizer steps between two releases of the allocator's cache; None never releases it."""
    # The words are those of a flag on a command line, which a parser would otherwise not take beside "grow".
    auto_find_batch_size: Literal[True, False, "grow", "true", "false", "yes", "no", "1", "0"] = field(
        default=False, metadata={"nargs": "?", "const": True}
    )
    """On out of memory, go on with smaller micro-batches, same effective batch. ``grow`` also looks for the largest one
    that fits before training, up to the whole step (per_device_train_batch_size * gradient_accumulation_steps)."""
