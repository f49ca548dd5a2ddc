"""What is kept of a run: events as they happened, and everything that the run computed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

EVENTS = (
    "on_init_end",
    "on_train_begin",
    "on_train_end",
    "on_epoch_begin",
    "on_epoch_end",
    "on_step_begin",
    "on_substep_end",
    "on_pre_optimizer_step",
    "on_optimizer_step",
    "on_step_end",
    "on_log",
    "on_evaluate",
    "on_prediction_step",
    "on_predict",
    "on_save",
    "on_push_begin",
)

FLAGS = ("should_training_stop", "should_epoch_stop", "should_save", "should_evaluate", "should_log")


def exact(value: Any) -> Any:
    """`value` for JSON with nothing rounded: floats in hexadecimal, tensors and arrays as the hash of their bytes."""
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float | np.floating):
        return float(value).hex()
    if isinstance(value, np.integer | np.bool_):
        return value.item()
    if isinstance(value, torch.Tensor):
        return digest(value)
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}:{hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    if isinstance(value, dict):
        return {str(key): exact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [exact(item) for item in value]
    return str(value)


def digest(tensor: torch.Tensor) -> str:
    """Type, shape and sha256 of the bytes of `tensor`."""
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8) if tensor.numel() else tensor.detach()
    return f"{tensor.dtype}{list(tensor.shape)}:{hashlib.sha256(data.numpy().tobytes()).hexdigest()}"


def standing(model: Any, optimizer: Any) -> list[Any]:
    """A weight, its gradient and the learning rate, which tell on which side of the optimizer's step an event is."""
    weight = next((part for part in model.parameters() if part.requires_grad), None) if model is not None else None
    gradient = None if weight is None or weight.grad is None else digest(weight.grad)[-8:]
    rate = None if optimizer is None else exact(float(optimizer.param_groups[0]["lr"]))
    return [None if weight is None else digest(weight)[-8:], gradient, rate]


def recorder(base: type) -> Any:
    """A callback derived from `base` that keeps every event with step, epoch and control flags in `.trace`."""

    def listener(event: str) -> Any:
        def heard(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.trace.append(
                {
                    "event": event,
                    "step": state.global_step,
                    "epoch": exact(float(state.epoch or 0)),
                    "flags": [flag for flag in FLAGS if getattr(control, flag)],
                    "given": sorted(key for key, value in kwargs.items() if value is not None),
                    "random": digest(torch.get_rng_state())[-8:],
                    "stand": standing(kwargs.get("model"), kwargs.get("optimizer")),
                }
            )

        return heard

    def started(self: Any) -> None:
        self.trace = []

    members: dict[str, Any] = {event: listener(event) for event in EVENTS}
    return type("Recorder", (base,), {**members, "__init__": started})()


def run_record(trainer: Any, output: Any, trace: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything comparable about a finished run."""
    # transformers' printer takes this figure out of the metrics that `train` returns; it is compared in `log_history`.
    metrics = {key: value for key, value in output.metrics.items() if key != "total_flos"}
    return {
        "log_history": exact(trainer.state.log_history),
        "train_output": {
            "global_step": output.global_step,
            "training_loss": exact(output.training_loss),
            "metrics": exact(metrics),
        },
        "weights": {name: digest(tensor) for name, tensor in trainer.model.state_dict().items()},
        "events": trace,
        "checkpoints": checkpoints(Path(trainer.args.output_dir)),
    }


def checkpoints(folder: Path) -> dict[str, Any]:
    """Names of the files and the content of `trainer_state.json` of every checkpoint in `folder`."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("checkpoint-*")):
        if path.is_dir():
            state = json.loads((path / "trainer_state.json").read_text())
            best = state.get("best_model_checkpoint")
            state["best_model_checkpoint"] = Path(best).name if best else None
            files = sorted(str(item.relative_to(path)) for item in path.rglob("*") if item.is_file())
            found[path.name] = {"files": files, "state": exact(state)}
    return found
