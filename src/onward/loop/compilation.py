"""Compiling the model of a run, where `torch_compile` asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from onward import engine, model_setup
from onward.arguments import option
from onward.arguments.optimization import BLOCKS
from onward.checkpoint.ranks import everyone
from onward.speed.buckets import BucketCollator
from onward.speed.compiling import Compilation, broken_compiler, missing_compiler

if TYPE_CHECKING:
    from torch import nn

    from onward.hooks.base import TrainerBase


def open_compilation(host: TrainerBase) -> Compilation | None:
    """How this run is compiled; None if nothing asks for it. Processes must call it together."""
    args = host.args
    if not args.torch_compile:
        return None
    backend, mode = args.torch_compile_backend, args.torch_compile_mode
    reason = missing_compiler(backend, args.device.type) or broken_compiler(backend, args.device)
    compilation = Compilation(
        f"{mode or 'default'} by {backend} on {args.device.type}",
        args.device,
        measures=bool(option(args, "torch_compile_fallback")),
        everyone=everyone,
    )
    if reasons := list(filter(None, everyone(reason))):
        compilation.give_up(f"{reasons[0]}. Repair that, or set torch_compile=False")
    return compilation


def compile_model(host: TrainerBase, model: nn.Module) -> None:
    """Compile block by block, where that is asked for; a whole model was compiled when accelerate prepared it.

    Raises:
        UsageError: the model has no blocks.
    """
    compilation = host._compilation
    if compilation is not None and compilation.chosen is not False and host.args.torch_compile_mode == BLOCKS:
        compilation.compile_blocks(engine.unwrapped(host.accelerator, model), host.args.torch_compile_backend)


def with_few_lengths(host: TrainerBase, collator: Any) -> Callable[[list[Any]], Any]:
    """The collator, padding to few lengths if the model is compiled and says how long its inputs may be."""
    base = model_setup.without_peft(engine.unwrapped(host.accelerator, host.model))
    if not host.args.torch_compile or not model_setup.is_pretrained(base):
        return collator  # type: ignore[no-any-return]
    config = base.config.get_text_config()
    known = (host.processing_class, getattr(host.data_collator, "tokenizer", None), config)
    pad_token = next((t for o in known if isinstance(t := getattr(o, "pad_token_id", None), int)), None)
    if pad_token is None:
        if not model_setup.is_causal_language_model(base):
            return collator  # type: ignore[no-any-return]  # a classifier may look for the last token that is no padding
        pad_token = 0
    longest = getattr(config, "max_position_embeddings", None)
    return BucketCollator(collator, pad_token, longest if isinstance(longest, int) else None)
