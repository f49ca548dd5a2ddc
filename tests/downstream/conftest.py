"""Both sides start once per session and run only what was selected."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.parity.harness import Pair, wanted_by

from .scenarios import SCENARIOS


class Downstream(Pair):
    """Other libraries' trainers over transformers' base class, and over ours."""

    worker = "tests.downstream.worker"

    def choose(self, names: list[str]) -> list[str]:
        return [name for name in SCENARIOS if name in names]


@pytest.fixture(scope="session")
def sides(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Records of both sides for the scenarios that this session's tests name."""
    with Downstream(
        tmp_path_factory.mktemp("downstream"), wanted_by(request.session.items, "tests.downstream.")
    ) as two:
        yield two
