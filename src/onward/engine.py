"""What knows accelerate: devices, processes, precision; sharding stands in `engine_sharding`."""

from __future__ import annotations

import atexit
import functools
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from onward.arguments.checks import flag_in_environment
from onward.arguments.devices import environment_kept
from onward.arguments.optimization import BLOCKS
from onward.data.ahead import Transfer
from onward.engine_sharding import settle_sharding, sharding_plugin
from onward.errors import NotSupported, UsageError, did_you_mean
from onward.gather.nests import leaves
from onward.onhost import keep_mask
from onward.speed.compiling import missing_compiler

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

logger = logging.getLogger(__name__)


def create_accelerator(args: Any, options: Callable[..., dict[str, Any]]) -> Accelerator:
    """Make the accelerator that a run trains with.

    Gradient accumulation is the loop's own business, so accelerate is told that there is none.

    Args:
        args: training arguments.
        options: from settings of loaders and accumulation to all keywords of `Accelerator`, see `accelerator_options`.

    Raises:
        UsageError: contradictory accumulation settings.
        NotSupported: a kind of parallelism is asked for that onward does not have.
    """
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin

    _ = args.device  # sets up the processes, which resets accelerate's state: it must come first
    settings = args.accelerator_config.to_dict()
    accumulation = dict(settings.pop("gradient_accumulation_kwargs", None) or {})
    if "num_steps" in accumulation:
        if args.gradient_accumulation_steps > 1:
            raise UsageError(
                f"Accumulation is set twice: accelerator_config's num_steps is {accumulation['num_steps']} and "
                f"gradient_accumulation_steps is {args.gradient_accumulation_steps}. Set only "
                "gradient_accumulation_steps."
            )
        args.gradient_accumulation_steps = accumulation["num_steps"]
    accumulation["num_steps"] = 1

    if not settings.get("use_seedable_sampler", True):
        logger.warning(
            "accelerator_config's use_seedable_sampler=False has no effect: the order of samples is always a function "
            "of seed and epoch, so that a run can resume exactly."
        )
    loader_names = ("split_batches", "dispatch_batches", "even_batches", "use_seedable_sampler", "non_blocking")
    loaders = DataLoaderConfiguration(**{k: settings.pop(k) for k in loader_names if k in settings})
    loaders.data_seed = args.data_seed
    _refuse_parallelism(args)
    # accelerate writes into it, and the next trainer of this process would be sharded by that.
    with environment_kept("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING"):
        keywords = options(
            dataloader_config=loaders,
            gradient_accumulation_plugin=GradientAccumulationPlugin(**accumulation),
            fsdp_plugin=sharding_plugin(args),
        )
        accelerator = Accelerator(**keywords)
    settle_sharding(accelerator, keywords.get("fsdp_plugin"))
    if accelerator.num_processes > 1:
        atexit.unregister(_let_gloo_finish)
        atexit.register(_let_gloo_finish)
    return accelerator


def _let_gloo_finish() -> None:
    """Leave gloo's threads a moment in which to free what they hold, before the interpreter goes.

    Behind an exchange such a thread frees tensors that Python knows, for which it needs the interpreter's lock. One
    that gets it only while the interpreter goes aborts the process, and a launcher takes a run that had come to its end
    for a failed one. The threads cannot be joined: the model's wrapper keeps the group.
    """
    import torch.distributed as dist

    if dist.is_initialized() and dist.get_backend() == "gloo":
        time.sleep(0.1)


def accelerator_options(args: Any, model: nn.Module | None) -> dict[str, Any]:
    """Keywords of `Accelerator` that follow from the arguments; `model` decides on ``find_unused_parameters``."""
    return {
        "mixed_precision": args.mixed_precision,
        "kwargs_handlers": [_ddp_settings(args, model)],
        "dynamo_plugin": _compilation(args),
    }


def _refuse_parallelism(args: Any) -> None:
    """Say no to what a stock transformers.TrainingArguments asks in its own attributes."""
    asked = [
        name
        for name, is_asked in (
            ("DeepSpeed", getattr(args, "deepspeed", None) or flag_in_environment("ACCELERATE_USE_DEEPSPEED")),
            ("parallelism_config", _shards(getattr(args, "parallelism_config", None))),
        )
        if is_asked
    ]
    if asked:
        raise NotSupported(
            f"onward trains on one device, with DistributedDataParallel or with FSDP2; the arguments or the launcher "
            f"ask for {' and '.join(asked)}. Launch without (accelerate launch --multi_gpu, or torchrun), and shard a "
            "large model with fsdp=True."
        )


