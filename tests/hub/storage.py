"""The disk behind the loopback Hub: repositories as commits, each a map of paths to blobs, and content by its hash."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

File = dict[str, Any]  # {"oid": git blob id, "size": bytes, "lfs": sha256 or None}


def git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    """A repository: its owner, the commits in order and the branch heads."""

    name: str
    private: bool = False
    commits: list[dict[str, Any]] = field(default_factory=list)
    heads: dict[str, str] = field(default_factory=dict)

    def tree(self, revision: str) -> tuple[str, dict[str, File]] | None:
        """(commit id, files) of a branch or commit; None when there is no such thing."""
        oid = self.heads.get(revision, revision)
        for commit in self.commits:
            if commit["oid"] == oid:
                return oid, commit["files"]
        return None

    def commit(self, branch: str, message: str, files: dict[str, File]) -> str:
        """Put a commit on a branch and return its id."""
        stamp = json.dumps([self.name, branch, message, len(self.commits), sorted(files)])
        oid = hashlib.sha1(stamp.encode()).hexdigest()
        self.commits.append({"oid": oid, "message": message, "files": files})
        self.heads[branch] = oid
        return oid


class Storage:
    """Every repository, and the content of every file in a folder named after its hashes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.repos: dict[str, Repo] = {}
        self.lock = threading.RLock()

    def create(self, name: str, private: bool) -> Repo:
        repo = self.repos[name] = Repo(name, private)
        content = b"*.safetensors filter=lfs\n*.pt filter=lfs\n*.bin filter=lfs\n*.pth filter=lfs\n"
        repo.commit("main", "initial commit", {".gitattributes": self.keep(content)})
        return repo

    def keep(self, content: bytes) -> File:
        """Store a small file and return its entry."""
        oid = git_blob_id(content)
        (self.folder / oid).write_bytes(content)
        return {"oid": oid, "size": len(content), "lfs": None}

    def keep_large(self, sha256: str, content: bytes) -> bool:
        """Store a large file under the hash that was announced; False when the content does not match it."""
        if hashlib.sha256(content).hexdigest() != sha256:
            return False
        (self.folder / sha256).write_bytes(content)
        return True

    def has(self, sha256: str) -> bool:
        return (self.folder / sha256).is_file()

    def large(self, sha256: str, size: int) -> File:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return {"oid": git_blob_id(pointer.encode()), "size": size, "lfs": sha256}

    def put(self, repo: str, message: str, folder: str, files: dict[str, bytes]) -> str:
        """Commit files under a folder, weights and other large ones as the Hub keeps them; return the commit's id."""
        entries = dict(self.repos[repo].commits[-1]["files"])
        for path, content in files.items():
            digest = hashlib.sha256(content).hexdigest()
            is_large = path.endswith((".safetensors", ".pt", ".pth", ".bin")) and self.keep_large(digest, content)
            entries[f"{folder}/{path}"] = self.large(digest, len(content)) if is_large else self.keep(content)
        return self.repos[repo].commit("main", message, entries)

    def read(self, entry: File) -> bytes:
        return (self.folder / (entry["lfs"] or entry["oid"])).read_bytes()

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """Path -> content of a repository, for assertions."""
        found = self.repos[repo].tree(revision)
        assert found is not None, f"{repo} has no revision {revision}"
        return {path: self.read(entry) for path, entry in found[1].items()}

    def messages(self, repo: str) -> list[str]:
        return [commit["message"] for commit in self.repos[repo].commits]
