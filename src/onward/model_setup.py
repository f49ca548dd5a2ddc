"""What is read from a model before training, and what is attached to it.

The questions are pure functions; the attachments (NEFTune, Liger, activation checkpointing, special tokens) change the
model they are given. Nothing here imports transformers or peft by itself: an object can only be theirs if they are
loaded already, so they are looked up among the loaded modules.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from onward.errors import DataError, MissingDependency, UsageError
from onward.sharding import class_of

log = logging.getLogger(__name__)


def _loaded(module: str, *names: str) -> tuple[type, ...]:
    """The classes of an optional package, if it is loaded; no object can be an instance of them otherwise."""
    package = sys.modules.get(module)
    return tuple(getattr(package, name) for name in names if hasattr(package, name)) if package else ()


def is_pretrained(model: Any) -> bool:
    """Whether the model is one of transformers'."""
    return isinstance(model, _loaded("transformers.modeling_utils", "PreTrainedModel"))


def is_peft(model: Any) -> bool:
    """Whether the model is wrapped by peft."""
    return isinstance(model, _loaded("peft", "PeftModel", "PeftMixedModel"))


def without_peft(model: nn.Module) -> Any:
    """Return the model that peft wraps, or the model itself."""
    if not is_peft(model):
        return model
    whole: Any = model
    return whole.get_base_model() if hasattr(whole, "get_base_model") else whole.base_model.model


# What the model's forward says


def label_names(model_class: type) -> list[str]:
    """Return the arguments of forward that are labels: those with ``label`` in their name, spans for answers too."""
    spans = ("start_positions", "end_positions") if "QuestionAnswering" in model_class.__name__ else ()
    return [name for name in _forward(model_class) if "label" in name or name in spans]


def can_return_loss(model_class: type) -> bool:
    """Whether forward computes a loss unasked, without labels: it has ``return_loss=True``."""
    return any(p.name == "return_loss" and p.default is True for p in _forward(model_class).values())


def _forward(owner: Any) -> Any:
    return inspect.signature(owner.forward).parameters


def accepts_loss_kwargs(model: nn.Module) -> bool:
    """Whether forward takes ``num_items_in_batch``, so that the model divides its own loss by it.

    A model may say so in an attribute ``accepts_loss_kwargs``; otherwise any ``**kwargs`` counts as yes.
    ``model`` has been freed of the wrappers of distributed training.
    """
    base = without_peft(model)
    if hasattr(base, "accepts_loss_kwargs"):
        return bool(base.accepts_loss_kwargs)
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in _forward(base).values())


def loss_shifts_labels(model: nn.Module) -> bool:
    """Whether the model's own loss scores each position against the label of the next.

    True for decoder-only language models of transformers. An encoder-decoder is given targets that are aligned already.
    """
    base = without_peft(model)
    kind = getattr(base, "loss_type", None)
    if kind is None or "transformers" not in sys.modules:
        return False
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

    encoder_decoder = getattr(getattr(base, "config", None), "is_encoder_decoder", False)
    return LOSS_MAPPING.get(kind) is ForCausalLMLoss and not encoder_decoder


def is_causal_language_model(model: nn.Module) -> bool:
    """Whether this is one of transformers' causal language models: its labels are its inputs, one token on."""
    if "transformers" not in sys.modules:
        return False
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    base: Any = model
    inner = base.base_model.model if is_peft(model) else base
    return class_of(inner).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def check_trainable(model: nn.Module) -> None:
    """Raise `UsageError` for a quantized model that cannot learn: compiled, without adapters, or of a frozen method."""
    if not getattr(model, "is_quantized", False) or getattr(model, "_hf_peft_config_loaded", False):
        return
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if hasattr(model, "_orig_mod"):
        raise UsageError("got a quantized model that is compiled, expected it uncompiled: compile would freeze it")
    if not is_peft(model) and not getattr(quantizer, "is_qat_trainable", False):
        raise UsageError(
            "got a purely quantized model, whose weights cannot be trained; attach adapters (peft.get_peft_model)"
        )
    if quantizer is None or not quantizer.is_trainable:
        method = getattr(getattr(quantizer, "quantization_config", None), "quant_method", "unknown")
        raise UsageError(f"got a model quantized with {method}, a method that cannot be trained; load it unquantized")


def check_present(model: nn.Module | None) -> None:
    """Raise `UsageError` where a trainer has no model: a hyperparameter search lets go of each one that it made."""
    if model is None:
        raise UsageError(
            "The trainer holds no model after a hyperparameter search. Call load_best_trial() for that of the best "
            "trial, or train() to train one with its arguments."
        )


def is_placed_by_itself(model: nn.Module) -> bool:
    """Whether the model must not be moved: it is spread over devices, or bitsandbytes put its weights in place."""
    method = getattr(model, "quantization_method", None)
    return getattr(model, "hf_device_map", None) is not None or str(getattr(method, "value", method)) == "bitsandbytes"


# Bad input


