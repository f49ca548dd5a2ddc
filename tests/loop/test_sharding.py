"""`fsdp=True` on two real processes (gloo): the same training as whole, checkpoints for any number of processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import pad_tokens, tiny_llama, token_data

from onward import Trainer, TrainingArguments

SCRIPT = Path(__file__).with_name("sharded.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
SLOW = (
    "one_after_the_other", "twice", "at_once", "left", "sgd", "adagrad", "rmsprop", "adamw_torch", "bf16", "recomputed",
    "recomputed_by_config", "handed_in", "generated",
)  # fmt: skip
CAME_OUT = Callable[[str], dict[str, Any]]


def launch(folder: Path, *names: str) -> None:
    done = subprocess.run([*TORCHRUN, str(folder), *names], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the scenarios ran, all in one launch."""
    made = tmp_path_factory.mktemp("sharded")
    from tests.loop.sharded import SCENARIOS

    launch(made, *(name for name in SCENARIOS if name not in SLOW))
    return made


@pytest.fixture(scope="module")
def came_out(folder: Path) -> CAME_OUT:
    return lambda name: torch.load(folder / f"{name}.pt", weights_only=True)


def assert_close(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert len(got["logs"]) == len(wanted["logs"]) > 0
    for line, expected in zip(got["logs"], wanted["logs"], strict=True):
        assert line == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert got["weights"].keys() == wanted["weights"].keys()
    for name, value in wanted["weights"].items():
        assert torch.allclose(got["weights"][name], value, rtol=0, atol=2e-6), name


def assert_equal(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert got["logs"] == wanted["logs"]
    for name, value in wanted["weights"].items():
        assert torch.equal(got["weights"][name], value), name


def test_shards_train_like_whole_weights(came_out: CAME_OUT) -> None:
    assert came_out("parts")["sharded"]
    assert not came_out("whole")["sharded"]
    assert_close(came_out("parts"), came_out("whole"))


def test_nothing_is_left_in_the_environment(came_out: CAME_OUT) -> None:
    assert came_out("parts")["environment"] == []


def test_a_resumed_run_is_the_same_to_the_bit(came_out: CAME_OUT) -> None:
    assert_equal(came_out("parts_resumed"), came_out("parts"))


def test_checkpoints_have_the_files_of_whole_weights(folder: Path, came_out: CAME_OUT) -> None:
    files = [sorted(each.name for each in (folder / name / "checkpoint-3").iterdir()) for name in ("whole", "parts")]
    assert files[0] == files[1]
    states = [torch.load(folder / name / "checkpoint-3" / "optimizer.pt") for name in ("whole", "parts")]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for number, values in states[0]["state"].items():
        for key, value in values.items():
            got = states[1]["state"][number][key]
            assert type(got) is torch.Tensor
            assert torch.allclose(got, value, atol=1e-6)


def test_processes_without_shards_go_on_from_them_and_the_other_way_round(came_out: CAME_OUT) -> None:
    assert_close(came_out("whole_from_parts"), came_out("whole"))
    assert_close(came_out("parts_from_whole"), came_out("whole"))


def test_one_process_goes_on_from_them(folder: Path, tmp_path: Path, came_out: CAME_OUT) -> None:
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, save_strategy="no", logging_steps=1, report_to="none", use_cpu=True,
        per_device_train_batch_size=12, disable_tqdm=True, learning_rate=1e-2, max_grad_norm=0.5, seed=7,
    )  # fmt: skip
    made = Trainer(tiny_llama(), args, train_dataset=token_data(36), data_collator=pad_tokens)
    made.train(resume_from_checkpoint=str(folder / "accumulated_parts" / "checkpoint-2"))
    losses = [line["loss"] for line in made.state.log_history if "loss" in line]
    assert losses == pytest.approx([line["loss"] for line in came_out("accumulated")["logs"]], rel=1e-5)
    for name, value in came_out("accumulated")["weights"].items():
        assert torch.allclose(made.model.state_dict()[name], value, rtol=0, atol=2e-6), name


def test_a_saved_model_is_read_by_from_pretrained(folder: Path, came_out: CAME_OUT) -> None:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder / "saved")
    assert model.config.architectures == ["LlamaForCausalLM"]
    for name, value in came_out("parts")["weights"].items():
        assert torch.equal(model.state_dict()[name], value), name


def test_the_launcher_switches_it_on(came_out: CAME_OUT) -> None:
    assert came_out("launched")["sharded"]
    assert_equal(came_out("launched"), came_out("parts"))


def test_evaluation_may_come_first(came_out: CAME_OUT) -> None:
    ways = came_out("evaluated_first")
    assert ways["parts"]["before"] == pytest.approx(ways["whole"]["before"], rel=1e-6)
    assert_close(ways["parts"], ways["whole"])


def test_accumulated_steps_are_the_same(came_out: CAME_OUT) -> None:
    assert_close(came_out("accumulated_parts"), came_out("accumulated"))