def _shards(config: Any) -> bool:
    """Whether a parallelism configuration of accelerate does more than copy the model to every process."""
    return any(getattr(config, f"{way}_enabled", False) for way in ("tp", "cp", "sp", "dp_shard"))


def _compilation(args: Any) -> Any:
    """How accelerate compiles the model; `None` where it does not, or cannot."""
    if not args.torch_compile:
        return None
    from accelerate.utils import DynamoBackend, TorchDynamoPlugin

    backends = [backend.value.lower() for backend in DynamoBackend]
    if args.torch_compile_backend.lower() not in backends:
        raise UsageError(
            f"torch_compile_backend got {args.torch_compile_backend!r}; expected one of {', '.join(backends)}."
            f"{did_you_mean(args.torch_compile_backend, backends)}"
        )
    # Blocks are compiled by `onward.speed.compiling`; what is missing is said when training begins.
    if args.torch_compile_mode == BLOCKS or missing_compiler(args.torch_compile_backend, args.device.type):
        return None
    return TorchDynamoPlugin(backend=args.torch_compile_backend, mode=args.torch_compile_mode)


def allow_precision(precision: str) -> None:
    """Forget accelerate's precision if it is another one: it is fixed for the process, but trials may differ in it."""
    from accelerate.state import AcceleratorState

    if AcceleratorState._shared_state.get("_mixed_precision", precision) != precision:
        AcceleratorState._reset_state()


def _ddp_settings(args: Any, model: nn.Module | None) -> Any:
    from accelerate.utils import DistributedDataParallelKwargs

    find_unused = args.ddp_find_unused_parameters
    if find_unused is None:
        # Looking for unused parameters breaks activation checkpointing, and models of transformers have none.
        checkpointing = getattr(model, "is_activation_checkpointing", None)
        if checkpointing is None:  # its name before transformers 5
            checkpointing = getattr(model, "is_gradient_checkpointing", None)
        find_unused = True if checkpointing is None else not (checkpointing or args.activation_checkpointing)
    given = {
        "bucket_cap_mb": args.ddp_bucket_cap_mb,
        "broadcast_buffers": args.ddp_broadcast_buffers,
        "static_graph": args.ddp_static_graph,
    }
    return DistributedDataParallelKwargs(
        find_unused_parameters=find_unused, **{k: v for k, v in given.items() if v is not None}
    )


def gather_function(accelerator: Accelerator, use_gather_object: bool) -> Callable[[Any], Any]:
    """accelerate's gathering that drops the duplicates which filled up the last batch.

    One process has none. There accelerate would still cut everything, at any depth, to the number of samples in the
    last batch: the boxes of each image, and as an object a tuple of outputs. So it gets only tensors, of which the
    losses are repeated for a full batch. As objects, several outputs are gathered one by one, or those of all processes
    would be chained without telling which is which.
    """
    gather: Callable[..., Any] = accelerator.gather_for_metrics
    if accelerator.num_processes == 1:
        return functools.partial(_gather_tensor, gather)
    if use_gather_object:
        return functools.partial(_gather_objects, functools.partial(gather, use_gather_object=True))
    return gather


def _gather_tensor(gather: Callable[[Any], Any], nest: Any) -> Any:
    return gather(nest) if isinstance(nest, torch.Tensor) else nest


def _gather_objects(gather: Callable[[Any], Any], nest: Any) -> Any:
    return tuple(map(gather, nest)) if isinstance(nest, tuple) else gather(nest)


def sums_over_processes(accelerator: Accelerator) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """A function that sums a tensor over processes, or `None` if there is only one."""
    if accelerator.num_processes == 1:
        return None

    def add(value: torch.Tensor) -> torch.Tensor:
        summed: torch.Tensor = accelerator.reduce(value.to(accelerator.device), reduction="sum")
        return summed

    return add


def mover(accelerator: Accelerator, non_blocking: bool) -> Callable[[Any], Any] | None:
    """A function that puts a batch on the training device; `None` on CPU, where batches already are.

    On a GPU it is a `Transfer` beside the training; `non_blocking` then needs batches in page-locked memory.
    """
    if accelerator.device.type == "cpu":
        return None
    from accelerate.utils import send_to_device

    def send(batch: Any) -> Any:
        moved = send_to_device(batch, device=accelerator.device, non_blocking=non_blocking)
        keep_mask(batch, moved)
        return moved

    return SideStream(accelerator.device, send) if accelerator.device.type == "cuda" else send