def check_token_ids(
    model: nn.Module,
    inputs: Mapping[str, Any],
    error: IndexError,
    indices: Callable[[], Sequence[int] | None] = lambda: None,
) -> None:
    """Look for what made the forward raise an `IndexError`.

    Args:
        model: which raised it, unwrapped.
        inputs: what it was called with.
        error: what it raised.
        indices: says where the samples of the batch stand in the data set, where that is known.

    Raises:
        DataError: a token id lies beyond the embeddings.
    """
    embeddings = None
    with contextlib.suppress(Exception):  # models raise all kinds of errors where they have none
        embeddings = _input_embeddings(model)
    size = getattr(embeddings, "num_embeddings", None)
    ids = inputs.get("input_ids")
    if size is None or not isinstance(ids, torch.Tensor):
        return
    bad = ((ids < 0) | (ids >= size)).nonzero()
    if not len(bad):
        return
    row, *place = bad[0].tolist()
    known = indices() or ()
    # A batch without padding is one row, in which nobody sees where a sample begins.
    where = f" (the one at index {known[row]} of the training data)" if len(known) == len(ids) else ""
    raise DataError(
        f"Sample {row} of this batch{where} has the token id {int(ids[tuple(bad[0])])} at position "
        f"{', '.join(map(str, place))}; expected ids from 0 to {size - 1}, because the model embeds {size} tokens. Use "
        "the tokenizer that the model was made with, or call model.resize_token_embeddings(len(tokenizer)) for tokens "
        "that were added."
    ) from error


# NEFTune


def _input_embeddings(model: nn.Module) -> nn.Module:
    base: Any = model
    if is_peft(model):
        base = base.base_model.model
    if hasattr(base, "get_input_embeddings"):
        found: nn.Module = base.get_input_embeddings()
        return found
    embeddings = [module for module in base.modules() if isinstance(module, nn.Embedding)]
    if len(embeddings) == 1:
        return embeddings[0]
    raise UsageError(
        f"neftune_noise_alpha: got a {type(base).__name__} with {len(embeddings)} embeddings and no "
        "get_input_embeddings(), expected that method or a single nn.Embedding"
    )


def _add_noise(module: Any, inputs: Any, output: Tensor) -> Tensor:
    """Forward hook: noise up to alpha / sqrt(length x width) on embeddings of shape (batch, length, width)."""
    if not module.training:
        return output
    # In float32 on the host: drawn from other bounds, the noise would differ in the last bit.
    bound = float(module.neftune_noise_alpha / torch.tensor(output.size(1) * output.size(2)).sqrt())
    return output + torch.empty_like(output).uniform_(-bound, bound)


def activate_neftune(model: nn.Module, alpha: float) -> Any:
    """Add noise to the input embeddings while training; returns the handle for `deactivate_neftune`.

    Source: Jain et al. 2023, arXiv 2310.05914. ``model`` has been freed of the wrappers of distributed training.
    """
    embeddings = _input_embeddings(model)
    embeddings.neftune_noise_alpha = alpha  # type: ignore[assignment]
    return embeddings.register_forward_hook(_add_noise)


def deactivate_neftune(model: nn.Module, handle: Any) -> None:
    """Take the noise away again; a handle of None is no noise to begin with."""
    if handle is None:
        return
    handle.remove()
    embeddings = _input_embeddings(model)
    if hasattr(embeddings, "neftune_noise_alpha"):
        del embeddings.neftune_noise_alpha


# Liger


def apply_liger_kernel(model: nn.Module, config: dict[str, Any] | None = None) -> None:
    """Replace parts of a transformers model by Liger's fused kernels; ``config`` chooses which."""
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
    except ImportError as error:
        raise MissingDependency(
            f"use_liger_kernel=True needs the package 'liger_kernel', which could not be imported ({error}). "
            "Install it with: pip install liger-kernel"
        ) from error
    base = without_peft(model)
    if is_pretrained(base):
        _apply_liger_kernel_to_instance(model=base, **(config or {}))
    else:
        log.warning("use_liger_kernel: %s is no transformers model, no kernel was replaced", type(base).__name__)


# Diagnostics


def watch_overflow(model: nn.Module) -> None:
    """Stop at the first activation or weight that is not finite, and print the modules before it.

    This is transformers' ``DebugUnderflowOverflow``; raises `MissingDependency` where transformers is not installed.
    """
    try:
        from transformers.debug_utils import DebugUnderflowOverflow
    except ImportError as error:
        raise MissingDependency(
            f"debug='underflow_overflow' needs the package 'transformers', which could not be imported ({error}). "
            "Install it with: pip install 'onward[hf]'"
        ) from error
    DebugUnderflowOverflow(model)  # type: ignore[no-untyped-call]


# Special tokens


