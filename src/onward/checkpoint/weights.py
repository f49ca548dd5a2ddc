"""Weights of a model to a folder and back: transformers' and PEFT's models by their own `save_pretrained`, any other
module as safetensors (with shards and an index over `max_shard_size`).

Tensors that share memory (tied weights) are stored once, under the first of their names; on the way back they share
it again. (Nothing about it is put into the file's metadata, which safetensors writes in random order: saves of equal
weights shall be equal files.)
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from onward.checkpoint import buffers, layout, parts, structure
from onward.checkpoint.sink import Create, create_plain
from onward.checkpoint.tensors import write_safetensors
from onward.errors import BrokenCheckpoint
from onward.sharding import class_of, local

logger = logging.getLogger(__name__)
DEFAULT_SHARD = "50GB"
"""transformers' own limit, which a `save_pretrained` need not be told; one that somebody wrote may not take it."""
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class LoadResult(NamedTuple):
    """Names that the model has and the file lacks, and the other way round (as `nn.Module.load_state_dict` returns)."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def is_pretrained(model: nn.Module) -> bool:
    """True for a `transformers.PreTrainedModel`; imports nothing (without transformers loaded there can be none)."""
    module = sys.modules.get("transformers.modeling_utils")
    return module is not None and isinstance(model, module.PreTrainedModel)


def is_peft(model: nn.Module) -> bool:
    """True for a `peft.PeftModel`, but not for a mixed one, which cannot save its adapters; imports nothing."""
    module = sys.modules.get("peft")
    return module is not None and isinstance(model, module.PeftModel)


def can_save_a_copy(model: nn.Module) -> bool:
    """True when `save_weights` with a copied state dict looks at no live weight of the model.

    PEFT's adapters, quantized and partly offloaded models do, and a class with a `save_pretrained` of its own may.
    """
    if is_peft(model):
        return False
    if not is_pretrained(model):
        return True
    unusual = ("hf_quantizer", "hf_device_map")
    if getattr(model, "_hf_peft_config_loaded", False) or any(getattr(model, name, None) for name in unusual):
        return False
    own: str = class_of(model).save_pretrained.__module__  # type: ignore[attr-defined]
    return own == "transformers.modeling_utils"


def save_weights(
    model: nn.Module,
    folder: Path,
    state_dict: Mapping[str, Any] | None = None,
    max_shard_size: str | int = DEFAULT_SHARD,
    is_main_process: bool = True,
    create: Create = create_plain,
) -> None:
    """Write a model's weights (and its configuration, where it has one) into `folder`.

    Args:
        model: the unwrapped model.
        folder: where to; created if need be.
        state_dict: weights to write instead of the model's current ones.
        max_shard_size: a file grows no larger than this (``"50GB"``, or bytes) unless one tensor is larger.
        is_main_process: False on ranks that only take part in gathering.
        create: opens the files (not those of transformers and PEFT, which open theirs themselves).
    """
    if is_pretrained(model) or is_peft(model):
        # `save_pretrained` takes entries out of the dict that it is given.
        given = None if state_dict is None else dict(state_dict)
        own_limit = is_pretrained(model) and max_shard_size != DEFAULT_SHARD
        extra = {"max_shard_size": max_shard_size} if own_limit else {}
        with _no_progress_bar():
            model.save_pretrained(os.fspath(folder), state_dict=given, is_main_process=is_main_process, **extra)  # type: ignore[operator]
    elif is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(model.state_dict() if state_dict is None else state_dict, folder, max_shard_size, create)


def saved_entries(model: nn.Module, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entries of a state dict that `save_weights` looks at: of a PEFT model its adapters and embeddings."""
    if not is_peft(model):
        return state
    from peft import get_peft_model_state_dict

    wanted: set[int] = set()
    for name in model.peft_config:  # type: ignore[union-attr]
        # With the embeddings: whether they have grown, and are saved, PEFT finds out when it saves.
        found = get_peft_model_state_dict(model, dict(state), name, save_embedding_layers=True)
        wanted |= set(map(id, found.values()))
    if not wanted <= set(map(id, state.values())):  # this kind of adapter computes what it saves
        return state
    return {name: value for name, value in state.items() if id(value) in wanted}


