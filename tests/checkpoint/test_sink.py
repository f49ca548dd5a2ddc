"""A file written beside training holds what was written, and its record is that of the file."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from onward.checkpoint import sink
from onward.checkpoint.digest import digest_file
from onward.checkpoint.sink import Sinks
from onward.checkpoint.staging import Staging

PAGE = 4096


@pytest.fixture(autouse=True)
def small_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "BLOCK", 4 * PAGE)


@pytest.mark.parametrize("size", [0, 1, 4 * PAGE - 1, 4 * PAGE, 4 * PAGE + 1, 9 * PAGE + 7])
def test_a_file_is_what_was_written(size: int, tmp_path: Path) -> None:
    draw = random.Random(size)
    data = draw.randbytes(size)
    sinks = Sinks()
    with sinks.create(tmp_path / "file") as file:
        rest = memoryview(data)
        while rest:
            count = draw.choice([1, 30, 5000, 50_000])
            assert file.write(rest[:count]) == min(count, len(rest))
            rest = rest[count:]
        file.flush()
    assert (tmp_path / "file").read_bytes() == data
    assert sinks.records == {tmp_path / "file": digest_file(tmp_path / "file")}
    assert sinks.records[tmp_path / "file"].size == size


def test_what_the_disk_takes_only_through_the_cache_is_written_that_way(tmp_path: Path) -> None:
    """A direct write that ended within a page leaves the file where the next one is refused."""
    data = os.urandom(9 * PAGE)
    with open(tmp_path / "file", "wb", buffering=0) as file:
        file.write(b"x")
        one = sink._Sink(file, Sinks()._block)
        one.write(data)
        record = one.finish()
    assert (tmp_path / "file").read_bytes() == b"x" + data
    assert record.size == len(data)


def test_a_write_that_fails_leaves_no_record() -> None:
    sinks = Sinks()
    with pytest.raises(OSError, match="No space left"), sinks.create(Path("/dev/full")) as file:
        file.write(b"some")
    assert not sinks.records


def test_a_file_that_is_not_as_long_as_what_was_written_is_not_committed(tmp_path: Path) -> None:
    staging, sinks = Staging.create(tmp_path / "checkpoint-1"), Sinks()
    with sinks.create(staging.path / "file") as file:
        file.write(b"some bytes")
    os.truncate(staging.path / "file", 4)
    with pytest.raises(OSError, match="has 4 bytes after 10 were written"):
        staging.commit("run", 1, sinks.records)
    assert not staging.target.exists()
