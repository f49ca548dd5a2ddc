from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onward.hub.process import Call, Failure, environment
from tests.hub.server import HubServer

REQUEST = {"action": "open", "repo": "user/m", "token": None, "revision": None, "private": None, "stall": 30}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_token_is_neither_in_the_arguments_nor_in_the_environment(hub: HubServer) -> None:
    hub.fail("POST /api/repos/create", "slow", seconds=1.0, times=1)
    call = Call({**REQUEST, "token": "hf_secret"})
    with pytest.raises(Failure, match="401"):
        call.run(limit=30)
    command = " ".join(map(str, call._process.args))  # type: ignore[union-attr, arg-type]
    assert "hf_secret" not in command
    assert "hf_secret" not in json.dumps(environment())


def test_a_file_of_the_user_does_not_shadow_the_client(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "httpx.py").write_text("raise SystemExit('shadowed')")
    (tmp_path / "huggingface_hub.py").write_text("raise SystemExit('shadowed')")
    assert Path.cwd() == tmp_path
    assert Call(REQUEST).run(limit=30)["repo"] == "user/m"


def test_a_worker_that_dies_is_told_with_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = "import os, sys\nprint('last words', file=sys.stderr, flush=True)\nos._exit(3)\n"
    (tmp_path / "huggingface_hub.py").write_text(broken)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(Failure, match="exit code 3: last words") as caught:
        Call(REQUEST).run(limit=30)
    assert caught.value.kind == "crashed"


def test_stopping_before_the_start_keeps_it_from_starting(hub: HubServer) -> None:
    call = Call(REQUEST)
    call.stop()
    with pytest.raises(Failure, match="stopped"):
        call.run()
    assert not hub.log


def test_the_worker_dies_with_a_killed_parent(hub: HubServer, tmp_path: Path) -> None:
    """An orphan would go on reading a checkpoint that nothing pins any more."""
    hub.fail("POST /api/repos/create", "hang")
    script = (
        "from onward.hub.process import Call\nimport json, sys, threading, time\n"
        "call = Call(json.loads(sys.argv[1]))\n"
        "threading.Thread(target=call.run, daemon=True).start()\n"
        "while call._process is None: time.sleep(0.01)\n"
        "print(call._process.pid, flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, json.dumps(REQUEST)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        while not hub.asked("POST /api/repos/create"):
            time.sleep(0.02)
        assert alive(worker)
        os.kill(parent.pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while alive(worker) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not alive(worker)


def test_an_interpreter_that_ends_waits_for_its_push(hub: HubServer, tmp_path: Path) -> None:
    """A run that ends by an error has no one to call `finish`; the checkpoint arrives all the same."""
    hub.storage.create("user/model", private=False)
    script = f"""
import logging, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from onward.hub.contents import checkpoint_upload
from onward.hub.place import HubPlace
from onward.hub.uploader import Uploader
from tests.hub.folders import checkpoint
logging.basicConfig(level=logging.INFO)
folder = checkpoint(Path({str(tmp_path / "out")!r}), 5)
Uploader(HubPlace("user/model"), known=True).submit(checkpoint_upload(str(folder), "out", "checkpoint", "message"))
raise RuntimeError("training failed")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "training failed" in done.stderr
    assert "1 of 1 pushes to user/model arrived" in done.stderr
    assert hub.storage.messages("user/model") == ["initial commit", "message"]
