from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from onward.errors import HubError
from onward.hub.place import HubPlace
from onward.hub.repo import open_repo, repo_name
from tests.hub.server import OTHER, READER, HubServer


def test_creates_the_repository_and_the_branch_once(hub: HubServer) -> None:
    assert open_repo(HubPlace("model", private=True, revision="draft")) == "user/model"
    assert open_repo(HubPlace("user/model", private=False, revision="draft")) == "user/model"
    repo = hub.storage.repos["user/model"]
    assert repo.private
    assert set(repo.heads) == {"main", "draft"}


def theirs(hub: HubServer) -> None:
    hub.storage.create("other/model", private=False)


def down(hub: HubServer) -> None:
    hub.stop()


def broken(hub: HubServer) -> None:
    hub.fail("POST /api/repos/create", "status", status=503)


def nothing(hub: HubServer) -> None:
    pass


@pytest.mark.parametrize(
    ("prepare", "place", "what", "remedy"),
    [
        (nothing, HubPlace("user/m", token="hf_wrong"), "the token was refused", "hf auth login"),
        (nothing, HubPlace("user/m", token=READER), "no right to create it .*role 'read'", "namespace"),
        (nothing, HubPlace("user/m", token=OTHER), "no right to create it .*user 'other'", "namespace"),
        (theirs, HubPlace("other/model"), "the name is taken .*other/model exists", "another name"),
        (nothing, HubPlace("a/b/c"), "no name for a repository", "'user/name'"),
        (down, HubPlace("user/m"), "the Hub cannot be reached .*[Cc]onnect", "HF_ENDPOINT"),
        (broken, HubPlace("user/m"), "the Hub has trouble .*503", "try again later"),
    ],
    ids=["bad token", "read-only token", "other's namespace", "name taken", "bad name", "no network", "server error"],
)
def test_says_what_is_wrong_and_what_to_do(
    hub: HubServer, prepare: Callable[[HubServer], None], place: HubPlace, what: str, remedy: str
) -> None:
    prepare(hub)
    with pytest.raises(HubError, match=f"(?s)cannot push to {place.repo}: .*{what}.*{remedy}") as caught:
        open_repo(place)
    assert "hf_" not in str(caught.value), "a token must not be printed"


def test_no_token_at_all(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"no token was found.*hf auth login"):
        open_repo(HubPlace("user/m"))
    assert not hub.asked("POST"), "there is nothing to ask the Hub without a token"


def test_offline_mode_is_named(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        open_repo(HubPlace("user/m"))


def test_a_silent_network_holds_the_start_for_the_limit_only(hub: HubServer) -> None:
    hub.fail(".", "hang")
    begin = time.monotonic()
    with pytest.raises(HubError, match=r"no answer within 1\.5 s"):
        open_repo(HubPlace("user/m"), limit=1.5)
    assert time.monotonic() - begin < 30, "the Hub would have answered after ten minutes"


def test_the_name_of_the_repository(tmp_path: object) -> None:
    assert repo_name("user/m", "out/run") == "user/m"
    assert repo_name(None, "out/run") == "run"
