"""Runs pieces of data work so that what they draw is a function of the keys that they are given.

Draws come from the global generators (`onward.data.draws`) and from those that the data itself keeps
(`onward.data.generators`). The latter are looked for whenever an epoch begins, since a data set may take a new one in
`set_epoch`, and once more behind its first piece, since one may be made at the first draw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from onward.data.draws import mark, moved, protected, rewind, seed_streams
from onward.data.generators import owned_by, put_back_owned, seed_owned, states_of_owned

T = TypeVar("T")


class Watch:
    """Watches the draws of one data set or collator."""

    def __init__(self, data: Any, draws: bool | None = None) -> None:
        """`draws`: whether `data` is known to draw (`True`), known not to (`False`), or to be found out (`None`)."""
        self.draws = draws
        self._data = data
        self._own: list[Any] = []
        self._epoch: int | None = None
        self.look()

    def look(self) -> bool:
        """Look for the generators of the data anew; returns whether they are others than before."""
        before, self._own = self._own, owned_by(self._data)
        if self._own:
            self.draws = True
        more = len(self._own) > len(before)
        return more or any(now is not then for now, then in zip(self._own, before, strict=False))

    def seed(self, key: int) -> None:
        """Seed the global generators, and those of the data."""
        seed_streams(key)
        seed_owned(self._own, key)

    def run(
        self, plain: Callable[..., T], seeded: Callable[..., T], *work: Any, epoch: int = 0, in_worker: bool = False
    ) -> T:
        """Run `plain`; if that draws, forget its result and run `seeded`.

        Args:
            plain: does the work as it is.
            seeded: does the same work, calling `seed` before each piece.
            work: what both are called with.
            epoch: of the work.
            in_worker: this is a loader worker, which has no stream of its own to protect.
        """
        if self.draws is False:
            return plain(*work)
        if epoch == self._epoch:
            return self._run(plain, seeded, work, in_worker)
        self._epoch = epoch
        self.look()
        result = self._run(plain, seeded, work, in_worker)
        return self._run(plain, seeded, work, in_worker) if self.look() else result

    def _run(self, plain: Callable[..., T], seeded: Callable[..., T], work: tuple[Any, ...], in_worker: bool) -> T:
        if in_worker:
            return seeded(*work)
        if self.draws is None:
            before = mark()
            result = plain(*work)
            if not moved(before):
                return result
            rewind(before)
            self.draws = True
        states = states_of_owned(self._own)
        try:
            return protected(lambda: seeded(*work))
        finally:
            put_back_owned(self._own, states)  # whoever else draws from them goes on as if this had not been
