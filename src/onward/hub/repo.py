"""Make sure, before training, that there is a repository to push to and a right to do so."""

from __future__ import annotations

from pathlib import Path

from onward.errors import HubError
from onward.hub.place import HubPlace
from onward.hub.process import Call, Failure

# Seconds for all of it: a network that swallows packets must not hold the start of training for long.
OPEN_LIMIT = 60.0

WHAT_FAILED = {
    "token": "the token was refused",
    "right": "the token has no right to create it",
    "taken": "the name is taken",
    "name": "that is no name for a repository",
    "missing": "it does not exist and cannot be created",
    "offline": "the Hub client is offline",
    "network": "the Hub cannot be reached",
    "rate": "the Hub refuses requests for now",
    "server": "the Hub has trouble",
}


def repo_name(hub_model_id: str | None, output_dir: str) -> str:
    """The repository to use: the one that was named, or the name of the output folder."""
    return hub_model_id or Path(output_dir).absolute().name


def open_repo(place: HubPlace, limit: float = OPEN_LIMIT) -> str:
    """Create the repository and branch where they are missing, check the right to write, and return ``user/name``.

    Raises `HubError` with what is wrong and what to do about it.
    """
    request = {**place.to_request(), "action": "open", "stall": min(limit, 30.0)}
    try:
        return str(Call(request).run(limit=limit)["repo"])
    except Failure as failure:
        what = WHAT_FAILED.get(failure.kind, "the Hub said no")
        raise HubError(f"cannot push to {place.title}: {what} ({failure})") from failure
