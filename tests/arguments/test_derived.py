"""Where a process runs: started on first use only, and the same on several processes as one by one."""

import logging
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState

from onward.arguments import TrainingArguments
from onward.errors import UsageError
from onward.types import ParallelMode

TWO_RANKS = """
import sys, time
from onward.arguments import TrainingArguments
args = TrainingArguments(log_on_each_node=False)  # without use_cpu: two ranks must find each other all the same
order = sys.argv[1] + "/order.txt"
with args.main_process_first(desc="write"):
    if args.process_index == 0:
        time.sleep(0.2)
    open(order, "a").write(str(args.process_index))
import torch.distributed as dist
assert dist.get_backend() == "gloo" and args.parallel_mode.value == "distributed" and args.n_gpu == 0
assert args.device.type == "cpu" and args.world_size == 2 and args.train_batch_size == 8
assert args.should_save == args.should_log == (args.process_index == 0 == args.local_process_index)
try:
    with args.main_process_first():
        if args.process_index == 0:
            raise KeyError("in the block")
except KeyError:
    pass
dist.destroy_process_group()
print(f"rank {args.process_index} fine\\n", end="", flush=True)  # in one write: both share the pipe
"""


def test_two_ranks_meet_and_the_main_one_goes_first(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(TWO_RANKS)
    source = Path(__file__).parents[2] / "src"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    environment = {
        "PYTHONPATH": str(source),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PATH": "/usr/bin:/bin",
    }
    done = subprocess.run(
        [*launch, str(script), str(tmp_path)], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert sorted(line for line in done.stdout.splitlines() if "fine" in line) == ["rank 0 fine", "rank 1 fine"]
    assert (tmp_path / "order.txt").read_text() == "01"


def test_nothing_starts_before_it_is_asked_for():
    AcceleratorState._reset_state(reset_partial_state=True)
    args = TrainingArguments(use_cpu=True)
    repr(args), args.to_json_string(), args.get_warmup_steps(3)
    assert PartialState._shared_state == {}
    assert args.device == torch.device("cpu")
    assert PartialState._shared_state != {}
    assert args._setup_devices is args.device


def test_new_arguments_clear_what_earlier_ones_left():
    from accelerate import Accelerator

    assert TrainingArguments(use_cpu=True).world_size == 1
    assert Accelerator(mixed_precision="bf16").mixed_precision == "bf16"
    assert TrainingArguments(use_cpu=True).world_size == 1
    assert Accelerator(mixed_precision="no").mixed_precision == "no"


def test_one_process_with_a_backend_is_one_process():
    args = TrainingArguments(use_cpu=True, ddp_backend="gloo")
    assert args.world_size == 1
    assert args.parallel_mode is ParallelMode.NOT_PARALLEL
    with args.main_process_first():
        pass


def test_a_state_of_the_script_is_used_as_it_is():
    AcceleratorState._reset_state(reset_partial_state=True)
    args = TrainingArguments(use_cpu=True, accelerator_config={"use_configured_state": True})
    with pytest.raises(UsageError, match="use_configured_state=True"):
        _ = args.device
    state = PartialState(cpu=True)
    state.mark = "of the script"
    assert args.distributed_state.mark == "of the script"


def test_cpu_by_environment(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert TrainingArguments().device.type == "cpu"


def test_n_gpu_can_be_set_by_the_script():
    args = TrainingArguments(use_cpu=True)
    args._n_gpu = 1
    assert (args.n_gpu, args.train_batch_size) == (1, 8)


def test_log_levels():
    logger = logging.getLogger("onward")
    before = logger.level
    try:
        logger.setLevel(logging.ERROR)
        assert TrainingArguments(use_cpu=True).get_process_log_level() == logging.ERROR
        assert TrainingArguments(use_cpu=True, log_level="info").get_process_log_level() == logging.INFO
    finally:
        logger.setLevel(before)


def test_timeout_is_in_seconds():
    assert TrainingArguments(ddp_timeout=90).ddp_timeout_delta == timedelta(minutes=1, seconds=30)
