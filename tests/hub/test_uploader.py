from __future__ import annotations

import contextlib
import logging
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from onward.hub.contents import Upload, checkpoint_upload, removal
from onward.hub.place import HubPlace
from onward.hub.uploader import Uploader
from tests.hub.folders import HASTY, below, checkpoint, content
from tests.hub.server import GOOD, HubServer

PLACE = HubPlace("user/model")


@pytest.fixture(autouse=True)
def _repository(hub: HubServer) -> None:
    hub.storage.create("user/model", private=False)


def upload(out: Path, step: int, strategy: str = "checkpoint", **values: Any) -> Upload:
    folder = out / f"checkpoint-{step}"
    if not folder.exists():
        checkpoint(out, step, **values)
    return checkpoint_upload(str(folder), str(out), strategy, f"Training in progress, step {step}")


def uploader(**values: Any) -> Uploader:
    return Uploader(PLACE, known=True, patience=HASTY, **values)


def assert_arrived(hub: HubServer, folder: Path, target: str = "last-checkpoint") -> None:
    files = hub.storage.files("user/model")
    assert below(files, target) == content(folder)
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_submit_returns_at_once_and_the_bytes_arrive_in_one_commit(hub: HubServer, tmp_path: Path) -> None:
    pushes = uploader()
    item = upload(tmp_path, 5, weights=6 * 2**20)  # large enough to be sent ahead of the commit
    held = hub.fail("POST .*preupload", "hold", times=1)
    future = pushes.submit(item)
    assert not held.gate.is_set(), "submit is back while the Hub has not answered"
    assert not pushes.is_done()
    held.gate.set()
    assert pushes.finish(120) is None
    assert pushes.is_done()
    assert future.result().status == "pushed"
    assert_arrived(hub, tmp_path / "checkpoint-5")
    assert hub.storage.messages("user/model") == ["initial commit", "Training in progress, step 5"]
    weights = (tmp_path / "checkpoint-5/model.safetensors").read_bytes()
    assert future.result().sent >= len(weights)
    assert len(hub.asked(f"PUT /lfs/{sha256(weights).hexdigest()}")) == 1, "they stand at two places and are sent once"


def test_what_the_new_checkpoint_no_longer_has_is_deleted_with_it(hub: HubServer, tmp_path: Path) -> None:
    checkpoint(tmp_path, 5)
    (tmp_path / "checkpoint-5" / "rng_state_1.pth").write_bytes(b"of a rank that is gone")
    pushes = uploader()
    for step in (5, 10):
        pushes.submit(upload(tmp_path, step))
        pushes.finish(120)
    assert_arrived(hub, tmp_path / "checkpoint-10")
    assert len(hub.storage.messages("user/model")) == 3


