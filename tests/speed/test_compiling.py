"""Compiling as a whole and block by block: the same training, counted, and given up where it does not pay."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from onward import Trainer, TrainerCallback, TrainingArguments
from onward.errors import UsageError
from onward.speed import compiling
from onward.speed.compiling import Compilation, Compiled, missing_compiler, repeated_blocks
from tests.tiny import RegressionData, TinyRegression, pad_tokens, tiny_llama, token_data

# The compiler asks every tensor for its gradient, and hides the warning by a way that an error takes around.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),  # torch's own
]

# The eager backend traces and guards as any other, and needs no C++ compiler.
EAGER = {"torch_compile_backend": "eager"}
BLOCKS = {"torch_compile_mode": "blocks", **EAGER}


@pytest.fixture(autouse=True)
def _forget_what_was_compiled() -> Iterator[None]:
    yield
    torch.compiler.reset()


class Deep(nn.Module):
    """A plain module: `depth` equal layers and a head."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer() for _ in range(depth))
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        for layer in self.layers:
            x = layer(x)
        return {"loss": nn.functional.mse_loss(self.head(x).squeeze(-1), labels)}


class Layer(nn.Module):
    """A layer with parts of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.inner(x))


def trainer(folder: Path, model: nn.Module | None = None, **options: Any) -> Trainer:
    given: dict[str, Any] = {
        "max_steps": 3, "logging_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
        "per_device_train_batch_size": 4, "save_strategy": "no", "log_level": "info",
    }  # fmt: skip
    plain = model is not None and not hasattr(model, "config")
    data, collator = (RegressionData(64), None) if plain else (token_data(64, (4, 30)), pad_tokens)
    args = TrainingArguments(str(folder), **(given | options))
    return Trainer(model or tiny_llama(), args, collator, train_dataset=data)  # type: ignore[arg-type]


def losses(trained: Trainer) -> list[float]:
    return [line["loss"] for line in trained.state.log_history if "loss" in line]


def names(folder: Path) -> list[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return sorted(file.keys())


@pytest.mark.parametrize("way", [BLOCKS, EAGER, {"torch_compile_backend": "aot_eager"}], ids=str)
def test_trains_saves_and_evaluates_as_without(
    way: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = trainer(tmp_path / "plain", save_strategy="steps", save_steps=3)
    plain.train()
    compiled = trainer(tmp_path / "compiled", save_strategy="steps", save_steps=3, **way)
    compiled.args.eval_strategy, compiled.args.eval_steps = "steps", 2
    compiled.eval_dataset = token_data(8, (4, 30), seed=1)
    with caplog.at_level(logging.INFO, "onward"):
        metrics = compiled.train().metrics
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-5)
    assert metrics["train_compiled_graphs"] >= 1
    assert "graphs were compiled" in caplog.text
    assert names(tmp_path / "compiled" / "checkpoint-3") == names(tmp_path / "plain" / "checkpoint-3")
    assert compiled.evaluate()["eval_loss"] == pytest.approx(
        plain.evaluate(compiled.eval_dataset)["eval_loss"], rel=1e-5
    )
    assert all(module._compiled_call_impl is None for module in compiled.model.modules()), "blocks are given back"


@pytest.mark.slow
def test_inductor_gives_the_same_losses(tmp_path: Path) -> None:
    plain = trainer(tmp_path)
    plain.train()
    for mode in ("blocks", None):
        compiled = trainer(tmp_path, torch_compile=True, torch_compile_mode=mode, torch_compile_fallback=False)
        assert compiled.train().metrics["train_compiled_graphs"] >= 1
        assert losses(compiled) == pytest.approx(losses(plain), rel=1e-5)
        torch.compiler.reset()


def test_a_plain_module_by_blocks_compiles_once_however_deep(tmp_path: Path) -> None:
    graphs = []
    for depth in (2, 6):
        torch.compiler.reset()
        plain = trainer(tmp_path, Deep(depth))
        plain.train()
        blocks = trainer(tmp_path, Deep(depth), **BLOCKS, torch_compile_fallback=False)
        graphs.append(blocks.train().metrics["train_compiled_graphs"])
        assert losses(blocks) == pytest.approx(losses(plain), rel=1e-5)
    assert graphs[0] == graphs[1] >= 1


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # asked for by peft
def test_blocks_are_found_below_wrappers() -> None:
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(tiny_llama(num_hidden_layers=3), LoraConfig(target_modules=["q_proj"]))  # type: ignore[arg-type]
    assert [type(block).__name__ for block in repeated_blocks(wrapped)] == ["LlamaDecoderLayer"] * 3
    assert [type(block) for block in repeated_blocks(Deep())] == [Layer] * 3


def test_a_model_without_blocks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="without repeated blocks"):
        trainer(tmp_path, TinyRegression(), **BLOCKS).train()


class Breaks(Deep):
    """Interrupts its graph, once in each forward."""

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        torch._dynamo.graph_break()
        return super().forward(x, labels)


def test_breaks_and_recompiles_are_counted(tmp_path: Path) -> None:
    metrics = trainer(tmp_path, Breaks(), **EAGER, torch_compile_fallback=False).train().metrics
    assert metrics["train_graph_breaks"] >= 1
    # 18 samples in batches of 4: the last one has 2, another shape.
    data = RegressionData(18)
    short = trainer(tmp_path, Deep(), **EAGER, torch_compile_fallback=False, max_steps=5)
    short.train_dataset = data
    assert short.train().metrics["train_recompiles"] >= 1


# -- given up ---------------------------------------------------------------------------------------------------------


def test_without_a_compiler_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    assert missing_compiler("inductor", "cpu") is not None
    assert missing_compiler("eager", "cpu") is None
    for mode in (None, "blocks"):
        with caplog.at_level(logging.WARNING, "onward"):
            compiled = trainer(tmp_path, torch_compile=True, torch_compile_mode=mode)
            compiled.train()
        assert "no C++ compiler" in caplog.text
        caplog.clear()
    plain = trainer(tmp_path, TinyRegression())
    unable = trainer(tmp_path, TinyRegression(), torch_compile=True)
    for each in (plain, unable):
        each.train()
    assert losses(unable) == losses(plain)


BROKEN = """
import sys
from onward import Trainer, TrainingArguments
from tests.tiny import RegressionData, TinyRegression
args = TrainingArguments(sys.argv[1], max_steps=2, report_to="none", use_cpu=True, torch_compile=True)
print("trained", Trainer(TinyRegression(), args, train_dataset=RegressionData(16)).train().global_step)
"""


@pytest.mark.slow
def test_a_compiler_that_does_not_work_is_found_out(tmp_path: Path) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho no headers here >&2\nexit 1\n")
    broken.chmod(0o755)
    environment = {**os.environ, "CXX": str(broken), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", BROKEN, str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert "trained 2" in done.stdout, done.stdout + done.stderr
    assert "torch_compile is not used: compiling one line of code failed" in done.stderr


def chosen(compiled: float, plain: float, steps: int, compilation: Compilation | None = None) -> Compilation:
    """A compilation after `steps` steps of the given durations, in seconds."""
    compilation = compilation or Compilation("x", torch.device("cpu"), measures=True, everyone=lambda value: [value])
    clock = 0.0
    compilation._now = lambda: clock  # type: ignore[method-assign]
    for step in range(steps):
        with compilation.computing(step, nn.Identity(), {"x": torch.zeros(2)}):
            clock += compiled if compilation.on else plain
    return compilation


def test_the_faster_way_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "onward"):
        assert chosen(1.0, 2.0, compiling.TRIAL_STEPS).chosen is None
        assert chosen(1.0, 2.0, compiling.TRIAL_STEPS + 1).chosen is True
        assert "took 0.50 of the time" in caplog.text
        slower = chosen(3.0, 2.0, compiling.TRIAL_STEPS + 1)
    assert slower.chosen is slower.on is False
    assert "is not used from here on" in caplog.text
    assert "took 1.50 of the time" in caplog.text


def test_processes_choose_together_by_the_slowest() -> None:
    def everyone(mine: Any) -> list[Any]:
        return [mine, ({True: 20, False: 20}, {True: 9.0, False: 3.0})]

    compilation = Compilation("x", torch.device("cpu"), measures=True, everyone=everyone)
    assert chosen(1.0, 2.0, compiling.TRIAL_STEPS + 1, compilation).chosen is False


def test_the_choice_and_what_was_measured_for_it_go_into_a_checkpoint() -> None:
    def restored(state: dict[str, Any], name: str = "x") -> Compilation:
        fresh = Compilation(name, torch.device("cpu"), measures=True, everyone=lambda value: [value])
        fresh.load_state_dict(json.loads(json.dumps(state)))
        return fresh

    half = chosen(3.0, 2.0, 30)
    assert restored(half.state_dict()).state_dict() == half.state_dict()
    made = chosen(3.0, 2.0, compiling.TRIAL_STEPS + 1).state_dict()
    assert restored(made).chosen is False
    assert restored(made, "other").chosen is None


class Ways(TrainerCallback):
    """Keeps which way each step went."""

    def __init__(self, subject: Trainer) -> None:
        self.subject = subject
        self.taken: list[bool] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        assert self.subject._compilation is not None
        self.taken.append(self.subject._compilation.on)


@pytest.mark.parametrize("way", [BLOCKS, EAGER], ids=str)
def test_a_resumed_run_takes_the_same_ways(
    way: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "TRIAL_STEPS", 16)

    def run(costs: tuple[float, float], resume: int | None = None) -> tuple[list[bool], list[float]]:
        """Train by a clock on which a compiled and a plain micro-batch take that long."""
        now = [0.0]

        def clock(self: Compilation) -> float:
            now[0] += costs[0] if self.on else costs[1]
            return now[0]

        monkeypatch.setattr(Compilation, "_now", clock)
        saving = {"save_strategy": "steps", "save_steps": 5} if resume is None else {}
        subject = trainer(tmp_path, **way, max_steps=22, **saving)
        subject.train_dataset = token_data(88, 20)  # of one length, which is compiled once
        subject.add_callback(ways := Ways(subject))
        subject.train(resume_from_checkpoint=None if resume is None else str(tmp_path / f"checkpoint-{resume}"))
        return ways.taken, losses(subject)

    whole, curve = run((3.0, 1.0))
    assert whole == [True, False] * 8 + [False] * 6
    # Before the choice: the rest of the trial is the same, and what was measured before counts too.
    assert run((3.0, 1.0), 5) == (whole[5:], curve)
    # Behind it: a clock that says otherwise changes nothing.
    assert run((1.0, 3.0), 20) == (whole[20:], curve)


def test_compiled_counts_are_differences() -> None:
    before = Compiled.so_far()
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
    assert Compiled.so_far().since(before).graphs == 1
