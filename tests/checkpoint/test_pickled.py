"""What may be written into a checkpoint by pickle, and what is made of it again."""

from __future__ import annotations

import copyreg
import datetime
import enum
import io
import sys
import threading
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
import pytest
import torch

from onward.checkpoint import parts, pickled
from onward.errors import BrokenCheckpoint, UnreadableState

Pair = namedtuple("Pair", "left right")


class Typed(NamedTuple):
    """A named tuple in its other spelling."""

    left: int
    right: Any


class Phase(enum.Enum):
    """As a schedule remembers where it is."""

    WARM = "warm"
    COOL = "cool"


class Level(enum.IntFlag):
    """Members are numbers, too."""

    LOW = 1
    HIGH = 2


class Window:
    """A class of the user's."""

    def __init__(self, size: int = 1) -> None:
        self.size = size


def there_and_back(value: Any) -> Any:
    buffer = io.BytesIO()
    pickled.write({"state": [value]}, buffer, "optimizer.pt")
    return pickled.read(buffer.getvalue())["state"][0]


VALUES = [
    deque([1.0, 2.0], maxlen=3), deque([deque([1], 2)]), defaultdict(list, {1: [2]}), defaultdict(None, {1: 2}),
    frozenset([1]), {1, 2}, Counter("abba"), OrderedDict(a=1), Pair(1, Pair(2, 3)), Typed(1, "a"), Phase.COOL,
    Level.LOW | Level.HIGH, {Phase.WARM: 1}, datetime.datetime(2024, 2, 3, 4, 5, 6, 7, tzinfo=datetime.UTC),
    datetime.date(2024, 2, 3), datetime.time(1), datetime.timedelta(1, 2), Path("/a/b"), Decimal("1.10"),
    Fraction(1, 3), UUID(int=7), np.float32(1.5), np.int64(3), np.bool_(True), np.complex64(1j), np.str_("a"),
    np.datetime64("2024-02-03"), np.dtype("float16"), torch.bfloat16, 1j, b"x", "text", None,
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_back(value: Any) -> None:
    again = there_and_back(value)
    assert type(again) is type(value)
    assert again == value
    if isinstance(value, deque):
        assert again.maxlen == value.maxlen
    if isinstance(value, defaultdict):
        assert again.default_factory is value.default_factory


@pytest.mark.parametrize(
    "array", [np.arange(6.0).reshape(2, 3).T, np.array(["a", "bc"]), np.array(1, np.uint8)], ids=str
)
def test_an_array_comes_back(array: np.ndarray[Any, Any]) -> None:
    again = there_and_back(array)
    assert again.dtype == array.dtype
    np.testing.assert_array_equal(again, array)


def with_attribute() -> torch.Tensor:
    tensor = torch.ones(1)
    tensor.window = Window()  # type: ignore[attr-defined]
    return tensor


@pytest.mark.parametrize(
    ("value", "place", "kind"),
    [
        (Window(), "optimizer.pt['state'][0]", "test_pickled.Window"),
        ({"a": deque([1, Window()])}, "optimizer.pt['state'][0]['a'][1]", "test_pickled.Window"),
        (lambda: 0, "optimizer.pt['state'][0]", "function"),
        (torch.Generator(), "optimizer.pt['state'][0]", "torch._C.Generator"),
        (np.array([Window()]), "optimizer.pt['state'][0]", "numpy.ndarray"),
        (with_attribute(), "optimizer.pt['state'][0]", "torch.Tensor"),
        (defaultdict(Window, {1: 2}), "the default_factory of optimizer.pt['state'][0]", "type"),
        (Typed(1, Window()), "optimizer.pt['state'][0]", "test_pickled.Typed"),
    ],
    ids=["class", "deep", "function", "generator", "array", "attribute", "factory", "tuple"],
)
def test_what_would_not_come_back_is_refused_by_place_and_type(value: Any, place: str, kind: str) -> None:
    buffer = io.BytesIO()
    with pytest.raises(UnreadableState) as caught:
        pickled.write({"state": [value]}, buffer, "optimizer.pt")
    assert f"{place} is a " in str(caught.value)
    assert f"{kind};" in str(caught.value)
    assert "add_safe_globals" in str(caught.value)
    assert not buffer.getvalue()


def test_an_allowed_class_comes_back_and_stays_allowed() -> None:
    with torch.serialization.safe_globals([Window, deque]):
        assert there_and_back(deque([Window(5)]))[0].size == 5
        assert {Window, deque} <= set(torch.serialization.get_safe_globals())
    assert deque not in torch.serialization.get_safe_globals()


def test_what_is_registered_later_for_copying_is_pickled_that_way() -> None:
    def made(window: Window) -> Any:
        return str, ("a window",)

    copyreg.pickle(Window, made)
    try:
        assert there_and_back(Window()) == "a window"
    finally:
        del copyreg.dispatch_table[Window]


def test_a_file_with_a_class_that_is_not_allowed_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"window": Window()}, tmp_path / "optimizer.pt")
    with pytest.raises(UnreadableState, match=r"optimizer\.pt holds .*test_pickled\.Window, .*add_safe_globals"):
        parts.read_torch(tmp_path / "optimizer.pt")


def test_a_deque_that_torch_wrote_is_refused_without_being_made(tmp_path: Path) -> None:
    torch.save({"window": deque([1])}, tmp_path / "optimizer.pt")  # as transformers would
    with pytest.raises(
        BrokenCheckpoint, match=r"optimizer\.pt cannot be loaded \(UnpicklingError: .*deque.*\)$"
    ) as told:
        parts.read_torch(tmp_path / "optimizer.pt")
    assert "weights_only" not in str(told.value)


def test_a_module_that_is_not_imported_is_not_imported_for_a_file(tmp_path: Path) -> None:
    assert "wave" not in sys.modules
    content = pickled_with_global("wave", "Error")
    with pytest.raises(Exception, match="wave"):
        pickled.read(content)
    assert "wave" not in sys.modules
    assert pickled.not_allowed(content) == ["wave.Error"]


def pickled_with_global(module: str, name: str) -> bytes:
    """A file of torch's that holds a class by its name."""

    buffer = io.BytesIO()
    torch.save({"a": 1}, buffer)
    changed = io.BytesIO()
    told = f"\x80\x02c{module}\n{name}\n.".encode("latin1")
    with zipfile.ZipFile(buffer) as before, zipfile.ZipFile(changed, "w") as after:
        for entry in before.namelist():
            after.writestr(entry, told if entry.endswith("data.pkl") else before.read(entry))
    return changed.getvalue()


def test_two_threads_do_not_take_each_other_s_permission_away() -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(50):
                there_and_back(deque([1]))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not failed