def test_the_newest_waiting_push_wins(hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    held = hub.fail("POST .*preupload", "hold", times=1)
    pushes = uploader()
    caplog.set_level(logging.INFO, "onward")
    pushes.submit(upload(tmp_path, 1, "all_checkpoints"))
    hub.await_request("POST /api/models/user/model/preupload")
    for step in (2, 3, 4):
        pushes.submit(upload(tmp_path, step, "all_checkpoints"))
    held.gate.set()
    pushes.finish(120)
    assert [outcome.status for outcome in pushes.outcomes] == ["pushed", "replaced", "replaced", "pushed"]
    assert hub.storage.messages("user/model")[1:] == ["Training in progress, step 1", "Training in progress, step 4"]
    assert "skipped: checkpoint-2, checkpoint-3 took its place" in caplog.text


def test_hub_always_push_keeps_them_all_in_order_one_at_a_time(hub: HubServer, tmp_path: Path) -> None:
    pushes = uploader(keep_all=True)
    for step in (1, 2, 3):
        pushes.submit(upload(tmp_path, step, "all_checkpoints"))
    pushes.finish(120)
    assert hub.storage.messages("user/model")[1:] == [f"Training in progress, step {step}" for step in (1, 2, 3)]
    for step in (1, 2, 3):
        assert_arrived_under(hub, tmp_path, step)
    order = [line.rsplit("/", 2)[-2] for line in hub.log if "/preupload/" in line or "/commit/" in line]
    assert order == ["preupload", "commit"] * 3, "pushes must not overlap"


def assert_arrived_under(hub: HubServer, out: Path, step: int) -> None:
    assert below(hub.storage.files("user/model"), f"checkpoint-{step}") == content(out / f"checkpoint-{step}")


def test_a_checkpoint_is_pinned_from_submit_until_it_is_settled(hub: HubServer, tmp_path: Path) -> None:
    pinned: set[str] = set()
    seen: list[set[str]] = []

    @contextlib.contextmanager
    def pin(path: str) -> Iterator[None]:
        pinned.add(Path(path).name)
        yield
        pinned.discard(Path(path).name)

    held = hub.fail("POST .*preupload", "hold", times=1)
    pushes = uploader(pin=pin)
    for step in (1, 2, 3):
        pushes.submit(upload(tmp_path, step))
        hub.await_request("POST /api/models/user/model/preupload")
        seen.append(set(pinned))
    held.gate.set()
    pushes.finish(120)
    assert seen == [{"checkpoint-1"}, {"checkpoint-1", "checkpoint-2"}, {"checkpoint-1", "checkpoint-3"}]
    assert pinned == set()


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        ("POST .*/commit/", {"kind": "status", "status": 500, "times": 2}),
        ("POST .*/commit/", {"kind": "cut", "times": 1}),
        ("POST .*/commit/", {"kind": "late", "times": 1}),
        ("PUT /lfs", {"kind": "cut", "times": 1}),
        ("PUT /lfs", {"kind": "status", "status": 503, "times": 1}),
        ("POST .*/preupload/", {"kind": "status", "status": 500, "times": 1}),
    ],
    ids=["commit 500 twice", "commit cut", "commit answer lost", "transfer cut", "transfer 503", "preupload 500"],
)
def test_passing_faults_are_outlived(hub: HubServer, tmp_path: Path, where: str, fault: dict[str, Any]) -> None:
    injected = hub.fail(where, **fault)
    pushes = uploader()
    pushes.submit(upload(tmp_path, 5))
    assert pushes.finish(120) is None
    assert injected.hits == fault["times"]
    assert_arrived(hub, tmp_path / "checkpoint-5")
    assert len(hub.storage.messages("user/model")) == 2, "a commit whose answer was lost must not be made twice"


def test_the_wait_that_the_server_asks_for_is_kept(hub: HubServer, tmp_path: Path) -> None:
    hub.fail("POST .*/commit/", "status", status=429, headers={"Retry-After": "2"}, times=1)
    pushes = uploader()
    begin = time.monotonic()
    pushes.submit(upload(tmp_path, 5))
    assert pushes.finish(120) is None
    assert time.monotonic() - begin > 2
    assert pushes.outcomes[0].attempts == 2