def align_special_tokens(model: nn.Module, processing_class: Any) -> dict[str, int]:
    """Give the model's configs the tokenizer's end, begin and padding tokens, and return what changed.

    Only tokens that the tokenizer defines are passed on. Generation may stop at several tokens: there the tokenizer's
    is put in front of those that stand. A model without config, or anything but a tokenizer or processor of
    transformers, is left alone.
    """
    processors = _loaded("transformers.processing_utils", "ProcessorMixin")
    tokenizers = _loaded("transformers.tokenization_utils_base", "PreTrainedTokenizerBase")
    if not isinstance(processing_class, processors + tokenizers) or not hasattr(model, "config"):
        return {}
    tokenizer: Any = processing_class
    if isinstance(processing_class, processors):
        tokenizer = tokenizer.tokenizer
    configs = [model.config.get_text_config()]  # type: ignore[union-attr, operator]
    if getattr(model, "generation_config", None) is not None:
        configs.append(model.generation_config)
    changed = {}
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        token = getattr(tokenizer, name)
        if token is None or all(token in _as_list(getattr(config, name, None)) for config in configs):
            continue
        changed[name] = token
        for place, config in enumerate(configs):
            setattr(config, name, _aligned(getattr(config, name, None), token, name, of_generation=place == 1))
    if changed:
        log.warning("The model's configs were given the tokenizer's special tokens: %s", changed)
    return changed


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _aligned(current: Any, token: int, name: str, of_generation: bool) -> Any:
    """The new value of one token in one config: a list only for the end token, where there may be several."""
    several = name == "eos_token_id" and (of_generation or isinstance(current, list))
    if not several:
        return token
    return [token, *(other for other in _as_list(current) if other is not None and other != token)]


# Activation checkpointing


def enable_activation_checkpointing(model: nn.Module, options: dict[str, Any] | None = None) -> int:
    """Drop activations in the forward pass and compute them again in the backward pass.

    ``options`` are handed to `torch.utils.checkpoint.checkpoint` (``use_reentrant`` is False unless given), except for
    ``every_n_layers`` (1: every block) and ``offload`` (True: what is kept waits in host memory). A model that brings
    ``activation_checkpointing_enable`` or ``gradient_checkpointing_enable`` does it itself; in any other, the blocks of
    its `nn.ModuleList`s and `nn.Sequential`s are checkpointed. Returns the number of blocks that this function
    changed. Raises `UsageError` for a model without blocks.
    """
    options = dict(options or {})
    every = int(options.pop("every_n_layers", 1))
    offload = bool(options.pop("offload", False))
    for name, keyword in (
        ("activation_checkpointing_enable", "activation_checkpointing_kwargs"),
        ("gradient_checkpointing_enable", "gradient_checkpointing_kwargs"),
    ):
        method = getattr(model, name, None)
        if method is not None:
            _call_with_known(method, {keyword: options or None, "every_n_layers": every, "offload": offload})
            return 0
    blocks = blocks_of(model)
    if not blocks:
        raise UsageError(
            f"activation_checkpointing: got a {type(model).__name__} without blocks, expected a method "
            "activation_checkpointing_enable, or layers with parts of their own in an nn.ModuleList or nn.Sequential"
        )
    for block in blocks[::every]:
        _recompute(block, {"use_reentrant": False, **options}, offload)
    return len(blocks[::every])


def _call_with_known(method: Any, wanted: dict[str, Any]) -> None:
    """Call a model's own method with those options that it knows; older ones know the first only."""
    parameters = inspect.signature(method).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        for option in [option for option in wanted if option not in parameters]:
            if wanted.pop(option) not in (None, 1, False):
                log.warning("activation_checkpointing_kwargs: %s does not read %r", method.__qualname__, option)
    method(**wanted)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The outermost members of lists and sequences that have parts of their own, in the order of the model."""
    found: list[nn.Module] = []
    for child in model.children():
        listed = isinstance(model, nn.ModuleList | nn.Sequential) and any(True for _ in child.children())
        is_list = isinstance(child, nn.ModuleList | nn.Sequential)
        if listed and not is_list and any(True for _ in child.parameters()):
            found.append(child)
        else:
            found += blocks_of(child)
    return found


class _Recomputed:
    """Mixed into a block's class: its forward runs under a checkpoint while training."""

    _recompute_options: dict[str, Any]
    _recompute_offload: bool
    training: bool

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block, keeping only its inputs where a backward pass will follow."""
        run = super().forward  # type: ignore[misc]
        if not (self.training and torch.is_grad_enabled()):
            return run(*args, **kwargs)
        from torch.utils.checkpoint import checkpoint

        if not self._recompute_offload:
            return checkpoint(run, *args, **self._recompute_options, **kwargs)
        with torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available()):
            return checkpoint(run, *args, **self._recompute_options, **kwargs)


def _recompute(block: nn.Module, options: dict[str, Any], offload: bool) -> None:
    # The class is replaced, not the bound forward: a copy of the model (for an average of its weights) would go on
    # calling the block that it was copied from.
    if not isinstance(block, _Recomputed):
        kind = type(block)
        block.__class__ = type(kind.__name__, (_Recomputed, kind), {"__module__": kind.__module__})
        if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in block.modules()):
            log.warning("activation_checkpointing: the batch statistics of %s count each batch twice", kind.__name__)
    block._recompute_options, block._recompute_offload = options, offload  # type: ignore[assignment]
