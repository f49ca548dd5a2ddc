"""Fields are a contract: names, order, types, defaults and command-line behaviour of transformers, ours at the end."""

import dataclasses
import subprocess
import sys
import typing

import pytest
import transformers

from onward.arguments import Seq2SeqTrainingArguments, TrainingArguments, option
from onward.arguments.extras import OnwardArguments

THEIRS = dataclasses.fields(transformers.TrainingArguments)
OURS = dataclasses.fields(TrainingArguments)
# accelerate's class would have to be imported; "grow" is our addition
TYPED_DIFFERENTLY = {"parallelism_config", "auto_find_batch_size"}

CHOICES_OF_OURS = {"train_sampling_strategy": ["length_aware"]}


def spelled(annotation):
    """Write a type without the modules that its classes live in, so that ours and theirs compare."""
    if isinstance(annotation, type) and typing.get_origin(annotation) is None:
        return annotation.__name__
    parts = typing.get_args(annotation)
    if not parts or typing.get_origin(annotation) is typing.Literal:
        return str(annotation)
    return f"{typing.get_origin(annotation)}[{', '.join(map(spelled, parts))}]"


def test_names_and_order():
    assert len(THEIRS) == 114
    assert [field.name for field in OURS[:114]] == [field.name for field in THEIRS]
    assert [field.name for field in OURS[114:]] == [field.name for field in dataclasses.fields(OnwardArguments)]


@pytest.mark.parametrize("index", range(114), ids=[field.name for field in THEIRS])
def test_default_type_and_parser_settings(index):
    ours, theirs = OURS[index], THEIRS[index]
    assert (ours.default, ours.default_factory, ours.init) == (theirs.default, theirs.default_factory, theirs.init)
    ours_resolved = typing.get_type_hints(TrainingArguments)[ours.name]
    theirs_resolved = typing.get_type_hints(transformers.TrainingArguments)[ours.name]
    if ours.name not in TYPED_DIFFERENTLY:
        assert spelled(ours_resolved) == spelled(theirs_resolved)
    for key in {*ours.metadata, *theirs.metadata} - {"help"} if ours.name != "auto_find_batch_size" else ():
        if key == "choices" and ours.name in CHOICES_OF_OURS:
            assert ours.metadata[key] == [*map(str, theirs.metadata[key]), *CHOICES_OF_OURS[ours.name]]
            continue
        assert str(ours.metadata[key]) == str(theirs.metadata[key])


def test_seq2seq_adds_the_fields_of_transformers():
    ours = dataclasses.fields(Seq2SeqTrainingArguments)[len(OURS) :]
    theirs = dataclasses.fields(transformers.Seq2SeqTrainingArguments)[114:]
    assert [(field.name, field.default) for field in ours] == [(field.name, field.default) for field in theirs]


@pytest.mark.parametrize("cls", [TrainingArguments, Seq2SeqTrainingArguments])
def test_every_field_is_documented(cls):
    undocumented = [field.name for field in dataclasses.fields(cls) if len(field.metadata["help"]) < 15]
    assert undocumented == []


def test_annotations_resolve_and_nothing_heavy_is_imported():
    code = (
        "import sys, torch, typing; from onward.arguments import Seq2SeqTrainingArguments as A;"
        "typing.get_type_hints(A); A(output_dir='x', bf16=True);"
        "print(sorted({'transformers', 'accelerate', 'datasets', 'torch._dynamo', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_option_reads_ours_or_falls_back_to_the_default():
    assert option(TrainingArguments(max_rollbacks=1), "max_rollbacks") == 1
    assert option(transformers.TrainingArguments(use_cpu=True), "max_rollbacks") == 3
    with pytest.raises(AssertionError):
        option(TrainingArguments(), "learning_rate")


def test_a_field_of_another_library_with_the_name_of_an_option_is_not_ours():
    @dataclasses.dataclass
    class Theirs(transformers.TrainingArguments):
        packing: bool = True

    @dataclasses.dataclass
    class OnOurs(TrainingArguments):
        packing: bool = True
        async_save: bool = False

    assert option(Theirs(use_cpu=True), "packing") is None
    ours = OnOurs(use_cpu=True)
    assert ours.packing is True
    assert option(ours, "packing") is None
    assert option(ours, "async_save") is False  # another default for the same option
    stock = transformers.TrainingArguments(use_cpu=True)
    stock.on_nonfinite = "raise"
    assert option(stock, "on_nonfinite") == "raise"