def test_tries_are_bounded_and_the_report_says_how_to_push_now(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.fail("POST .*/commit/", "status", status=500)
    pushes = uploader()
    pushes.submit(upload(tmp_path, 5))
    failed = pushes.finish(120)
    assert failed is not None
    assert failed.attempts == HASTY.attempts == len(hub.asked("POST /api/models/user/model/commit"))
    assert hub.storage.messages("user/model") == ["initial commit"]
    assert "Hub: 0 of 1 pushes to user/model arrived." in caplog.text
    assert "not pushed: checkpoint-5 after 3 tries: HTTP 500: injected 500" in caplog.text
    assert f"hf upload user/model {tmp_path}/checkpoint-5 last-checkpoint" in caplog.text


def test_a_token_that_expires_half_way_fails_at_once(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = hub.fail("PUT /lfs", "hold", times=1)
    pushes = uploader()
    pushes.submit(upload(tmp_path, 5))
    hub.await_request("PUT /lfs")
    hub.tokens.pop(GOOD)
    held.gate.set()
    failed = pushes.finish(120)
    assert failed is not None
    assert failed.attempts == 1, "another try with the same token cannot help"
    assert "401" in failed.reason
    assert "pass hub_token: a token that may write and has not expired" in caplog.text
    assert hub.storage.messages("user/model") == ["initial commit"]


def test_pushes_resume_when_the_network_comes_back(hub: HubServer, tmp_path: Path) -> None:
    """Refused at first; `known` is False because the start of the run could not reach the Hub either."""
    hub.stop()
    pushes = Uploader(HubPlace("fresh"), patience=HASTY)
    pushes.submit(upload(tmp_path, 1))
    assert pushes.finish(120) is not None
    hub.start()
    pushes.submit(upload(tmp_path, 2))
    assert pushes.finish(120) is None
    assert below(hub.storage.files("user/fresh"), "last-checkpoint") == content(tmp_path / "checkpoint-2")
    assert pushes.place.repo == "user/fresh"


def test_a_push_that_waits_for_its_next_try_gives_way_to_a_newer_one(hub: HubServer, tmp_path: Path) -> None:
    hub.fail("POST .*/commit/", "status", status=429, headers={"Retry-After": "60"}, times=1)
    pushes = uploader()
    first = pushes.submit(upload(tmp_path, 1))
    hub.await_request("POST /api/models/user/model/commit")
    pushes.submit(upload(tmp_path, 2))
    assert first.result(30).status == "replaced", "the server asked for a minute"
    assert pushes.finish(120) is None
    assert_arrived(hub, tmp_path / "checkpoint-2")


def test_the_time_limit_ends_a_push_that_hangs(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.fail("POST .*/preupload/", "hang")
    pushes = uploader()
    pushes.submit(upload(tmp_path, 5))
    begin = time.monotonic()
    failed = pushes.finish(1.5)
    assert time.monotonic() - begin < 30, "the Hub would have answered after ten minutes"
    assert failed is not None
    assert "the time limit of 1.5 s" in failed.reason
    assert "to push checkpoint-5 now: hf upload" in caplog.text
    assert pushes.is_done()
    assert [thread.name for thread in threading.enumerate() if thread.name == "onward-push"] == []


def test_a_silent_connection_is_given_up(hub: HubServer, tmp_path: Path) -> None:
    hub.fail("POST .*/commit/", "hang", times=1)
    pushes = Uploader(PLACE, known=True, patience=type(HASTY)(attempts=20, first_wait=0.05, stall=2.0))
    pushes.submit(upload(tmp_path, 5))
    assert pushes.finish(240) is None
    assert pushes.outcomes[0].attempts >= 2


def test_a_checkpoint_that_is_gone_is_reported_not_raised(hub: HubServer, tmp_path: Path) -> None:
    item = upload(tmp_path, 5)
    for file in (tmp_path / "checkpoint-5").iterdir():
        file.unlink()
    pushes = uploader()
    pushes.submit(item)
    failed = pushes.finish(120)
    assert failed is not None
    assert failed.attempts == 1
    assert hub.storage.messages("user/model") == ["initial commit"]


def test_a_log_that_vanishes_does_not_stop_the_push(hub: HubServer, tmp_path: Path) -> None:
    checkpoint(tmp_path, 5)
    (tmp_path / "notes.txt").write_text("soon gone")
    item = upload(tmp_path, 5)
    (tmp_path / "notes.txt").unlink()
    pushes = uploader()
    pushes.submit(item)
    assert pushes.finish(120) is None
    assert_arrived(hub, tmp_path / "checkpoint-5")


def test_a_card_that_the_hub_refuses_does_not_hold_back_the_weights(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """PEFT writes the folder of a local base model into the card, which the Hub answers with an error."""
    (tmp_path / "README.md").write_text("---\nbase_model: /home/me/base\n---\ntext")
    pushes = uploader()
    pushes.submit(upload(tmp_path, 5))
    assert pushes.finish(120) is None
    assert_arrived(hub, tmp_path / "checkpoint-5")
    assert "README.md" not in hub.storage.files("user/model")
    assert "README.md was left out" in caplog.text
    assert "base_model" in caplog.text


def do_what_is_told(report: str, begin: str) -> None:
    """Run the command that a report names behind `begin`."""
    command = shlex.split(report.split(begin)[1].splitlines()[0])
    program = Path(sys.executable).parent / command[0]
    done = subprocess.run([str(program), *command[1:]], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_checkpoint_is_removed_where_it_is_there_and_by_hand_where_that_failed(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pushes = uploader(keep_all=True)
    for step in (5, 50, 10):
        pushes.submit(upload(tmp_path, step, "all_checkpoints"))
    for step in (10, 10):
        pushes.submit(removal(str(tmp_path / f"checkpoint-{step}"), str(tmp_path), "why"), must=True)
    assert pushes.finish(120) is None
    assert hub.storage.messages("user/model")[3:] == ["Training in progress, step 10", "Delete checkpoint-10: why"]
    hub.fail("POST .*/commit/", "status", status=403)
    pushes.submit(removal(str(tmp_path / "checkpoint-5"), str(tmp_path), "why"), must=True)
    assert pushes.finish(120) is not None
    assert below(hub.storage.files("user/model"), "checkpoint-5")
    hub.faults.clear()
    do_what_is_told(caplog.text, "to push the removal of checkpoint-5 now: ")
    files = hub.storage.files("user/model")
    assert below(files, "checkpoint-5") == {}
    assert below(files, "checkpoint-50") == content(tmp_path / "checkpoint-50")


@pytest.mark.parametrize("strategy", ["checkpoint", "every_save"])
def test_the_command_of_the_report_does_what_the_push_would_have_done(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, strategy: str
) -> None:
    hub.fail("POST .*/commit/", "status", status=400)
    pushes = uploader()
    pushes.submit(upload(tmp_path, 5, strategy))
    assert pushes.finish(120) is not None
    hub.faults.clear()
    do_what_is_told(caplog.text, "to push checkpoint-5 now: ")
    files = {path: data for path, data in hub.storage.files("user/model").items() if path != ".gitattributes"}
    whole = content(tmp_path / "checkpoint-5")
    if strategy == "checkpoint":
        assert below(files, "last-checkpoint") == whole
    else:
        assert files == {name: whole[name] for name in ("config.json", "model.safetensors", "training_args.bin")}


def test_the_wait_shows_what_is_pushed(hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pushes = uploader()
    pushes.submit(upload(tmp_path, 5))
    pushes.finish(30, show=True)
    shown = capsys.readouterr().err
    assert "pushing checkpoint-5 to user/model (try 1)" in " ".join(shown.split())


def test_a_folder_that_is_about_to_go_is_read_by_nobody(hub: HubServer, tmp_path: Path) -> None:
    """A rollback deletes checkpoints, and a later save may take the same name."""
    held = hub.fail("POST .*preupload", "hold", times=1)
    pushes = uploader(keep_all=True)
    running, waiting = pushes.submit(upload(tmp_path, 5)), pushes.submit(upload(tmp_path, 10))
    hub.await_request("POST /api/models/user/model/preupload")
    last = pushes.submit(upload(tmp_path, 15))
    for step in (10, 5):
        pushes.withdraw(tmp_path / f"checkpoint-{step}", "the run went back to checkpoint-3")
    for future in (running, waiting):
        outcome = future.result(0)
        assert (outcome.status, outcome.reason) == ("replaced", "the run went back to checkpoint-3")
    held.gate.set()
    assert pushes.finish(120) is None
    assert last.result().status == "pushed"
    assert hub.storage.messages("user/model") == ["initial commit", "Training in progress, step 15"]
