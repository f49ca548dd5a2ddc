"""What tells one data set from another."""

from __future__ import annotations

from datasets import Dataset, DatasetDict

from onward.data.columns import fingerprint


def rows(first: int) -> Dataset:
    return Dataset.from_dict({"x": [first, *range(5)]})


def test_several_sets_have_a_fingerprint_of_their_parts() -> None:
    both = DatasetDict(a=rows(1), b=rows(2))
    assert fingerprint(both) == fingerprint(DatasetDict(a=rows(1), b=rows(2)))
    assert fingerprint(both) != fingerprint(DatasetDict(a=rows(1), b=rows(3)))
    assert fingerprint(both) != fingerprint(DatasetDict(a=rows(1), c=rows(2)))
