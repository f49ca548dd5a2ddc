"""What `fsdp` and `fsdp_config` ask for: torch's ``fully_shard`` (FSDP2), in the words of transformers."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.arguments.extras import option
from onward.arguments.resolve import FLAGS
from onward.errors import NotSupported, UnknownArgument, UsageError, did_you_mean

if TYPE_CHECKING:
    from onward.arguments.training_arguments import TrainingArguments

logger = logging.getLogger(__name__)

WRAP_POLICIES = ("TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP")
_RESHARD = {"full_shard": True, "shard_grad_op": False}
_FSDP1 = {
    "forward_prefetch": "FSDP2 fetches ahead by itself",
    "backward_prefetch": "FSDP2 fetches ahead by itself",
    "limit_all_gathers": "FSDP2 does so by itself",
    "use_orig_params": "FSDP2 always does",
    "sync_module_states": "all processes take the weights of the first one anyway",
}
"""Options of FSDP1, and what is done instead; their value does not matter."""
_OF_XLA = ("xla", "xla_fsdp_v2", "xla_fsdp_grad_ckpt", "xla_fsdp_settings")
_KNOWN = (
    "version", "reshard_after_forward", "cpu_offload", "auto_wrap_policy", "min_num_params",
    "transformer_layer_cls_to_wrap", "cpu_ram_efficient_loading", "activation_checkpointing", "state_dict_type",
    *_FSDP1, *_OF_XLA,
)  # fmt: skip


def resolve_sharding(args: TrainingArguments) -> None:
    """Settle `fsdp_plugin_args`, the keywords of accelerate's plugin; None where the model is not to be sharded.

    Raises:
        UsageError: a setting that cannot work, or does not exist.
        NotSupported: FSDP1, TPUs, or sharding together with what does not go with it.
    """
    args.fsdp_plugin_args = None
    if not args.fsdp:
        return
    config = args.fsdp_config = _read(args.fsdp_config)
    _check(config)
    for word in args.fsdp.split() if isinstance(args.fsdp, str) else args.fsdp if isinstance(args.fsdp, list) else ():
        _apply_word(getattr(word, "value", word), config)
    args.fsdp = True  # type: ignore[assignment]
    for name, default in (("min_num_params", 0), *((name, False) for name in _OF_XLA[:3])):
        config.setdefault(name, default)
    classes = config.get("transformer_layer_cls_to_wrap")
    if isinstance(classes, str):
        classes = config["transformer_layer_cls_to_wrap"] = [classes]
    args.fsdp_plugin_args = _plugin_args(config, classes)
    check_combinations(args)


def _read(given: Any) -> dict[str, Any]:
    """The configuration as a dictionary of its own, without the prefix that accelerate's files have."""
    if isinstance(given, str):
        try:
            given = json.loads(Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError) as problem:
            raise UsageError(f"fsdp_config got {given!r}; expected a dict or a JSON file: {problem}") from problem
    return {name.removeprefix("fsdp_"): value for name, value in (given or {}).items()}


def _check(config: dict[str, Any]) -> None:
    for name in config:
        if name not in _KNOWN:
            raise UnknownArgument(
                f"fsdp_config has the unknown key {name!r}; expected some of {', '.join(_KNOWN)}."
                f"{did_you_mean(name, _KNOWN)}"
            )
    if str(config.get("version", 2)) != "2":
        raise NotSupported(
            f"fsdp_config got version={config['version']!r}; onward shards with FSDP2 alone: leave the version out."
        )
    for name in _OF_XLA:
        if config.get(name):
            raise NotSupported(f"fsdp_config got {name}={config[name]!r}; onward does not run on TPUs: leave it out.")
    for name in _FSDP1.keys() & config.keys():
        logger.warning("fsdp_config's %s is an option of FSDP1 and has no effect: %s.", name, _FSDP1[name])
    policy = config.get("auto_wrap_policy", WRAP_POLICIES[0])
    if policy not in WRAP_POLICIES:
        raise UsageError(
            f"fsdp_config got auto_wrap_policy={policy!r}; expected one of {', '.join(WRAP_POLICIES)}."
            f"{did_you_mean(str(policy), WRAP_POLICIES)}"
        )
    if "SHARDED" in str(config.get("state_dict_type")).upper():
        logger.warning("fsdp_config's state_dict_type has no effect: checkpoints hold whole weights.")


def _apply_word(word: str, config: dict[str, Any]) -> None:
    """Put one word of a text like ``"full_shard auto_wrap"`` into the configuration."""
    if word in _RESHARD:
        config.setdefault("reshard_after_forward", _RESHARD[word])
    elif word == "offload":
        config.setdefault("cpu_offload", True)
    elif word in ("hybrid_shard", "hybrid_shard_zero2", "no_shard"):
        raise NotSupported(f"fsdp got {word!r}, which only FSDP1 has; use fsdp=True, or leave it out for no shards.")
    elif word != "auto_wrap":  # which policy wraps is the configuration's business
        known = (*_RESHARD, "offload", "auto_wrap")
        raise UsageError(f"fsdp got {word!r}; expected True, or some of {', '.join(known)}.{did_you_mean(word, known)}")


def _plugin_args(config: dict[str, Any], classes: list[str] | None) -> dict[str, Any]:
    policy = config.get("auto_wrap_policy", WRAP_POLICIES[0])
    settings: dict[str, Any] = {"fsdp_version": 2, "auto_wrap_policy": policy}
    if config.get("cpu_offload", False):
        settings["cpu_offload"] = True
    if policy == "SIZE_BASED_WRAP" and config["min_num_params"] > 0:
        settings["min_num_params"] = config["min_num_params"]
    elif policy == "TRANSFORMER_BASED_WRAP" and classes is not None:
        settings["transformer_cls_names_to_wrap"] = ",".join(classes)
    settings["cpu_ram_efficient_loading"] = _flag(config, "cpu_ram_efficient_loading", False)
    settings["state_dict_type"] = "FULL_STATE_DICT"
    if "activation_checkpointing" in config:
        settings["activation_checkpointing"] = _flag(config, "activation_checkpointing", False)
    settings["reshard_after_forward"] = _flag(config, "reshard_after_forward", True)
    return settings


def _flag(config: dict[str, Any], name: str, default: bool) -> bool:
    value = config.get(name, default)
    if str(value).lower() not in FLAGS:
        raise UsageError(f"fsdp_config got {name}={value!r}; expected True or False.")
    return FLAGS[str(value).lower()]


def check_combinations(args: Any) -> None:
    """Raise `NotSupported` for arguments that do not go together with a sharded model."""
    uneven = getattr(args.accelerator_config, "even_batches", True) is False
    for asked, name, remedy in (
        (args.torch_compile, "torch_compile", "leave it out"),
        (args.auto_find_batch_size, "auto_find_batch_size", "set per_device_train_batch_size to what fits"),
        (args.fp16_full_eval, "fp16_full_eval", "train with bf16=True"),
        (args.bf16_full_eval, "bf16_full_eval", "train with bf16=True"),
        (option(args, "padding_free") is True, "padding_free", "leave it out"),
        (option(args, "chunked_loss") is True, "chunked_loss", "leave it out"),
        (uneven, "accelerator_config's even_batches=False", "leave it out"),
    ):
        if asked:
            raise NotSupported(f"{name} does not work for a model that is sharded (fsdp): {remedy}, or do not shard.")
