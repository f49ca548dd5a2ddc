"""The process that talks to the Hub: reads one request (a JSON line) on stdin, writes events (JSON lines) on stdout.

The last event is ``done`` or ``failed``. The process dies with its parent, because stdin is then closed. Only the
public API of huggingface_hub is used, and only here.

    {"action": "open", "repo", "private", "token", "revision", "stall"}          → repo, url
    {"action": "push", … of open, "known", "files", "clear", "message"}          → repo, url, oid
    {"action": "fetch", "repo", "token", "revision", "folder", "stall"}           → path, folder, oid
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Event = dict[str, Any]

# Files from this size on are sent one by one before the commit: the bar can move, and a retry need not send them again.
LARGE = 5 * 2**20
CARD = "README.md"
# 408 timeout, 409 and 412 another commit came between, 425 and 429 too fast; all others below 500 will not change.
TRANSIENT_STATUS = {408, 409, 412, 425, 429}


# What libraries print goes to stderr: stdout carries the events.
events, sys.stdout = sys.stdout, sys.stderr


class NameTakenError(Exception):
    """The repository exists, and the token may not write to it."""


def say(event: str, **values: Any) -> None:
    """Write one event for the parent."""
    events.write(json.dumps({"event": event, **values}) + "\n")
    events.flush()


def die_with_parent() -> None:
    """Leave as soon as stdin is closed: an orphan would read a checkpoint that nobody pins any more."""
    sys.stdin.read()
    os._exit(1)


def connect(request: Event) -> HfApi:
    """Return a client that gives up on a connection after ``stall`` seconds without a byte, instead of never."""
    from huggingface_hub import HfApi, get_session, get_token, set_client_factory
    from huggingface_hub.errors import LocalTokenNotFoundError

    if request["action"] != "fetch" and not (request.get("token") or get_token()):
        raise LocalTokenNotFoundError
    standard = get_session()
    client_type: Any = type(standard)
    hooks, seconds = standard.event_hooks, float(request["stall"])
    set_client_factory(lambda: client_type(event_hooks=hooks, follow_redirects=True, timeout=seconds))
    return HfApi(token=request.get("token"), library_name="onward")


def open_repo(api: HfApi, request: Event) -> str:
    """Create the repository and the branch where they do not exist, check the right to write; return the full name."""
    repo = str(api.create_repo(request["repo"], private=request.get("private"), exist_ok=True).repo_id)
    check_right(api, repo)
    revision = request.get("revision")
    if revision and not revision.startswith("refs/"):
        api.create_branch(repo, branch=revision, exist_ok=True)
    return repo


def check_right(api: HfApi, repo: str) -> None:
    """Ask for the right to write: creating a repository that somebody else has already created does not fail."""
    from huggingface_hub.errors import HfHubHTTPError

    if "write" not in inspect.signature(api.auth_check).parameters:
        return  # an older client cannot ask; the first push will tell
    try:
        api.auth_check(repo, write=True)
    except HfHubHTTPError as error:
        if error.response.status_code in (403, 404):
            raise NameTakenError(repo) from None
        raise


def do_open(api: HfApi, request: Event) -> Event:
    """Answer an ``open`` request."""
    repo = open_repo(api, request)
    return {"repo": repo, "url": f"{api.endpoint}/{repo}"}


def do_push(api: HfApi, request: Event) -> Event:
    """Commit the files of a ``push`` request: in one commit, so that the Hub never shows half a checkpoint."""
    from huggingface_hub import CommitOperationDelete

    repo = request["repo"] if request["known"] else open_repo(api, request)
    say("opened", repo=repo)
    revision = request.get("revision")
    additions = [addition(entry) for entry in request["files"]]
    present = [(op, entry) for op, entry in zip(additions, request["files"], strict=True) if op is not None]
    refused = card_problem([op for op, _ in present])
    present = [(op, entry) for op, entry in present if refused is None or op.path_in_repo != CARD]
    send_large(api, repo, revision, present)
    operations: list[Any] = [op for op, _ in present]
    added = {op.path_in_repo for op in operations}
    operations += [CommitOperationDelete(path) for path in stale(api, repo, revision, request["clear"], added)]
    commit = api.create_commit(repo, operations, commit_message=request["message"], revision=revision)
    note = "" if refused is None else f"{CARD} was left out, the Hub does not take it: {refused}"
    return {"repo": repo, "url": commit.commit_url, "oid": commit.oid, "note": note}


def card_problem(operations: list[Any]) -> str | None:
    """Say what the Hub would refuse in the model card: one bad line of metadata must not keep the weights from it."""
    import yaml
    from huggingface_hub import ModelCard

    for operation in operations:
        if operation.path_in_repo == CARD:
            with operation.as_file() as file:
                text = file.read().decode(errors="replace")
            try:
                ModelCard(text).validate()
            except (ValueError, yaml.YAMLError) as error:
                return " ".join(str(error).split())
    return None


def addition(entry: Event) -> Any:
    """Turn a file of a request into an operation; None when a file outside the pinned checkpoint has gone meanwhile.

    Such files (logs, the card) are read at once: a log that grows between hashing and sending would break the commit.
    """
    from huggingface_hub import CommitOperationAdd

    if not entry["volatile"]:
        return CommitOperationAdd(path_in_repo=entry["path"], path_or_fileobj=entry["local"])
    try:
        with open(entry["local"], "rb") as file:
            return CommitOperationAdd(path_in_repo=entry["path"], path_or_fileobj=file.read())
    except FileNotFoundError:
        return None


def send_large(api: HfApi, repo: str, revision: str | None, present: list[tuple[Any, Event]]) -> None:
    """Send the content of large files ahead of the commit, telling the parent after each how many bytes are there."""
    total = sum(entry["size"] for _, entry in present)
    sent = 0
    say("progress", sent=sent, total=total)
    for operation, entry in present:
        if entry["size"] >= LARGE:
            api.preupload_lfs_files(repo, [operation], revision=revision, free_memory=False)
            sent += entry["size"]
            say("progress", sent=sent, total=total)


def stale(api: HfApi, repo: str, revision: str | None, folder: str | None, added: set[str]) -> list[str]:
    """List files under `folder` of the repository that the new content no longer has (other shards, fewer ranks)."""
    from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

    if folder is None:
        return []
    try:
        tree = list(api.list_repo_tree(repo, path_in_repo=folder, recursive=True, revision=revision))
    except (EntryNotFoundError, RevisionNotFoundError):
        return []
    return [item.path for item in tree if hasattr(item, "blob_id") and item.path not in added]


def do_fetch(api: HfApi, request: Event) -> Event:
    """Download the checkpoint folder that a ``fetch`` request names, or the best one that the repository has."""
    from huggingface_hub import snapshot_download

    repo, token = request["repo"], request.get("token")
    if "/" not in repo:
        repo = f"{api.whoami()['name']}/{repo}"
    info = api.model_info(repo, revision=request.get("revision"))
    names = [file.rfilename for file in info.siblings or []]
    folders = sorted({name.split("/")[0] for name in names if name.endswith("/trainer_state.json")})
    folder = choose(folders, request.get("folder"))
    if folder is None:
        found = ", ".join(folders) or "none"
        return {"repo": repo, "path": None, "folders": found, "oid": info.sha}
    path = snapshot_download(repo, revision=info.sha, allow_patterns=[f"{folder}/*"], token=token)
    return {"repo": repo, "path": os.path.join(path, folder), "folder": folder, "oid": info.sha}


def choose(folders: list[str], wanted: str | None) -> str | None:
    """Pick the wanted checkpoint folder; without a wish ``last-checkpoint``, else the newest ``checkpoint-N``."""
    if wanted is not None:
        return wanted if wanted in folders else None
    if "last-checkpoint" in folders:
        return "last-checkpoint"
    numbered = [name for name in folders if name.startswith("checkpoint-") and name[11:].isdigit()]
    return max(numbered, key=lambda name: int(name[11:]), default=None)


def explain(error: BaseException) -> Event:
    """Sort an error: what kind it is, whether trying again can help, how long the server asked us to wait."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    if isinstance(error, NameTakenError):
        return {"kind": "taken", "reason": f"{error} exists and the token may not write to it", "transient": False}
    for link in chain:
        if isinstance(link, HfHubHTTPError):
            return explain_status(link)
        if isinstance(link, LocalTokenNotFoundError):
            return {"kind": "token", "reason": "no token was found", "transient": False}
        if isinstance(link, OfflineModeIsEnabled):
            return {"kind": "offline", "reason": "HF_HUB_OFFLINE is set", "transient": False}
        if isinstance(link, HFValidationError):
            return {"kind": "name", "reason": text_of(link), "transient": False}
    if isinstance(error, LocalEntryNotFoundError):  # a download failed and the cache has no copy either
        return {"kind": "network", "reason": text_of(chain[-1]), "transient": True}
    if isinstance(error, FileNotFoundError | PermissionError):
        return {"kind": "local", "reason": text_of(error), "transient": False}
    if isinstance(error, ValueError | TypeError | ImportError):
        return {"kind": "rejected", "reason": text_of(error), "transient": False}
    return {"kind": "network", "reason": text_of(chain[-1]), "transient": True}


