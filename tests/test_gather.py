from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer_pt_utils import EvalLoopContainer

from onward.errors import DataError
from onward.gather import BatchStore, detach, find_batch_size, has_length, numpify, plain_numbers

Pair = namedtuple("Pair", "left right")


def same(ours, theirs):
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key in ours:
            same(ours[key], theirs[key])
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
    else:
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs, strict=True)


def concat(nests):
    store = BatchStore()
    for nest in nests:
        store.add(nest)
    return store.arrays()


def batches_of(kind):
    torch.manual_seed(1)
    sizes = [(4, 3), (4, 7), (2, 5)]
    if kind == "plain":
        return [torch.randn(n, 6) for n, _ in sizes]
    if kind == "vector":
        return [torch.randn(n) for n, _ in sizes]
    if kind == "ragged":
        return [torch.randn(n, length, 2) for n, length in sizes]
    if kind == "ragged labels":
        return [torch.randint(0, 9, (n, length)) for n, length in sizes]
    if kind == "bf16":
        return [torch.randn(n, length, 2).bfloat16() for n, length in sizes]
    if kind == "half":
        return [torch.randn(n, length).half() for n, length in sizes]
    if kind == "tuple":
        return [(torch.randn(n, 2), torch.randint(0, 5, (n, length))) for n, length in sizes]
    if kind == "nest":
        return [OrderedDict(a=torch.randn(n, 2), b=[torch.randn(n, length), torch.randn(n)]) for n, length in sizes]
    if kind == "single":
        return [torch.randn(4, 3)]
    if kind == "many":
        return [torch.randn(3, 1000) for _ in range(300)]  # several stretches of memory
    if kind == "many small ones":
        return [torch.randint(0, 9, (2,)) for _ in range(500)]
    if kind == "nothing in them":
        return [torch.zeros(n, 0) for n, _ in sizes]
    if kind == "truth":
        return [torch.ones(n, length, dtype=torch.bool) for n, length in sizes]
    if kind == "unsigned":
        return [torch.ones(n, length, dtype=torch.uint8) for n, length in sizes]
    if kind == "arrays and tensors":
        return [(torch.randn(n, 2), np.arange(n)) for n, _ in sizes]
    if kind == "one number a batch":
        return [torch.tensor(float(n)) for n, _ in sizes]
    raise AssertionError(kind)


KINDS = [
    "plain",
    "vector",
    "ragged",
    "ragged labels",
    "bf16",
    "half",
    "tuple",
    "nest",
    "single",
    "one number a batch",
    "many",
    "many small ones",
    "nothing in them",
    "truth",
    "unsigned",
]


@pytest.mark.parametrize(("join", "expected"), [(False, None), (True, None), (True, 3), (True, 10), (True, 2**45)])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_come_out_as_from_transformers(kind, join, expected):
    theirs, ours = EvalLoopContainer(join), BatchStore(join, expected)
    for batch in batches_of(kind):
        theirs.add(batch)
        ours.add(batch)
    same(ours.arrays(), theirs.get_arrays())


def test_arrays_beside_tensors_are_joined_too():
    joined = concat(batches_of("arrays and tensors"))
    assert joined[0].shape == (10, 2)
    assert joined[1].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


def test_one_number_alone_keeps_its_shape():
    same(concat([torch.tensor(3.0)]), np.array(3.0, dtype=np.float32))


def test_what_was_expected_is_filled_in_place():
    store = BatchStore(expected=10)
    for batch in batches_of("plain"):
        store.add(batch)
    array = store.arrays()
    assert array.base.untyped_storage().nbytes() == array.nbytes == 10 * 6 * 4


def test_nothing_added_is_none():
    assert BatchStore().arrays() is None
    assert BatchStore(join=False).arrays() is None


def test_arrays_join_as_tensors_do():
    batches = batches_of("ragged")
    same(concat([numpify(batch) for batch in batches]), concat(batches))


def test_the_size_of_the_arrays_is_known_beforehand():
    store = BatchStore()
    for batch in batches_of("bf16"):
        store.add(batch)
    known = store.nbytes
    store = BatchStore()
    plain = batches_of("plain")
    for batch in plain:
        store.add(batch)
    assert store.nbytes == store.arrays().nbytes
    assert known == sum(batch.numel() * 4 for batch in batches_of("bf16"))  # numpy has no bfloat16


def test_a_reused_output_buffer_does_no_harm():
    buffer, store = torch.zeros(2, 3), BatchStore()
    for value in (1.0, 2.0):
        buffer.fill_(value)
        store.add(buffer)
    np.testing.assert_array_equal(store.arrays()[:, 0], [1, 1, 2, 2])


