import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.tiny import tiny_tokenizer
from transformers import (
    BatchEncoding,
    DataCollatorWithPadding,
    Wav2Vec2FeatureExtractor,
    default_data_collator as theirs,
)

from onward.data.collate import choose_collator, default_data_collator
from onward.errors import DataError, UsageError

SAMPLES = {
    "whole labels": [{"x": [1, 2], "label": 0}, {"x": [3, 4], "label": 1}],
    "fractions": [{"x": [1.5, 2.0], "label": 0.5}, {"x": [3.0, 4.0], "label": 1}],
    "truth": [{"flag": True, "label": True}, {"flag": False, "label": False}],
    "label tensors": [{"label": torch.tensor(1)}, {"label": torch.tensor(2)}],
    "label float tensors": [{"label": torch.tensor(1.0)}, {"label": torch.tensor(2.0)}],
    "numpy labels": [{"label": np.int32(1)}, {"label": np.int32(2)}],
    "label ids": [{"label_ids": [0, 1, -100]}, {"label_ids": [2, 1, 0]}],
    "label ids with fractions": [{"label_ids": [0.5, 1]}, {"label_ids": [2, 1]}],
    "label id tensors": [{"label_ids": torch.tensor([0, 1])}, {"label_ids": torch.tensor([2, 1])}],
    "label id arrays": [{"label_ids": np.array([0, 1])}, {"label_ids": np.array([2, 1])}],
    "label id doubles": [{"label_ids": np.array([0.1, 1])}, {"label_ids": np.array([2, 1.0])}],
    "labels under their own name": [{"labels": 1, "x": 2}, {"labels": 3, "x": 4}],
    "both": [{"label": 1, "label_ids": [1, 2]}, {"label": 0, "label_ids": [3, 4]}],
    "no label value": [{"label": None, "label_ids": [1, 2], "x": 1}, {"label": None, "label_ids": [3, 4], "x": 2}],
    "strings and nothing": [{"text": "a", "none": None, "x": 1}, {"text": "b", "none": None, "x": 2}],
    "tensors": [{"x": torch.ones(2, 3)}, {"x": torch.zeros(2, 3)}],
    "arrays": [{"x": np.ones((2, 3), dtype=np.float16)}, {"x": np.zeros((2, 3), dtype=np.float16)}],
    "attributes": [SimpleNamespace(x=[1, 2], label=1), SimpleNamespace(x=[3, 4], label=0)],
    "encodings": [BatchEncoding({"input_ids": [1, 2]}), BatchEncoding({"input_ids": [3, 4]})],
}


@pytest.mark.filterwarnings("ignore:Creating a tensor from a list of numpy")  # theirs
@pytest.mark.parametrize("kind", SAMPLES)
def test_batches_are_those_of_transformers(kind):
    ours, reference = default_data_collator(SAMPLES[kind]), theirs(SAMPLES[kind])
    assert list(ours) == list(reference)
    for key in ours:
        assert ours[key].dtype == reference[key].dtype
        assert torch.equal(ours[key], reference[key])


@pytest.mark.parametrize("kind", [kind for kind in SAMPLES if "tensor" not in kind])
def test_arrays_are_those_of_transformers(kind):
    ours, reference = default_data_collator(SAMPLES[kind], "np"), theirs(SAMPLES[kind], "np")
    assert list(ours) == list(reference)
    for key in ours:
        np.testing.assert_array_equal(ours[key], reference[key], strict=True)


def test_samples_of_different_length_are_an_error_that_names_the_column():
    samples = [{"ok": 1, "input_ids": [1, 2, 3]}, {"ok": 1, "input_ids": [1]}]
    with pytest.raises(DataError, match=r"'input_ids'.*list of shape \(1,\), list of shape \(3,\).*Pad them"):
        default_data_collator(samples)
    tensors = [{"input_ids": torch.tensor(sample["input_ids"])} for sample in samples]
    with pytest.raises(DataError, match=r"'input_ids'.*Tensor of shape \(1,\)"):
        default_data_collator(tensors)


def test_a_missing_key_is_an_error_that_names_the_sample():
    with pytest.raises(DataError, match=r"Sample 1 of a batch has no 'x'.*\['y'\]"):
        default_data_collator([{"x": 1}, {"y": 1}])


def test_tuples_are_an_error_that_says_what_to_do():
    with pytest.raises(DataError, match=r"of type tuple, expected a mapping.*data_collator"):
        default_data_collator([(torch.ones(1), 2)])


def test_an_unknown_kind_of_tensor_is_an_error():
    with pytest.raises(UsageError, match="return_tensors='tf'"):
        default_data_collator([{"x": 1}], "tf")


def test_what_can_pad_pads():
    tokenizer = tiny_tokenizer()
    collator = choose_collator(tokenizer)
    assert isinstance(collator, DataCollatorWithPadding)
    assert collator([{"input_ids": [5, 6]}, {"input_ids": [5]}])["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert isinstance(choose_collator(Wav2Vec2FeatureExtractor()), DataCollatorWithPadding)
    assert choose_collator(None) is default_data_collator
    assert choose_collator(object()) is default_data_collator


def test_choosing_imports_nothing():
    code = (
        "import sys; from onward.data.collate import choose_collator; choose_collator(object());"
        "sys.exit('transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_workers_can_be_given_the_collator():
    assert pickle.loads(pickle.dumps(default_data_collator)) is default_data_collator
