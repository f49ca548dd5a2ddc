"""Tensors to a file in the format of safetensors, through any file object.

The library only writes to a path, through the page cache. The format is a length (8 bytes, little-endian), a JSON
header and the tensors' bytes (https://huggingface.co/docs/safetensors); the library is asked what the types are called.
"""

from __future__ import annotations

import ctypes
import functools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from onward.checkpoint.sink import Create

_ALIGN = 8


def write_safetensors(tensors: Mapping[str, torch.Tensor], path: Path, create: Create) -> None:
    """Write contiguous tensors that share no memory.

    Raises:
        TypeError: a tensor is of a type that the format does not know.
    """
    assert sys.byteorder == "little", "the format is little-endian, and so is every machine that torch is built for"
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    # Large elements first, so that every tensor is aligned to its elements.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _name_of(tensor.dtype), "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGN)
    with create(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            here = tensor.detach().cpu()  # what is copied from an accelerator has to outlive the writing
            file.write(_memory_of(here))


def _memory_of(tensor: torch.Tensor) -> Any:
    """Of a contiguous tensor, without a reference to it. Numpy's view would keep it from ever being resized again."""
    count = tensor.numel() * tensor.element_size()
    return (ctypes.c_char * count).from_address(tensor.data_ptr()) if count else b""


@functools.cache
def _name_of(dtype: torch.dtype) -> str:
    from safetensors.torch import save

    try:
        written = save({"one": torch.empty(1, dtype=dtype)})
    except (KeyError, ValueError, RuntimeError) as error:
        raise TypeError(f"safetensors stores no tensors of {dtype}; register them with persistent=False.") from error
    entry = json.loads(written[8 : 8 + int.from_bytes(written[:8], "little")])["one"]
    if entry["shape"] != [1]:
        raise TypeError(f"tensors of {dtype}, which share bytes, cannot be saved; register them with persistent=False.")
    return str(entry["dtype"])
