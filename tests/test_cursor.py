"""Where a run stands in its data, and whether another one can go on from there."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from onward.cursor import Cursor
from onward.errors import CheckpointMismatch

HERE = Cursor(epoch=1, step=3, seed=42, num_samples=100, micro_batch_size=4, accumulation=2, world_size=1)
START = replace(HERE, epoch=0, step=0)


def test_it_survives_json() -> None:
    assert Cursor.from_dict(json.loads(json.dumps(HERE.to_dict()))) == HERE
    assert Cursor.from_dict({**HERE.to_dict(), "from a later version": 1}) == HERE


def test_it_goes_on() -> None:
    assert HERE.advance(1, 4).step == 4
    ended = HERE.end_epoch()
    assert ended.epoch_ended
    assert not ended.advance(2, 1).epoch_ended


@pytest.mark.parametrize("split", [{"micro_batch_size": 8, "accumulation": 1}, {"accumulation": 1, "world_size": 2}])
def test_another_split_of_the_same_batch_is_no_difference(split: dict[str, int]) -> None:
    now = replace(START, **split)
    assert HERE.differences(now) == []
    assert HERE.resume(now) == replace(now, epoch=1, step=3)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"micro_batch_size": 3}, "per_device_train_batch_size"),
        ({"seed": 43}, "data_seed"),
        ({"num_samples": 99}, "length of the training data"),
        ({"strategy": "sequential"}, "train_sampling_strategy"),
        ({"drop_last": True}, "dataloader_drop_last"),
    ],
)
def test_other_data_is_refused_by_name(change: dict[str, object], named: str) -> None:
    with pytest.raises(CheckpointMismatch, match=named) as caught:
        HERE.resume(replace(START, **change))  # type: ignore[arg-type]
    assert "allow_resume_mismatch=True" in str(caught.value)
    assert HERE.resume(replace(START, **change), allow_mismatch=True).step == 3  # type: ignore[arg-type]


def test_another_content_is_refused_where_it_is_known() -> None:
    known = replace(HERE, fingerprint="a")
    assert known.differences(replace(START, fingerprint="b"))
    assert not known.differences(replace(START, fingerprint=None))
