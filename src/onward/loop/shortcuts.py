"""Opening the shortcuts of a run: what of a trainer speaks against them, or against leaving out unread outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onward import engine, model_setup
from onward.arguments import option
from onward.speed.shortcuts import Shortcuts

if TYPE_CHECKING:
    from onward.hooks.base import TrainerBase

_STEP_HOOKS = ("compute_loss", "training_step", "_prepare_inputs", "_prepare_input")


def open_shortcuts(host: TrainerBase, face: type) -> Shortcuts | None:
    """The shortcuts of a run, or None if none was asked for.

    Args:
        host: the trainer.
        face: the class whose hooks of the step are onward's own.

    Raises:
        UsageError: one was asked for with True and cannot be taken.
    """
    packs, chunks = option(host.args, "padding_free"), option(host.args, "chunked_loss")
    if not (packs or chunks):
        return None
    model = engine.unwrapped(host.accelerator, host.model)
    shortcuts = Shortcuts(model, model_setup.without_peft(model), packs, chunks)
    for shortcut in (shortcuts.packing, shortcuts.chunking):
        if shortcut.open and (reason := _against(host, face, shortcut.name)):
            shortcut.close(reason)
    if shortcuts.packing.open or shortcuts.chunking.open:
        shortcuts.look()
    return shortcuts


def only_loss_is_read(host: TrainerBase, face: type) -> bool:
    """Whether nobody but onward sees what the model returns in training, and onward reads the loss alone.

    Args:
        host: the trainer.
        face: the class whose `compute_loss` is onward's own.
    """
    return _against_all(host, face, ("compute_loss",)) is None


def _against(host: TrainerBase, face: type, name: str) -> str | None:
    """What of the trainer speaks against a shortcut."""
    model = engine.unwrapped(host.accelerator, host.model)
    base = model_setup.without_peft(model)
    if not (model_setup.is_causal_language_model(model) and _may_shift_labels(base)):
        return f"{type(base).__name__} is no causal language model of transformers"
    if reason := _against_all(host, face, _STEP_HOOKS):
        return reason
    if name == "padding_free" and host.neftune_noise_alpha is not None:
        return "neftune_noise_alpha scales its noise by the padded length"
    if name == "chunked_loss" and host.args.use_liger_kernel:
        return "use_liger_kernel computes the loss without logits already"
    return None


def _against_all(host: TrainerBase, face: type, hooks: tuple[str, ...]) -> str | None:
    """What of the trainer speaks against calling the model in any other way, or for anything but its loss."""
    for hook in hooks:
        if hook in vars(host) or getattr(type(host), hook) is not getattr(face, hook):
            return f"{type(host).__name__}.{hook} is overridden and may look at batches or logits"
    if host.compute_loss_func is not None:
        return "compute_loss_func wants the logits"
    if host.label_smoother is not None:
        return "label_smoothing_factor wants the logits"
    if host.is_fsdp_enabled:
        return "the model is sharded (fsdp)"
    if host.args.torch_compile:
        return "the compiled model would be compiled anew for every batch"
    return None


def _may_shift_labels(base: Any) -> bool:
    """Whether the model's loss is that of causal language models, as far as its name for it says.

    Where it has none (GPT-2 and others whose class is called LMHeadModel) transformers takes that loss too, and the
    comparison on the first batch finds out the models that have one of their own.
    """
    decoder_only = not getattr(base.config, "is_encoder_decoder", False)
    return model_setup.loss_shifts_labels(base) or (getattr(base, "loss_type", None) is None and decoder_only)
