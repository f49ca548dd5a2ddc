from __future__ import annotations

from pathlib import Path

import pytest

from onward.errors import HubError, NoCheckpoint, UsageError
from onward.hub.download import fetch, on_disk, parse
from onward.hub.place import HubPlace
from tests.hub.folders import checkpoint, content
from tests.hub.server import HubServer

HOME = HubPlace("user/model")


@pytest.fixture
def pushed(hub: HubServer, tmp_path: Path) -> Path:
    """Checkpoints 5 and 10 as ``last-checkpoint``, one commit each; 20 and 100 under their names in ``user/all``."""
    out = tmp_path / "out"
    for name, steps, strategy in (("model", (5, 10), "checkpoint"), ("all", (20, 100), "all_checkpoints")):
        hub.storage.create(f"user/{name}", private=False)
        for step in steps:
            folder = checkpoint(out, step)
            target = "last-checkpoint" if strategy == "checkpoint" else folder.name
            hub.storage.put(f"user/{name}", f"step {step}", target, content(folder))
    return out


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("hub:user/model", ("user/model", None, None)),
        ("hub:user/model@draft", ("user/model", None, "draft")),
        ("hub:user/my.model-1/checkpoint-5@refs/pr/1", ("user/my.model-1", "checkpoint-5", "refs/pr/1")),
    ],
)
def test_how_a_source_is_read(source: str, parts: tuple[str, str | None, str | None]) -> None:
    assert parse(source) == parts


@pytest.mark.parametrize("source", ["hub:model", "hub:", "hub:user/model/a/b", "hub:user model/x"])
def test_a_source_that_cannot_be_read_is_an_error(source: str) -> None:
    with pytest.raises(UsageError, match="expected 'hub:user/model'"):
        parse(source)


def test_what_is_on_disk_is_not_downloaded(tmp_path: Path) -> None:
    assert on_disk(True, "out") is True
    assert on_disk("out/checkpoint-5", "out") == "out/checkpoint-5"
    assert on_disk("hub:user/model", "out") is None
    assert on_disk("last-checkpoint", "out") is None
    (tmp_path / "out" / "last-checkpoint").mkdir(parents=True)
    assert on_disk("last-checkpoint", "out") == "out/last-checkpoint"
    (tmp_path / "last-checkpoint").mkdir()
    assert on_disk("last-checkpoint", "out") == "last-checkpoint"


def test_the_newest_state_an_older_revision_and_named_checkpoints(hub: HubServer, pushed: Path) -> None:
    assert content(Path(fetch("hub:user/model", HOME))) == content(pushed / "checkpoint-10")
    assert content(Path(fetch("last-checkpoint", HOME))) == content(pushed / "checkpoint-10")
    older = hub.storage.repos["user/model"].commits[-2]["oid"]
    assert content(Path(fetch(f"hub:user/model@{older}", HOME))) == content(pushed / "checkpoint-5")
    assert content(Path(fetch("hub:user/all", HOME))) == content(pushed / "checkpoint-100")
    assert content(Path(fetch("hub:user/all/checkpoint-20", HOME))) == content(pushed / "checkpoint-20")


def test_a_download_that_is_cut_goes_on_where_it_was(hub: HubServer, pushed: Path) -> None:
    fault = hub.fail("GET /lfs", "cut", times=2)
    hub.fail("GET /api/models/user/model", "status", status=503, times=1)
    assert content(Path(fetch("hub:user/model", HOME))) == content(pushed / "checkpoint-10")
    assert fault.hits == 2


def test_what_cannot_be_found_is_said(hub: HubServer, pushed: Path) -> None:
    with pytest.raises(HubError, match=r"user/nothing.*404.*check the name"):
        fetch("hub:user/nothing", HOME)
    with pytest.raises(HubError, match=r"user/model@nowhere.*404.*revision"):
        fetch("hub:user/model@nowhere", HOME)
    with pytest.raises(NoCheckpoint, match="has no checkpoint 'checkpoint-6'; it has: checkpoint-100, checkpoint-20"):
        fetch("hub:user/all/checkpoint-6", HOME)
    hub.storage.create("user/empty", private=False)
    with pytest.raises(NoCheckpoint, match=r"user/empty has no checkpoint; it has: none"):
        fetch("hub:user/empty", HOME)
