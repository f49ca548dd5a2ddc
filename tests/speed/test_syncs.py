"""That the host waits for an accelerator at log lines only, on a device that has no values to wait for.

The meta device stands in for an accelerator: a run takes the branches of one, its kernels do nothing, and every value
that the host asks for comes past `Asked`, which notes it and makes one up. What depends on values in other ways (a
shape from a mask, for one) is an error there.
"""

from __future__ import annotations

import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from onward import Trainer, TrainerCallback, TrainingArguments
from onward.speed.padding_free import as_row
from tests.tiny import pad_tokens, tiny_llama, token_data

META = torch.device("meta")


def _place(name: str) -> str:
    """The lines that led to a question, for the message of a test that fails."""
    stack = traceback.extract_stack()
    return name + " at " + " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in stack[-3:-12:-1])


class Asked(TorchDispatchMode):
    """Notes what the host asks the device for, and says 1."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in ("_fused_adamw_", "_fused_adam_"):  # has no kernel for this device, and waits for none
            return None
        if name == "_local_scalar_dense" and args[0].device == META:
            self.found.append(_place(name))
            return True if args[0].dtype == torch.bool else 1
        if name == "_to_copy" and args[0].device == META and torch.device(kwargs.get("device") or META).type == "cpu":
            self.found.append(_place(name))
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if name == "copy_" and args[0].device.type == "cpu" and args[1].device == META:
            self.found.append(_place(name))
            return args[0]
        return func(*args, **kwargs)


class Steps(TrainerCallback):
    """What the host asked for from the end of one step to the end of the next; log lines come behind an end."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.ends: list[int] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(len(self.asked.found))

    def between(self) -> list[str]:
        return self.asked.found[self.ends[0] : self.ends[-1]]


@pytest.fixture
def no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets training run on the meta device."""
    found = TrainingArguments.device.fget  # sets up the process

    def device(args: TrainingArguments) -> torch.device:
        assert found is not None
        assert found(args).type == "cpu"
        return META

    monkeypatch.setattr(TrainingArguments, "device", property(device))
    monkeypatch.setattr(accelerate.Accelerator, "device", META)
    monkeypatch.setattr(sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: ["meta"])
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)  # knows no autocast for this device
    monkeypatch.setattr(torch, "autocast", lambda kind, **_: nullcontext())


@pytest.mark.parametrize("asked", [(False, False), (True, False), (False, True), (True, True)])
def test_the_host_asks_at_log_lines_only(tmp_path: Path, no_values: None, asked: tuple[bool, bool]) -> None:
    args = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=4,
        logging_steps=4, save_strategy="no", report_to="none", disable_tqdm=True, padding_free=asked[0],
        chunked_loss=asked[1], use_cpu=True,
    )  # fmt: skip
    with Asked() as mode:
        steps = Steps(mode)
        trainer = Trainer(
            tiny_llama(), args, data_collator=pad_tokens, train_dataset=token_data(32, (3, 20)), callbacks=[steps]
        )
        trainer.train()
    assert (trainer._shortcuts is not None) == any(asked)
    if trainer._shortcuts is not None:
        assert (trainer._shortcuts.packing.taken, trainer._shortcuts.chunking.taken) == asked
    assert len(steps.ends) == 4
    between = steps.between()
    if not asked[0]:  # of a padded batch the model itself asks whether it can do without a mask
        between = [place for place in between if "masking_utils.py" not in place]
    assert between == []
    assert len(mode.found) > steps.ends[-1], "nothing was asked for at the log line, so nothing would be noticed"


def test_a_batch_that_was_not_moved_by_the_loader_is_asked_for_its_lengths() -> None:
    batch = {name: value.to(META) for name, value in pad_tokens(token_data(2, (3, 5))).items()}
    with Asked() as mode:
        as_row(batch)
    assert len(mode.found) == 1