class SideStream(Transfer):
    """Copies batches to a GPU on a stream of its own.

    The stream that trains waits on the GPU for a copy before it uses it, and the host waits for neither.
    """

    def __init__(self, device: torch.device, send: Callable[[Any], Any]) -> None:
        """`send` copies a batch to `device` on the current stream."""
        self.device = device
        self.send = send
        self.stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def start(self, batch: Any) -> Any:
        """Queue the copies."""
        # A collator may have made the batch on the GPU: it must be there before it is copied.
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            moved = self.send(batch)
        return moved, self.stream.record_event()

    def finish(self, started: Any) -> Any:
        """Let the current stream wait for the copies."""
        moved, copied = started
        current = torch.cuda.current_stream(self.device)
        current.wait_event(copied)
        for tensor in leaves(moved):
            if isinstance(tensor, torch.Tensor) and tensor.is_cuda:
                # Its memory belongs to the side stream, which would hand it out again before this one is done with it.
                tensor.record_stream(current)
        return moved


def is_gathered_by_dispatch(accelerator: Accelerator) -> bool:
    """Whether accelerate itself splits or dispatches batches, which only its own loaders can do."""
    return bool(accelerator.dispatch_batches or accelerator.split_batches)


def place(data: Any, device: torch.device, inner: Callable[[Any], Any] | None = None) -> Any:
    """Move the tensors in nested mappings and sequences to `device`; `inner` does it for the members, where given."""
    if isinstance(data, torch.Tensor):
        return data if data.device == device else data.to(device)
    if inner is None:
        if type(data) is dict:  # at every micro-batch, whose tensors are there already
            return {
                k: v if type(v) is torch.Tensor and v.device == device else place(v, device) for k, v in data.items()
            }
        inner = functools.partial(place, device=device)
    if hasattr(data, "items") and hasattr(data, "keys"):  # BatchEncoding and other mappings, too
        return type(data)({k: inner(v) for k, v in data.items()})
    if isinstance(data, tuple | list):
        if hasattr(data, "_fields"):
            return type(data)(*(inner(v) for v in data))
        return type(data)(inner(v) for v in data)
    return data


class Ways:
    """What of a step depends on the accelerator, settled when a run begins.

    Each of these questions leads through several of accelerate's objects, and a step asks them at every micro-batch.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.several: bool = accelerator.num_processes > 1
        """Whether there are other processes."""
        self._accelerator = accelerator
        self._only_divides = (
            type(accelerator).__module__ == "accelerate.accelerator"
            and accelerator.scaler is None
            and accelerator.gradient_accumulation_steps == 1
            and str(getattr(accelerator.distributed_type, "value", "")) in ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP")
        )

    def backward(self, loss: torch.Tensor, options: dict[str, Any]) -> None:
        """Run backward through the accelerator, or past it where it would only divide the loss by 1 before."""
        # People put a `backward` of their own in the place of accelerate's.
        if self._only_divides and not options and "backward" not in vars(self._accelerator):
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            self._accelerator.backward(loss, **options)


def unwrapped(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """The module below DDP and compile wrappers."""
    module: nn.Module = accelerator.unwrap_model(model, keep_torch_compile=False)
    return module


def prepared_to_evaluate(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """The model in the precision of evaluation, compiled if that is asked for.

    accelerate marks it as prepared, and would leave it without DistributedDataParallel when training comes: each
    process would train for itself. So the mark goes where there are several.
    """
    prepared: nn.Module = accelerator.prepare_model(model, evaluation_mode=True)
    if accelerator.num_processes > 1:
        model._is_accelerate_prepared = False  # type: ignore[assignment]
    return prepared


def empty_cache() -> None:
    """Give cached memory of the accelerator back to the driver."""
    if torch.accelerator.is_available():
        torch.accelerator.memory.empty_cache()


def devices_of(model: nn.Module) -> set[str]:
    """Accelerators that a model was spread over when it was loaded; empty for a model on one device."""
    places = getattr(model, "hf_device_map", None) or {}
    return {str(place) for place in places.values() if place not in ("cpu", "disk")}
