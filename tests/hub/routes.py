"""The requests that the loopback Hub answers, one function each, and the table that names them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tests.hub.storage import Repo, git_blob_id

LARGE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


class Answer:
    def __init__(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        self.status, self.body, self.headers = status, body, headers or {}


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer = Answer(status, {"error": message}, headers)


# ---- rights ----


def must_know(request: Any) -> dict[str, str]:
    user = request.user()
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    return dict(user)


def may_write(request: Any, name: str) -> None:
    user = must_know(request)
    if user["role"] != "write" or name.split("/")[0] != user["name"]:
        raise Refusal(403, f"You don't have the rights to write to {name}")


def find(request: Any, name: str) -> Repo:
    repo = request.hub.storage.repos.get(name)
    user = request.user()
    if repo is None or (repo.private and (user is None or user["name"] != name.split("/")[0])):
        raise Refusal(404, "Repository not found", "RepoNotFound")
    return repo  # type: ignore[no-any-return]


def tree_of(request: Any, name: str, revision: str) -> tuple[str, dict[str, Any]]:
    found = find(request, name).tree(revision)
    if found is None:
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return found


# ---- accounts and repositories ----


def whoami(request: Any) -> Answer:
    user = must_know(request)
    token = {"accessToken": {"role": user["role"], "displayName": "test"}}
    return Answer(200, {"type": "user", "name": user["name"], "orgs": [], "auth": token})


def create(request: Any) -> Answer:
    user, wanted = must_know(request), request.json()
    name = f"{wanted.get('organization') or user['name']}/{wanted['name']}"
    may_write(request, name)
    url = f"{request.hub.url}/{name}"
    if name in request.hub.storage.repos:
        return Answer(409, {"error": "You already created this model repo", "url": url})
    request.hub.storage.create(name, wanted.get("visibility") == "private")
    return Answer(200, {"url": url, "name": name, "id": name})


def info(request: Any, name: str, revision: str | None = None) -> Answer:
    oid, files = tree_of(request, name, revision or "main")
    siblings = [{"rfilename": path} for path in sorted(files)]
    return Answer(200, {"_id": name, "id": name, "modelId": name, "sha": oid, "siblings": siblings, "tags": []})


def auth_check(request: Any, name: str, write: str | None) -> Answer:
    find(request, name)
    if write:
        may_write(request, name)
    return Answer(200, {})


def branch(request: Any, name: str, wanted: str) -> Answer:
    may_write(request, name)
    repo = find(request, name)
    if wanted in repo.heads:
        return Answer(409, {"error": "Reference already exists"})
    repo.heads[wanted] = repo.heads["main"]
    return Answer(200, {})


def validate(request: Any) -> Answer:
    errors = request.hub.check_card(request.json()["content"])
    status = 400 if errors else 200
    return Answer(status, {"errors": [{"message": text} for text in errors], "warnings": []})


# ---- listing and reading ----


def entry_of(path: str, entry: dict[str, Any]) -> dict[str, Any]:
    row = {"type": "file", "path": path, "oid": entry["oid"], "size": entry["size"]}
    if entry["lfs"]:
        row["lfs"] = {"oid": entry["lfs"], "size": entry["size"], "pointerSize": 130}
    return row


def tree(request: Any, name: str, revision: str, folder: str | None = None) -> Answer:
    _, files = tree_of(request, name, revision)
    inside = f"{folder}/" if folder else ""
    rows = [entry_of(path, entry) for path, entry in sorted(files.items()) if path.startswith(inside)]
    if folder and not rows:
        raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
    folders = {row["path"].rsplit("/", 1)[0] for row in rows if "/" in row["path"]} - {folder}
    folder_rows = [{"type": "directory", "path": path, "oid": git_blob_id(path.encode())} for path in folders]
    return Answer(200, rows + folder_rows)


def resolve(request: Any, name: str, revision: str, path: str) -> Answer:
    oid, files = tree_of(request, name, revision)
    if path not in files:
        raise Refusal(404, "Entry not found", "EntryNotFound")
    entry = files[path]
    headers = {"X-Repo-Commit": oid, "ETag": f'"{entry["lfs"] or entry["oid"]}"'}
    if not entry["lfs"]:
        return part(request, request.hub.storage.read(entry), headers)
    headers |= {"X-Linked-Etag": f'"{entry["lfs"]}"', "X-Linked-Size": str(entry["size"])}
    return Answer(302, b"", {**headers, "Location": f"{request.hub.store_url}/lfs/{entry['lfs']}"})


def part(request: Any, content: bytes, headers: dict[str, str]) -> Answer:
    """The content, or the rest of it from where a download that was cut goes on."""
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if asked is None:
        return Answer(200, content, headers)
    start = int(asked[1])
    stop = int(asked[2]) + 1 if asked[2] else len(content)
    place = f"bytes {start}-{min(stop, len(content)) - 1}/{len(content)}"
    return Answer(206, content[start:stop], {**headers, "Content-Range": place})


def download(request: Any, sha256: str) -> Answer:
    return part(request, (request.hub.storage.folder / sha256).read_bytes(), {})


# ---- writing ----


def preupload(request: Any, name: str, revision: str) -> Answer:
    may_write(request, name)
    _, files = tree_of(request, name, revision)
    rows = []
    for file in request.json()["files"]:
        present = files.get(file["path"])
        mode = "lfs" if file["path"].endswith(LARGE_SUFFIXES) else "regular"
        oid = present and (present["lfs"] or present["oid"])
        rows.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return Answer(200, {"files": rows})


def lfs_batch(request: Any, name: str) -> Answer:
    may_write(request, name)
    objects = []
    for wanted in request.json()["objects"]:
        row = {"oid": wanted["oid"], "size": wanted["size"]}
        if not request.hub.storage.has(wanted["oid"]):
            base = f"{request.hub.store_url}/lfs"
            actions = {
                "upload": {"href": f"{base}/{wanted['oid']}"},
                "verify": {"href": f"{request.hub.url}/lfs/verify/{name}"},
            }
            row["actions"] = actions
        objects.append(row)
    return Answer(200, {"transfer": "basic", "objects": objects})


def lfs_put(request: Any, sha256: str) -> Answer:
    if not request.hub.storage.keep_large(sha256, request.body):
        return Answer(400, {"error": "the content does not have the hash that was announced"})
    return Answer(200, b"")


def lfs_verify(request: Any, name: str) -> Answer:
    may_write(request, name)
    return Answer(200 if request.hub.storage.has(request.json()["oid"]) else 404, {})


def commit(request: Any, name: str, revision: str) -> Answer:
    may_write(request, name)
    repo, storage = find(request, name), request.hub.storage
    _, files = tree_of(request, name, revision)
    files, message = dict(files), ""
    for line in request.lines():
        key, value = line["key"], line["value"]
        if key == "header":
            message = value["summary"]
        elif key == "file":
            files[value["path"]] = storage.keep(request.decode(value["content"]))
        elif key == "lfsFile":
            if not storage.has(value["oid"]):
                return Answer(400, {"error": f"{value['path']}: the content was never sent"})
            files[value["path"]] = storage.large(value["oid"], value["size"])
        elif key == "deletedFile":
            if value["path"] not in files:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            del files[value["path"]]
    oid = repo.commit(revision, message, files)
    return Answer(200, {"commitUrl": f"{request.hub.url}/{name}/commit/{oid}", "commitOid": oid})


NAME = r"([\w.-]+/[\w.-]+)"
REVISION = r"([\w.-]+)"
TABLE: list[tuple[str, Callable[..., Answer]]] = [
    (r"GET /api/whoami-v2", whoami),
    (r"POST /api/repos/create", create),
    (rf"GET /api/models/{NAME}", info),
    (rf"GET /api/models/{NAME}/revision/{REVISION}", info),
    (rf"GET /api/models/{NAME}/auth-check(/write)?", auth_check),
    (rf"POST /api/models/{NAME}/branch/{REVISION}", branch),
    (r"POST /api/validate-yaml", validate),
    (rf"GET /api/models/{NAME}/tree/{REVISION}(?:/(.+))?", tree),
    (rf"(?:GET|HEAD) /{NAME}/resolve/{REVISION}/(.+)", resolve),
    (r"(?:GET|HEAD) /lfs/([0-9a-f]{64})", download),
    (rf"POST /api/models/{NAME}/preupload/{REVISION}", preupload),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", lfs_batch),
    (r"PUT /lfs/([0-9a-f]{64})", lfs_put),
    (rf"POST /lfs/verify/{NAME}", lfs_verify),
    (rf"POST /api/models/{NAME}/commit/{REVISION}", commit),
]
ROUTES = [(re.compile(pattern), reply) for pattern, reply in TABLE]
