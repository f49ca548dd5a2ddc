"""Run one request in a worker process, and kill the process when nobody wants its answer any more."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onward.errors import HubError

Event = dict[str, Any]

REMEDIES = {
    "token": "log in with `hf auth login`, set HF_TOKEN, or pass hub_token: a token that may write and has not expired",
    "right": "use a token that may write there, or set hub_model_id to a name in your own namespace",
    "taken": "set hub_model_id to another name, or use a token that may write to it",
    "name": "set hub_model_id to 'name' or 'user/name'",
    "missing": "check the name, the revision, and that the token may see it",
    "offline": "unset HF_HUB_OFFLINE",
    "network": "check the connection, HF_ENDPOINT and the proxy settings",
    "rate": "wait, or save less often",
    "server": "try again later",
    "rejected": "correct what the Hub names",
    "local": "check that the files still exist",
    "crashed": "see the text above",
    "stopped": "push it by hand when there is time",
}


class Failure(HubError):
    """What a worker reported instead of an answer.

    Attributes: ``kind`` (a key of REMEDIES), ``reason``, ``transient`` (trying again may help) and ``after`` (seconds
    that the server asked us to wait, or None).
    """

    def __init__(self, event: Event) -> None:
        self.kind: str = event["kind"]
        self.transient: bool = event["transient"]
        self.after: float | None = event.get("after")
        who = f" ({event['who']})" if event.get("who") else ""
        self.reason: str = f"{event['reason']}{who}"
        super().__init__(f"{self.reason}; {REMEDIES[self.kind]}")


class Call:
    """One request in its own process. ``run`` blocks; ``stop`` may be called from any thread."""

    def __init__(self, request: Event) -> None:
        self.request = request
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, on_event: Callable[[Event], None] = lambda event: None, limit: float | None = None) -> Event:
        """Return the ``done`` event; raise `Failure` for anything else.

        `limit` is the number of seconds after which the process is stopped. Download bars are shown to the user; what
        an upload prints is kept, and told only if the process dies without an answer.
        """
        with tempfile.TemporaryFile("w+") as errors:
            shown = self.request["action"] == "fetch"
            process = self._start(None if shown else errors)
            timer = threading.Timer(limit, self.stop) if limit is not None else None
            try:
                if timer:
                    timer.daemon = True
                    timer.start()
                last = self._converse(process, on_event)
            except BaseException:
                process.kill()
                raise
            finally:
                if timer:
                    timer.cancel()
                close(process)
            return self._judge(last, process, errors, limit)

    def stop(self) -> None:
        """Kill the process, or keep it from starting."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def _start(self, errors: Any) -> subprocess.Popen[str]:
        # -P keeps the user's folder off the import path: a `tokenizers.py` there would break the client.
        command = [sys.executable, "-P", "-m", "onward.hub.worker"]
        with self._lock:
            if self._stopped:
                raise stopped(None)
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    env=environment() | ({} if errors is None else {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}),
                    start_new_session=True,  # Ctrl-C must reach the training process alone: it decides about the push
                )
            except OSError as error:
                raise crashed(f"no worker process: {error}") from error
            return self._process

    def _converse(self, process: subprocess.Popen[str], on_event: Callable[[Event], None]) -> Event | None:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(self.request) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return None
        for line in process.stdout:
            event: Event = json.loads(line)
            if event["event"] in ("done", "failed"):
                return event
            on_event(event)
        return None

    def _judge(self, last: Event | None, process: subprocess.Popen[str], errors: Any, limit: float | None) -> Event:
        if last is not None and last["event"] == "done":
            return last
        if last is not None:
            raise Failure(last)
        if self._stopped:
            raise stopped(limit)
        errors.seek(0)
        tail = " ".join(errors.read().strip().splitlines()[-3:])
        raise crashed(f"exit code {process.returncode}: {tail}")


def crashed(reason: str) -> Failure:
    """Say that the worker process could not be started or died."""
    return Failure({"kind": "crashed", "reason": reason, "transient": True})


def stopped(limit: float | None) -> Failure:
    """Say that the process was stopped before it had an answer."""
    reason = "stopped" if limit is None else f"no answer within {limit:g} s"
    kind = "stopped" if limit is None else "network"
    return Failure({"kind": kind, "reason": reason, "transient": False})


def close(process: subprocess.Popen[str]) -> None:
    """Let the process end (closing stdin tells it to) and leave no zombie and no open pipe behind."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def environment() -> dict[str, str]:
    """The environment of the worker: ours, with this very package importable."""
    here = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}
