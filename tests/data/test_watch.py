"""What a piece of data work draws is found out, or known, and then done under its own seeds."""

from __future__ import annotations

import random

from onward.data.watch import Watch


def test_a_watch_told_that_nothing_is_drawn_looks_at_nothing() -> None:
    assert Watch(None, False).run(lambda: "plain", lambda: "seeded", in_worker=True) == "plain"
    assert Watch(None).run(lambda: "plain", lambda: "seeded") == "plain"
    assert Watch(None).run(lambda: (random.random(), "plain")[1], lambda: "seeded") == "seeded"
