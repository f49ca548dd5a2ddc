"""The server of victims, and what an undisturbed run ends with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from onward.checkpoint import list_checkpoints, problems
from onward.checkpoint.layout import STAGING_PREFIX


class Victims:
    """Talks to `tests.durability.victim`."""

    def __init__(self, folder: Path, within: Sequence[str] = ()) -> None:
        self.errors = folder / "stderr.txt"
        with open(self.errors, "w") as errors:
            self.process = subprocess.Popen(
                [*within, sys.executable, "-m", "tests.durability.victim"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder,
            )  # fmt: skip
        self.expect("up")

    def start(self, do: str, folder: Path, **more: Any) -> int:
        """Fork a child that trains or saves; return its pid."""
        self.send(do=do, folder=str(folder), **more)
        return int(self.expect("pid"))

    def wait(self) -> int:
        """Return how the child ended."""
        self.send(do="wait")
        return int(self.expect("exit"))

    def send(self, **command: Any) -> None:
        """Send a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def expect(self, word: str) -> str:
        """Read lines up to one that begins with `word` (a trainer prints too); return the rest of it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(word):
                return line.removeprefix(word).strip()
        raise AssertionError(f"the victims' server ended: {self.errors.read_text()}")

    def close(self) -> None:
        """End the server."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


@pytest.fixture(scope="session")
def victims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    """A server of processes to kill."""
    server = Victims(tmp_path_factory.mktemp("victims"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def undisturbed(victims: Victims, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights at the end of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    victims.start("train", folder)
    assert victims.wait() == 0, victims.errors.read_text()
    return weights_beside(folder)


def weights_beside(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights that a finished victim left."""
    loaded: dict[str, torch.Tensor] = torch.load(folder.parent / "weights.pt", weights_only=True)
    return loaded


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Compare weights to the bit."""
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def assert_whole(folder: Path) -> None:
    """Everything that shows under a checkpoint's name is whole, whatever was killed when."""
    if not folder.exists():
        return
    for each in list_checkpoints(folder):
        assert problems(each.path) == [], each.path
    strangers = [each.name for each in folder.iterdir() if not each.name.startswith(("checkpoint-", STAGING_PREFIX))]
    assert set(strangers) <= {"metrics.jsonl"}
