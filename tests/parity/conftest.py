"""Both workers start once per session and run only what was selected."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Pair


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark by which a test says what must be run for it."""
    config.addinivalue_line("markers", "scenarios(*names): the parity scenarios whose records a test reads")


@pytest.fixture(scope="session")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Records of both libraries for the scenarios that this session's tests name as `scenarios`."""
    wanted: list[str] = []
    for item in request.session.items:
        mark = item.get_closest_marker("scenarios")
        wanted += mark.args if mark else ()
    folder: Path = tmp_path_factory.mktemp("parity")
    with Pair(folder, list(dict.fromkeys(wanted))) as workers:
        yield workers
