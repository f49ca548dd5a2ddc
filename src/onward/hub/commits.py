"""Give back what huggingface_hub gives back: the `CommitInfo` of a push, now or in a future."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING

from onward.errors import HubError
from onward.hub.place import Outcome

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


def commit_of(outcome: Outcome) -> CommitInfo | str:
    """Return the commit of a push that arrived; raises `HubError` for one that did not.

    It is the commit's plain URL where HF_ENDPOINT was set after huggingface_hub was imported: the worker process, which
    read it later, pushed to a host that the client in this process does not take for a Hub.
    """
    from huggingface_hub import CommitInfo

    if outcome.status != "pushed":
        raise HubError(f"{outcome.name} was not pushed: {outcome.reason}")
    try:
        return CommitInfo(outcome.url, outcome.message, "", outcome.oid)
    except ValueError:
        return outcome.url


def later(future: Future[Outcome]) -> Future[CommitInfo | str]:
    """Return a future of the commit; `HubError` is its exception when the push fails."""
    commit: Future[CommitInfo | str] = Future()

    def settle(done: Future[Outcome]) -> None:
        try:
            commit.set_result(commit_of(done.result()))
        except Exception as error:
            commit.set_exception(error)

    future.add_done_callback(settle)
    return commit
