"""A pass through a stream that met its end has no batch left, wherever the stream stands then."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.data.test_streams import SHARE, Numbers, Stateful, loader_of, same

from onward.data.feed import Feed


class Rewinding(Stateful):
    """Stands at its beginning again when a pass has ended."""

    def __iter__(self) -> Iterator[float]:
        yield from super().__iter__()
        self.at, self._loaded = 0, False


@pytest.mark.parametrize("kind", [Numbers, Stateful, Rewinding])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [24, 25])
def test_a_pass_that_met_its_end_has_no_batch_left(kind: type, workers: int, size: int) -> None:
    feed = Feed(loader_of(kind(size), workers), SHARE, same)
    batches = feed.epoch(1)
    count = sum(1 for _ in batches)
    state = feed.state_dict()
    wanted = [b.tolist() for b in feed.epoch(2)]
    later = Feed(loader_of(kind(size), workers), SHARE, same)
    later.load_state_dict(state)
    assert list(later.epoch(1, skip=count)) == []
    assert [b.tolist() for b in later.epoch(2)] == wanted


def test_the_end_is_met_by_a_batch_that_is_not_full() -> None:
    feed = Feed(loader_of(Rewinding(4), 0), SHARE, same)
    batches = feed.epoch(1)
    assert [len(next(batches)), len(next(batches))] == [3, 1]
    later = Feed(loader_of(Rewinding(4), 0), SHARE, same)
    later.load_state_dict(feed.state_dict())
    assert list(later.epoch(1, skip=2)) == []
