"""The words: same members as transformers', a hint for a wrong one; the tuples: same fields, same unpacking."""

import numpy as np
import pytest
import transformers.debug_utils
import transformers.trainer_utils
import transformers.training_args

from onward import types
from onward.errors import UsageError

THEIRS = (transformers.trainer_utils, transformers.training_args, transformers.debug_utils)
ENUMS = [
    "IntervalStrategy",
    "SaveStrategy",
    "HubStrategy",
    "HPSearchBackend",
    "SchedulerType",
    "OptimizerNames",
    "ParallelMode",
    "DebugOption",
]


def their(name):
    return next(getattr(module, name) for module in THEIRS if hasattr(module, name))


@pytest.mark.parametrize("name", ENUMS)
def test_enums_have_the_members_of_transformers(name):
    ours = [(member.name, member.value) for member in getattr(types, name)]
    assert ours == [(member.name, member.value) for member in their(name)]


@pytest.mark.parametrize("name", [name for name in ENUMS if name != "ParallelMode"])
def test_members_equal_their_text_and_the_member_of_transformers(name):
    for ours, theirs in zip(getattr(types, name), their(name), strict=True):
        assert ours == ours.value == theirs


@pytest.mark.parametrize("name", ["TrainOutput", "EvalLoopOutput", "PredictionOutput", "BestRun"])
def test_tuples_have_the_fields_and_defaults_of_transformers(name):
    assert getattr(types, name)._fields == their(name)._fields
    assert getattr(types, name)._field_defaults == their(name)._field_defaults


def test_wrong_word_names_the_nearest_and_all_choices():
    with pytest.raises(
        UsageError, match=r"'step' is not a valid IntervalStrategy.*no, steps, epoch.*Did you mean 'steps'"
    ):
        types.IntervalStrategy("step")


def test_word_far_from_any_gets_no_hint():
    with pytest.raises(ValueError) as raised:
        types.SchedulerType("xyzzy")
    assert "Did you mean" not in str(raised.value)


PARTS = {"predictions": np.zeros(2), "label_ids": np.ones(2)}


@pytest.mark.parametrize("extra", [{}, {"inputs": np.arange(2)}, {"losses": np.arange(3)}, {"inputs": 1, "losses": 2}])
def test_eval_prediction_unpacks_like_that_of_transformers(extra):
    ours, theirs = types.EvalPrediction(**PARTS, **extra), their("EvalPrediction")(**PARTS, **extra)
    assert len(list(ours)) == len(list(theirs)) == 2 + len(extra)
    for index, part in enumerate(theirs):
        assert ours[index] is part
    with pytest.raises(IndexError):
        ours[len(list(theirs))]
    with pytest.raises(IndexError):
        ours[-1]