def test_weights_of_the_first_process_running_statistics_and_tied_weights(folder: Path, came_out: CAME_OUT) -> None:
    assert_close(came_out("normed_parts"), came_out("normed"))
    assert_equal(came_out("normed_parts_resumed"), came_out("normed_parts"))
    statistics = came_out("normed_parts")["statistics"]  # summed over processes
    assert torch.equal(came_out("normed_parts_resumed")["statistics"], statistics)
    assert torch.allclose(came_out("normed")["statistics"], statistics, atol=1e-6)
    sizes = [
        (folder / name / "checkpoint-3" / "model.safetensors").stat().st_size for name in ("normed", "normed_parts")
    ]
    assert sizes[0] == sizes[1], "tied weights are stored once"


@pytest.mark.parametrize("way", ["skipped", "rolled_back"])
def test_a_step_that_is_not_finite_on_one_process(way: str, came_out: CAME_OUT) -> None:
    assert_close(came_out(f"{way}_parts"), came_out(way))


def test_a_save_that_fails_on_the_first_process_leaves_nobody_waiting(came_out: CAME_OUT) -> None:
    assert came_out("full_disk")["saved"] == ["checkpoint-4", "checkpoint-6"]
    assert_equal(came_out("full_disk"), came_out("parts"))


def test_what_cannot_work_is_said_before_the_first_step(came_out: CAME_OUT) -> None:
    assert came_out("refused")["optimizer"].startswith("NotSupported: optim='adafactor'")
    assert came_out("refused")["shortcut"].startswith("NotSupported: chunked_loss")


def test_the_best_model_is_loaded_at_the_end(folder: Path, came_out: CAME_OUT) -> None:
    from safetensors.torch import load_file

    done = came_out("best")
    assert done["at"] == 1
    assert done["again"] == next(line["eval_loss"] for line in done["logs"] if "eval_loss" in line)
    saved = load_file(folder / "best" / f"checkpoint-{done['at']}" / "model.safetensors")
    for name, value in saved.items():
        assert torch.equal(done["weights"][name], value), name


def test_adapters(came_out: CAME_OUT) -> None:
    done = came_out("adapters_parts")
    assert "adapter_model.safetensors" in done["files"]
    assert done["files"] == came_out("adapters")["files"]
    assert_close(done, came_out("adapters"))
    assert_equal(came_out("adapters_parts_resumed"), done)
    assert done["saved"] == 10, "two matrices in two places of two layers, and the embeddings: nothing else is gathered"


def assert_pair(pair: dict[str, Any]) -> None:
    assert_close(pair["parts"], pair["whole"])
    assert_equal(pair["resumed"], pair["parts"])


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> CAME_OUT:
    """The scenarios that `make test` leaves out."""
    made = tmp_path_factory.mktemp("sharded_slow")
    launch(made, *SLOW)
    return lambda name: torch.load(made / f"{name}.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgd", "adamw_torch", "adagrad", "rmsprop", "recomputed"])
def test_more_ways_to_train(name: str, slow: CAME_OUT) -> None:
    assert_pair(slow(name))


@pytest.mark.slow
def test_half_precision(slow: CAME_OUT) -> None:
    pair = slow("bf16")
    assert_equal(pair["resumed"], pair["parts"])
    losses = [[line["loss"] for line in pair[way]["logs"]] for way in ("parts", "whole")]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert all(value.dtype is torch.float32 for value in pair["parts"]["weights"].values())
    assert pair["predicted"] == "float32"


@pytest.mark.slow
def test_recomputation_by_fsdp_config_is_the_argument_of_training(slow: CAME_OUT) -> None:
    assert_equal(slow("recomputed_by_config"), slow("recomputed")["parts"])


@pytest.mark.slow
def test_generation(slow: CAME_OUT) -> None:
    assert slow("generated")["tokens"] == slow("generated")["wanted"]


@pytest.mark.slow
def test_a_second_run_of_a_trainer_goes_on(slow: CAME_OUT) -> None:
    assert_equal(slow("twice"), slow("at_once"))


@pytest.mark.slow
def test_a_run_that_leaves_in_the_middle_of_a_step(slow: CAME_OUT, came_out: CAME_OUT) -> None:
    assert slow("left")["said"].startswith("Preempted")
    assert slow("left")["step"] == 2
    assert_equal(slow("left"), came_out("accumulated_parts"))


@pytest.mark.slow
def test_an_optimizer_that_is_handed_in(slow: CAME_OUT) -> None:
    assert_close(slow("handed_in")["parts"], slow("handed_in")["whole"])


@pytest.mark.slow
def test_a_sharded_trainer_leaves_the_next_one_alone(slow: CAME_OUT, came_out: CAME_OUT) -> None:
    assert slow("one_after_the_other")["sharded"]
    later = slow("one_after_the_other")["later"]
    assert not later["sharded"]
    assert_equal(later, came_out("whole"))