def test_a_view_does_not_keep_the_larger_tensor():
    for join in (True, False):
        store = BatchStore(join)
        store.add(torch.zeros(2, 1000, 10)[:, -1])
        array = store.arrays() if join else store.arrays()[0]
        assert array.base.untyped_storage().nbytes() == 2 * 10 * 4


def test_rows_are_chained():
    store = BatchStore()
    store.add([torch.zeros(3), torch.zeros(5)], rows=True)
    store.add([torch.zeros(4)], rows=True)
    assert [row.shape for row in store.arrays()] == [(3,), (5,), (4,)]


def test_rows_beside_tensors_are_chained_and_others_joined():
    store = BatchStore()
    for size in (2, 1):
        store.add((torch.zeros(size, 3), [{"boxes": torch.zeros(n, 4)} for n in range(size)]), rows=True)
    joined, chained = store.arrays()
    assert joined.shape == (3, 3)
    assert [row["boxes"].shape for row in chained] == [(0, 4), (1, 4), (0, 4)]
    assert all(isinstance(row["boxes"], np.ndarray) for row in chained)
    assert store.nbytes == 9 * 4 + 4 * 4


def test_another_structure_is_an_error_that_names_both():
    store = BatchStore()
    store.add((torch.zeros(2), torch.zeros(2)))
    with pytest.raises(DataError, match=r"batch 1 .*expected \('tuple', \('tensor', 'tensor'\)\).*ignore_keys"):
        store.add((torch.zeros(2),))
    loose = BatchStore(join=False)
    loose.add((torch.zeros(2), torch.zeros(2)))
    loose.add((torch.zeros(2),))
    assert [len(batch) for batch in loose.arrays()] == [2, 1]


@pytest.mark.parametrize("second", [torch.zeros(2, 3, 5), torch.zeros(2, 3)])
def test_shapes_that_no_padding_can_join_are_an_error(second):
    with pytest.raises(DataError, match=r"\(2, 3, 4\)"):
        concat([torch.zeros(2, 3, 4), second])


def test_one_column_is_not_stretched_over_many():
    joined = concat([torch.ones(1, 1), torch.ones(1, 3)])
    np.testing.assert_array_equal(joined, [[1, -100, -100], [1, 1, 1]])


def test_words_cannot_be_joined_but_can_be_listed():
    joined = BatchStore()
    joined.add(("a", torch.zeros(1)))
    with pytest.raises(DataError, match="type str"):  # at once, and not when the whole set has been predicted
        joined.add(("b", torch.zeros(1)))
    store = BatchStore(join=False)
    store.add("a")
    store.add("b")
    assert store.arrays() == ["a", "b"]


def test_detach_keeps_types():
    nest = Pair(torch.ones(2, requires_grad=True), {"x": [torch.ones(1, requires_grad=True), "word"]})
    free = detach(nest)
    assert isinstance(free, Pair)
    assert not free.left.requires_grad
    assert not free.right["x"][0].requires_grad
    assert free.right["x"][1] == "word"


def test_a_model_output_keeps_its_type():
    output = SequenceClassifierOutput(logits=torch.zeros(2, 3, dtype=torch.bfloat16))
    arrays = numpify(output)
    assert isinstance(arrays, SequenceClassifierOutput)
    assert arrays.logits.dtype == np.float32


@pytest.mark.parametrize(
    ("nest", "size"),
    [
        (torch.zeros(3, 2), 3),
        ({"n": torch.tensor(1), "x": torch.zeros(4)}, 4),
        (["word", (np.zeros((5, 1)),)], 5),
        ({"x": "word"}, None),
        (torch.tensor(1), None),
    ],
)
def test_find_batch_size(nest, size):
    assert find_batch_size(nest) == size


def test_plain_numbers_are_json():
    import json

    nest = {"a": np.float32(1.5), "b": [torch.tensor([2])], "c": (np.int64(3), "word", 4.0)}
    assert json.dumps(plain_numbers(nest)) == '{"a": 1.5, "b": [2], "c": [3, "word", 4.0]}'
    assert isinstance(plain_numbers({"a": torch.zeros(2)})["a"], torch.Tensor)


def test_has_length():
    class Raising:
        def __len__(self):
            raise TypeError("no length")

    assert has_length([])
    assert not has_length(iter([]))
    assert not has_length(None)
    assert not has_length(Raising())
    assert has_length(DataLoader([1, 2]))
