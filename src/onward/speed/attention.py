"""Causal attention within each of several sequences that stand in one row, for models of transformers.

Registered with transformers under `NAME`. A model that attends through transformers' interface hands on the keyword
arguments of its forward, so the sequences' boundaries reach `attend`, also when a block is computed again for
activation checkpointing. No mask is made: `NAME` is unknown to transformers' mask interface.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from onward.onhost import on_host

NAME = "onward_packed"

_UNSUPPORTED = ("softcap", "s_aux", "sinks", "position_bias", "head_mask", "cache")
SHORT = 256
"""Tokens up to which a sequence in half precision is attended to in float32 on a CPU.

There float32 takes no longer, and oneDNN keeps hundreds of kilobytes for every shape of a product in half precision:
with sequences of any length, a process would grow by tens of megabytes a step.
"""

_BY_BOUNDARIES = ("flash_attention_2", "flash_attention_3", "flash_attention_4")


class CannotAttendError(RuntimeError):
    """The model asks for an attention that cannot be computed sequence by sequence."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend within each sequence, causally.

    Args:
        module: the attention layer.
        query: (1, heads, tokens, width).
        key: (1, key heads, tokens, width).
        value: (1, key heads, tokens, width).
        attention_mask: None; the boundaries stand in for it.
        options: of transformers' attention functions; among them ``cu_seq_lens_q``, the boundaries.

    Returns:
        (1, tokens, heads, width), and None for the weights.

    Raises:
        CannotAttendError: the boundaries did not arrive, or the layer wants more than causal or sliding attention.
    """
    bounds = options.get("cu_seq_lens_q")
    asked = [name for name in _UNSUPPORTED if options.get(name) is not None]
    if bounds is None or attention_mask is not None or options.get("is_causal") is False or asked:
        got = asked or ["no boundaries" if bounds is None else "a mask of its own"]
        raise CannotAttendError(f"attention of {type(module).__name__} with {', '.join(got)}")
    if query.shape[2] != key.shape[2]:
        raise CannotAttendError(f"attention of {type(module).__name__} to {key.shape[2]} of {query.shape[2]} tokens")
    dropout, scale = options.get("dropout", 0.0), options.get("scaling")
    window = options.get("sliding_window")
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and not dropout and query.shape[-1] <= 256:
        return _by_kernel(query, key, value, options), None
    is_half = query.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled("cpu")
    small = SHORT if query.device.type == "cpu" and is_half else 0
    sizes = on_host(bounds).diff().tolist()
    groups = query.shape[1] != key.shape[1]

    def one(size: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        band = None if window is None or size <= window else _band(size, window, q.device)
        return scaled_dot_product_attention(
            q, k, v, attn_mask=band, is_causal=band is None, dropout_p=dropout, scale=scale, enable_gqa=groups
        )

    parts = []
    pieces = zip(sizes, *(part.split(sizes, 2) for part in (query, key, value)), strict=True)  # type: ignore[no-untyped-call]
    for size, q, k, v in pieces:
        if size > small:
            parts.append(one(size, q, k, v))
            continue
        with torch.autocast("cpu", enabled=False):  # it would make half precision of them again
            parts.append(one(size, q.float(), k.float(), v.float()).to(query.dtype))
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _by_kernel(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    window = options.get("sliding_window")
    longest = options["max_length_q"]
    q, k, v = (part.squeeze(0).transpose(0, 1) for part in (query, key, value))
    bounds = options["cu_seq_lens_q"]
    found = varlen_attn(
        q, k, v, bounds, bounds, longest, longest,
        scale=options.get("scaling"),
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    assert isinstance(found, Tensor), "no auxiliary output was asked for"
    return found.unsqueeze(0)


def _band(size: int, window: int, device: torch.device) -> Tensor:
    """Which of the last `window` tokens each token sees, itself included: (size, size)."""
    full = torch.ones(size, size, dtype=torch.bool, device=device)
    return full.tril().triu(1 - window)


def configs_of(model: nn.Module) -> list[Any]:
    """The distinct configurations among a model's modules: each names the attention of its layers."""
    found = {id(c): c for module in model.modules() if hasattr(c := getattr(module, "config", None), "to_dict")}
    return list(found.values())


def way_of(configs: list[Any]) -> str | None:
    """How a row of several sequences is attended to: `NAME`, the model's own kernel, or None where it cannot be.

    Flash attention takes boundaries itself. Eager attention is given a block-diagonal mask by transformers, which sees
    from restarting positions where sequences begin.
    """
    names = {getattr(config, "_attn_implementation", None) for config in configs} - {None}
    if len(names) != 1:
        return None
    (name,) = names
    if name == "sdpa":
        return NAME
    return name if name in (*_BY_BOUNDARIES, "eager") else None


@contextmanager
def attending(configs: list[Any], name: str) -> Iterator[None]:
    """Let the layers of these configurations attend through `name`; backward belongs inside too."""
    if name != NAME:
        yield
        return
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    before = [config._attn_implementation_internal for config in configs]
    try:
        for config in configs:
            config._attn_implementation_internal = NAME
        yield
    finally:
        for config, kept in zip(configs, before, strict=True):
            config._attn_implementation_internal = kept