def explain_status(error: Any) -> Event:
    """Sort an answer of the server by its status."""
    status = int(error.response.status_code)
    kinds = {401: "token", 403: "right", 404: "missing", 408: "network", 429: "rate"}
    kind = kinds.get(status, "server" if status >= 500 else "rejected")
    asked = str(error.response.headers.get("Retry-After") or "")
    reason = f"HTTP {status}: {error.server_message or text_of(error)}"
    transient = status >= 500 or status in TRANSIENT_STATUS
    return {"kind": kind, "reason": reason, "transient": transient, "after": float(asked) if asked.isdigit() else None}


def text_of(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def who_asks(api: HfApi) -> str | None:
    """Say whose token was used and what it may do, to explain a refusal; None when the Hub does not tell."""
    try:
        me = api.whoami()
        role = me.get("auth", {}).get("accessToken", {}).get("role", "unknown")
        return f"user {me['name']!r}, a token of role {role!r}"
    except Exception:  # the refusal itself is what matters: never hide it behind a failed question about it
        return None


def main() -> None:
    """Answer the one request on stdin."""
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=die_with_parent, daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(5)  # hashing gigabytes must not take the cores from the training process
    api = None
    try:
        api = connect(request)
        answer = {"open": do_open, "push": do_push, "fetch": do_fetch}[request["action"]](api, request)
        say("done", **answer)
    except Exception as error:
        found = explain(error)
        who = who_asks(api) if api is not None and found["kind"] == "right" else None
        say("failed", who=who, **found)
    os._exit(0)  # threads of the client may still hang in a dead connection


if __name__ == "__main__":
    main()
