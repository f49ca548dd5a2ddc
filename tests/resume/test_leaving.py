"""A run that is told to leave saves itself and goes on exactly, whoever was told and wherever it stood."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from onward.errors import Preempted, UsageError
from onward.leaving import Leaving, OutliveSignals, parse_signals

SCRIPT = Path(__file__).with_name("leaver.py")


def start(folder: Path, *options: str, ranks: int = 1, restarts: int = 0) -> subprocess.Popen[str]:
    """A process (or a group of ranks) that trains into `folder`."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"]
        launcher += [f"--max-restarts={restarts}", "--monitor-interval=0.1"]
    # A store for each start: in a shared one, a restarted group may read the addresses of the one that is gone.
    environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    command = [*launcher, str(SCRIPT), str(folder), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(process: subprocess.Popen[str], timeout: float = 300) -> str:
    output, _ = process.communicate(timeout=timeout)
    return output


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)


def result(folder: Path, rank: int = 0) -> dict[str, object]:
    return json.loads((folder / f"result-{rank}.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("whole")
    output = finish(start(folder))
    assert (folder / "result-0.json").exists(), output
    return result(folder)


@pytest.fixture
def passed_on() -> Iterator[list[int]]:
    """The signals that reached the handler which stood before training."""
    received: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: received.append(number))
    yield received
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(
    ("number", "when", "code"),
    [
        (signal.SIGTERM, "step-5", 143),
        (signal.SIGUSR1, "step-7", 143),
        (signal.SIGINT, "step-5", -signal.SIGINT),
        (signal.SIGTERM, "evaluation-2", 143),
        (signal.SIGTERM, "evaluation-3", 143),
    ],
)
def test_a_signal_saves_and_leaves(number: int, when: str, code: int, whole: dict[str, object], tmp_path: Path) -> None:
    process = start(tmp_path, "--pause-at", when)
    wait_for(tmp_path / f"{when}-0", process)
    os.kill(process.pid, number)
    (tmp_path / "go").touch()
    output = finish(process)
    assert process.returncode == code, output
    assert "go on with trainer.train(resume_from_checkpoint=True)" in output
    assert not (tmp_path / "result-0.json").exists()
    assert finish(start(tmp_path, "--resume")) is not None
    assert result(tmp_path) == whole


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_loader_workers_outlive_a_signal_to_the_group(way: str, tmp_path: Path) -> None:
    workers = ("--workers", "2", "--worker-start", way)
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(tmp_path), *workers, "--pause-at", "step-5"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_for(tmp_path / "step-5-0", process)
    os.killpg(process.pid, signal.SIGTERM)
    (tmp_path / "go").touch()
    output = finish(process)
    assert process.returncode == 143, output


@pytest.mark.parametrize("way", ["fork", "spawn"])
@pytest.mark.parametrize("when", ["step-5", "evaluation-2"])
def test_a_run_that_fails_ends_with_its_loader_workers(when: str, way: str, tmp_path: Path) -> None:
    process = start(tmp_path, "--workers", "2", "--worker-start", way, "--fail-at", when)
    output = finish(process)  # the error keeps the frames, and with them what feeds the loop
    assert process.returncode == 1, output
    assert output.rstrip().endswith("RuntimeError: failed as it was told to")


def test_a_run_ends_though_its_trainer_still_has_loader_workers(tmp_path: Path) -> None:
    process = start(tmp_path, "--workers", "2", "--persistent")
    output = finish(process)
    assert process.returncode == 0, output
    assert (tmp_path / "result-0.json").exists()


class Commands(Dataset[int]):
    """Each sample is how a command ended that was told to."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        command = subprocess.Popen(["sleep", "60"])
        command.terminate()
        return command.wait(timeout=30)


def test_commands_of_loader_workers_can_be_ended() -> None:
    signals = parse_signals("SIGTERM")
    with Leaving(signals):
        loader = DataLoader(Commands(), num_workers=1, worker_init_fn=OutliveSignals(signals))
        assert [batch.item() for batch in loader] == [-signal.SIGTERM]


def test_a_chosen_exit_code_and_a_time_limit(tmp_path: Path, whole: dict[str, object]) -> None:
    process = start(tmp_path, "--exit-code", "99", "--max-seconds", "0.5", "--sleep", "0.1")
    output = finish(process)
    assert process.returncode == 99, output
    assert "max_train_seconds=0.5" in output
    finish(start(tmp_path, "--resume"))
    assert result(tmp_path) == whole


@pytest.mark.parametrize("when", ["step-5", "evaluation-2"])
def test_ranks_signalled_half_a_second_apart_agree(when: str, tmp_path: Path) -> None:
    reference = tmp_path / "whole"
    reference.mkdir()
    output = finish(start(reference, ranks=2))
    assert (reference / "result-1.json").exists(), output
    folder = tmp_path / "left"
    folder.mkdir()
    process = start(folder, "--pause-at", when, "--sleep", "0.05", ranks=2)
    for rank in (0, 1):
        wait_for(folder / f"{when}-{rank}", process)
    pids = [int((folder / f"pid-{rank}").read_text()) for rank in (0, 1)]
    (folder / "go").touch()
    os.kill(pids[1], signal.SIGUSR1)
    time.sleep(0.5)
    with contextlib.suppress(ProcessLookupError):  # both may be gone already
        os.kill(pids[0], signal.SIGUSR1)
    output = finish(process)
    assert "Left at step" in output
    finish(start(folder, "--resume", ranks=2))
    assert [result(folder, r) for r in (0, 1)] == [result(reference, r) for r in (0, 1)]


def test_a_killed_rank_and_a_restarted_group(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    output = finish(start(whole, "--save-steps", "2", ranks=2))
    assert (whole / "result-1.json").exists(), output
    output = finish(start(killed, "--save-steps", "2", "--kill-at", "7", ranks=2, restarts=1))
    assert (killed / "died").exists(), output
    assert [result(killed, r) for r in (0, 1)] == [result(whole, r) for r in (0, 1)]


def test_handlers_stand_only_inside(passed_on: list[int]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Leaving(parse_signals("SIGTERM,sigusr1")) as leaving:
        assert signal.getsignal(signal.SIGTERM) is not before
        assert not leaving.due()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert leaving.due()
        assert leaving.reason == "SIGUSR1 was received"
        assert passed_on == []
    assert signal.getsignal(signal.SIGTERM) is before
    assert passed_on == [signal.SIGUSR1]  # nobody left because of it


def test_a_signal_that_was_acted_on_is_not_passed_on(passed_on: list[int]) -> None:
    leaving = Leaving(parse_signals("SIGUSR1"))
    leaving.__enter__()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert leaving.due()
    leaving.__exit__(Preempted, Preempted(143), None)
    assert passed_on == []


def test_a_second_interrupt_leaves_at_once() -> None:
    with Leaving([]) as leaving:
        os.kill(os.getpid(), signal.SIGINT)
        assert leaving.due()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_an_unknown_signal_is_named() -> None:
    with pytest.raises(UsageError, match="SIGNOPE"):
        parse_signals("SIGTERM,SIGNOPE")
