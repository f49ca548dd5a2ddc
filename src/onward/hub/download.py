"""Resume from the Hub: ``hub:user/model``, ``hub:user/model@revision``, ``hub:user/model/checkpoint-40@revision``."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from onward.errors import HubError, NoCheckpoint, UsageError
from onward.hub.place import HubPlace, Patience
from onward.hub.process import Call, Failure

PREFIX = "hub:"
LAST = "last-checkpoint"
SOURCE = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)(/(?P<folder>[\w.-]+))?(@(?P<revision>.+))?")
# A byte has to arrive at least this often, in seconds.
STALL = 60.0
TRIES = 3


def parse(source: str) -> tuple[str, str | None, str | None]:
    """Split ``hub:user/model[/folder][@revision]`` into repository, folder and revision."""
    match = SOURCE.fullmatch(source)
    if match is None:
        raise UsageError(f"got {source!r}; expected 'hub:user/model', optionally with '/checkpoint-N' and '@revision'")
    return match["repo"], match["folder"], match["revision"]


def on_disk(source: object, output_dir: str) -> object | None:
    """Return `source` where it needs no download, else None.

    ``hub:…`` always does; ``last-checkpoint`` does where neither the working folder nor `output_dir` has such a folder.
    """
    if source == LAST:
        folders = [Path(LAST), Path(output_dir, LAST)]
        return next((str(folder) for folder in folders if folder.is_dir()), None)
    return None if isinstance(source, str) and source.startswith(PREFIX) else source


def fetch(source: str, home: HubPlace) -> str:
    """Download the checkpoint that `source` names and return its folder in the cache of the Hub client.

    `home` is the run's own repository, which ``last-checkpoint`` alone refers to. Files that the cache already has are
    not downloaded again; all come from one commit. Raises `NoCheckpoint` when the repository has none, `HubError` when
    it cannot be read.
    """
    place, folder = home, source if source == LAST else None
    if folder is None:
        repo, folder, revision = parse(source)
        place = replace(home, repo=repo, revision=revision)
    answer = ask({**place.to_request(), "action": "fetch", "folder": folder, "stall": STALL}, place)
    if answer["path"] is None:
        raise NoCheckpoint(
            f"{place.title} has no checkpoint{f' {folder!r}' if folder else ''}; it has: {answer['folders']}. "
            "Push one with hub_strategy='checkpoint' or 'all_checkpoints'."
        )
    return str(answer["path"])


def ask(request: dict[str, Any], place: HubPlace) -> dict[str, Any]:
    """Run the download, up to `TRIES` times while trying again can help; what has arrived is kept between tries."""
    patience = Patience(first_wait=1.0)
    for attempt in range(1, TRIES + 1):
        try:
            return Call(request).run()
        except Failure as failure:
            if not failure.transient or attempt == TRIES:
                raise HubError(f"cannot download a checkpoint from {place.title}: {failure}") from failure
            time.sleep(patience.wait(attempt, failure.after))
    raise AssertionError("unreachable")


def attempt(source: str, home: HubPlace, mine: bool) -> str | Exception | None:
    """`fetch` for several ranks: the folder, or the error for the others to hear; None where it is not `mine` to do."""
    if not mine:
        return None
    try:
        return fetch(source, home)
    except (HubError, UsageError) as error:
        return type(error)(str(error))