def save_tensors(
    state: Mapping[str, Any], folder: Path, max_shard_size: str | int = DEFAULT_SHARD, create: Create = create_plain
) -> None:
    """Write a state dict as ``model.safetensors`` or shards; one with more than tensors as ``pytorch_model.bin``."""
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        parts.write_torch(dict(state), folder / layout.WEIGHTS_BIN, create)
        return
    tensors = _separate(state)
    shards = _split(tensors, parse_size(max_shard_size))
    if len(shards) == 1:
        write_safetensors(tensors, folder / layout.WEIGHTS, create)
        return
    where: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = layout.shard_name(number, len(shards))
        write_safetensors({name: tensors[name] for name in names}, folder / file, create)
        where.update(dict.fromkeys(names, file))
    total = sum(_bytes(tensor) for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / layout.WEIGHTS_INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_weights(model: nn.Module, folder: Path) -> LoadResult:
    """Load a checkpoint's weights into `model`, in place.

    Raises:
        BrokenCheckpoint: there are no weights in the folder.
    """
    if is_peft(model) and not (folder / layout.WEIGHTS).exists() and not (folder / layout.WEIGHTS_BIN).exists():
        return _load_adapters(model, folder)
    files = _weight_files(folder)
    if not files:
        raise BrokenCheckpoint(
            f"Can't find a valid checkpoint at {folder}: no weights for a {class_of(model).__name__}."
        )
    missing: set[str] | None = None
    unexpected: list[str] = []
    for file in files:  # one at a time: no more than one shard is in memory beside the model
        with buffers.fitted(model, _read(file)) as state:
            outcome = model.load_state_dict(state, strict=False)
        missing = set(outcome.missing_keys) if missing is None else missing & set(outcome.missing_keys)
        unexpected += outcome.unexpected_keys
    result = LoadResult(_without_twins(model, missing or set()), unexpected)
    if is_pretrained(model) and result.missing_keys and result.unexpected_keys:
        return _load_converted(model, folder, result)
    return result


def parse_size(size: str | int) -> int:
    """Return a size like ``"5GB"`` or ``"200MiB"`` in bytes."""
    if isinstance(size, int):
        return size
    text = size.strip().upper()
    for unit in sorted(_UNITS, key=len, reverse=True):
        if text.endswith(unit):
            return int(float(text.removesuffix(unit)) * _UNITS[unit])
    if text.isdigit():
        return int(text)
    raise ValueError(f"max_shard_size is {size!r}; expected bytes or a number with a unit, like '5GB' or '200MB'.")


def storage_key(tensor: torch.Tensor) -> tuple[str, int]:
    """Return what two tensors have in common exactly when they share memory."""
    return str(tensor.device), local(tensor).untyped_storage().data_ptr()


def _separate(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors without those that are another one under a second name; none of them shares memory."""
    kept: dict[str, torch.Tensor] = {}
    seen: dict[tuple[str, int], list[str]] = {}
    for name, tensor in state.items():
        if tensor.numel() == 0:
            kept[name] = tensor.contiguous()
            continue
        sharing = seen.setdefault(storage_key(tensor), [])
        if any(_identical(state[other], tensor) for other in sharing):
            continue
        # Another part of the same memory: the format stores no views, so this part becomes a tensor of its own.
        kept[name] = tensor.detach().clone().contiguous() if sharing else tensor.detach().contiguous()
        sharing.append(name)
    return kept


def _identical(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
    )


def _split(tensors: Mapping[str, torch.Tensor], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for name, tensor in tensors.items():
        if shards[-1] and used + _bytes(tensor) > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += _bytes(tensor)
    return shards


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _weight_files(folder: Path) -> list[Path]:
    for single, index in ((layout.WEIGHTS, layout.WEIGHTS_INDEX), (layout.WEIGHTS_BIN, layout.WEIGHTS_BIN_INDEX)):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            names = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values()
            return [folder / name for name in sorted(set(names))]
    return []


def _read(file: Path) -> dict[str, Any]:
    if file.suffix != ".safetensors":
        loaded: dict[str, Any] = parts.read_torch(file)
        return loaded
    from safetensors.torch import load_file

    return load_file(file)


def _without_twins(model: nn.Module, missing: set[str]) -> list[str]:
    """Return the missing names, except those whose tensor was loaded under another name."""
    if not missing:
        return []
    state = model.state_dict()
    loaded = [tensor for name, tensor in state.items() if name not in missing and isinstance(tensor, torch.Tensor)]
    places = set(map(_place, loaded))
    return sorted(
        name for name in missing if not isinstance(state.get(name), torch.Tensor) or _place(state[name]) not in places
    )


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return storage_key(tensor), local(tensor).data_ptr(), tensor.shape


def _load_converted(model: Any, folder: Path, result: LoadResult) -> LoadResult:
    """Load weights that transformers stores under other names than the module has (fused experts, say).

    Only `from_pretrained` knows that conversion, so a second model is made for a moment; where it too finds names
    missing, the plain result stands.
    """
    fresh, info = class_of(model).from_pretrained(  # type: ignore[attr-defined]
        folder, dtype=model.dtype, output_loading_info=True
    )
    if len(info["missing_keys"]) >= len(result.missing_keys):
        return result
    model.load_state_dict(fresh.state_dict(), strict=False)
    return LoadResult(sorted(info["missing_keys"]), sorted(info["unexpected_keys"]))


def _load_adapters(model: Any, folder: Path) -> LoadResult:
    from peft import load_peft_weights, set_peft_model_state_dict

    places = {path.name: path for path in structure.adapter_folders(folder)}
    if (folder / layout.ADAPTER).exists() or (folder / layout.ADAPTER_BIN).exists():
        places["default" if "default" in model.peft_config else _active_adapter(model)] = folder
    for name in list(places):
        if name not in model.peft_config:
            logger.warning("%s holds an adapter %r that the model does not have; it is not loaded.", folder, name)
            del places[name]
    if not places:
        raise BrokenCheckpoint(
            f"Can't find a valid checkpoint at {folder}: no weights for the adapters {sorted(model.peft_config)}."
        )
    unexpected: list[str] = []
    for name, place in places.items():
        outcome: Any = set_peft_model_state_dict(model, load_peft_weights(str(place), device="cpu"), adapter_name=name)
        unexpected += outcome.unexpected_keys
    return LoadResult([], unexpected)  # the frozen base model is "missing" by design


def _active_adapter(model: Any) -> str:
    active = model.active_adapter
    return str(active[0] if isinstance(active, list) else active)


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep "Writing model shards" off the screen, where it would cut through the training display."""
    logging_of = sys.modules.get("transformers.utils.logging")
    if logging_of is None or not logging_of.is_progress_bar_enabled():
        yield
        return
    logging_of.disable_progress_bar()
    try:
        yield
    finally:
        logging_of.enable_progress_bar()
