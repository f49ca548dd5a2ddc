"""A Hub on loopback: the part of its HTTP interface that huggingface_hub's client calls to create, push and download.

Content is kept on disk, hashes are checked, large files go through the LFS batch and transfer requests, so what comes
back from a download is what an upload sent. ``server.faults`` makes it misbehave, ``server.log`` lists what was asked.
"""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.card_rules import card_errors
from tests.hub.faults import Fault, Faults
from tests.hub.routes import ROUTES, Answer, Refusal
from tests.hub.storage import Storage

GOOD, READER, OTHER = "hf_good", "hf_reader", "hf_other"


class HubServer:
    """The server, its storage, its users and its faults. ``stop`` and ``start`` keep the port and the storage."""

    def __init__(self, folder: Path) -> None:
        self.storage = Storage(folder)
        self.faults = Faults()
        self.log: list[str] = []
        self.tokens: dict[str, dict[str, str]] = {
            GOOD: {"name": "user", "role": "write"},
            READER: {"name": "user", "role": "read"},
            OTHER: {"name": "other", "role": "write"},
        }
        self.port = 0
        self._server: ThreadingHTTPServer | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def store_url(self) -> str:
        """Where large files are: another host, as with the Hub, to which the client must not send its token."""
        return f"http://localhost:{self.port}"

    def start(self) -> None:
        handler = type("Handler", (Handler,), {"hub": self})
        self._server = Loopback(("127.0.0.1", self.port), handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def fail(self, where: str, kind: Any, **values: Any) -> Fault:
        return self.faults.add(Fault(where, kind, **values))

    def await_request(self, start: str) -> None:
        """Wait until there was a request that begins with `start`."""
        deadline = time.monotonic() + 60
        while not self.asked(start):
            assert time.monotonic() < deadline, f"nobody asked {start}"
            time.sleep(0.01)

    def asked(self, start: str) -> list[str]:
        """The requests so far that begin with `start`, such as ``POST /api/models/user/m/commit``."""
        return [line for line in self.log if line.startswith(start)]

    def check_card(self, text: str) -> list[str]:
        return card_errors(text)


class Loopback(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is part of the tests, not worth a traceback on the terminal."""


class Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_one(self) -> None:
        parts = urlsplit(self.path)
        self.route, self.query = unquote(parts.path), parse_qs(parts.query)
        request = f"{self.command} {self.route}"
        self.hub.log.append(request)
        fault = self.hub.faults.pick(request)
        length = int(self.headers.get("Content-Length") or 0)
        if fault is not None and fault.kind == "hang":
            time.sleep(600)
        if fault is not None and fault.kind == "cut" and self.command in ("PUT", "POST"):
            self.rfile.read(length // 2)
            return self.hang_up()
        self.body = self.read_body(length)
        if fault is not None and fault.kind == "slow":
            time.sleep(fault.seconds)
        if fault is not None and fault.kind == "hold":
            fault.gate.wait(60)
        if fault is not None and fault.kind == "status":
            return self.send(Answer(fault.status, {"error": f"injected {fault.status}"}, dict(fault.headers)))
        answer = self.answer(request)
        if fault is not None and fault.kind == "late":
            return self.hang_up()
        self.send(answer, cut=fault is not None and fault.kind == "cut")

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = handle_one  # noqa: N815

    def read_body(self, length: int) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(length)
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, request: str) -> Answer:
        for pattern, reply in ROUTES:
            if match := pattern.fullmatch(request):
                try:
                    with self.hub.storage.lock:
                        return reply(self, *match.groups())
                except Refusal as refusal:
                    return refusal.answer
        return Answer(404, {"error": f"this Hub does not know {request}"}, {"X-Error-Code": "Unknown"})

    def send(self, answer: Answer, cut: bool = False) -> None:
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        kind = "application/octet-stream" if isinstance(answer.body, bytes) else "application/json"
        self.send_response(answer.status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.hang_up()

    def hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    # ---- what the routes ask ----

    def user(self) -> dict[str, str] | None:
        """The owner of the request's token; None without one. A token that is not known is refused."""
        given = self.headers.get("Authorization")
        if given is None:
            return None
        found = self.hub.tokens.get(given.removeprefix("Bearer "))
        if found is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return found

    def json(self) -> Any:
        return json.loads(self.body)

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines() if line]

    def decode(self, text: str) -> bytes:
        return base64.b64decode(text)
