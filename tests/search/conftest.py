"""Collecting garbage is most of what a tiny trial costs; what the imports made is none."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

os.environ["RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS"] = "0"


@pytest.fixture(scope="module", autouse=True)  # not longer: a run freezes only where nobody else has
def _frozen() -> Iterator[None]:
    import accelerate
    import optuna

    assert accelerate
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
