"""Both workers start once per session and run only what was selected."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Pair, wanted_by


@pytest.fixture(scope="session")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Records of both libraries for the scenarios that this session's tests name as `scenarios`."""
    folder: Path = tmp_path_factory.mktemp("parity")
    with Pair(folder, wanted_by(request.session.items, "tests.parity.")) as workers:
        yield workers
