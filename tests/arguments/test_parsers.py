"""Arguments on a command line, as a base class, and as values that are copied, pickled and replaced."""

import copy
import dataclasses
import io
import pickle
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
import transformers
from transformers import HfArgumentParser

from onward.arguments import Seq2SeqTrainingArguments, TrainingArguments
from onward.errors import UnknownArgument, UsageError


@dataclass
class Config(TrainingArguments):
    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]

    learning_rate: float = field(default=1e-3, metadata={"help": "another default"})
    beta: float = field(default=0.1, metadata={"help": "of a share of 10%%"})
    model_init_kwargs: dict | str | None = None

    def __post_init__(self):
        super().__post_init__()
        super().__post_init__()


LINES = [
    [],
    ["--learning_rate", "3e-4", "--lr_scheduler_type", "cosine", "--lr-scheduler-kwargs", '{"num_cycles": 0.25}'],
    ["--optim", "sgd", "--eval_strategy", "epoch", "--report_to", "tensorboard", "--no_dataloader_pin_memory"],
    ["--bf16", "--use_cpu", "--activation_checkpointing", "--logging_steps", "0.1", "--include_for_metrics", "loss"],
    ["--debug", "underflow_overflow", "--label_names", "a", "b", "--include_num_input_tokens_seen", "true"],
    ["--optim_target_modules", "q_proj", "--log_level", "info", "--dataloader_multiprocessing_context", "spawn"],
    ["--accelerator_config", '{"split_batches": "true", "gradient_accumulation_kwargs": {"num_steps": "2"}}'],
]


@pytest.mark.parametrize("line", LINES, ids=lambda line: " ".join(line)[:40] or "nothing")
def test_command_line_means_what_it_means_to_transformers(line):
    line = ["--output_dir", "run", "--use_cpu", *line]
    (ours,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(line)
    (theirs,) = HfArgumentParser(transformers.TrainingArguments).parse_args_into_dataclasses(line)
    ours_values, their_values = ours.to_dict(), theirs.to_dict()
    ours_values["accelerator_config"].pop("use_configured_state")  # they lose it when they look for the device
    assert {name: ours_values[name] for name in their_values} == their_values


@pytest.mark.parametrize(
    ("line", "value"),
    [("", False), (" ", True), (" true", True), (" 0", False), (" False", False), (" grow", "grow")],
)
def test_a_flag_that_takes_a_word_too(line, value):
    given = f"--auto_find_batch_size{line}".split() if line else []
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(given)
    assert args.auto_find_batch_size is value or args.auto_find_batch_size == value == "grow"


def test_own_options_on_the_command_line():
    line = ["--padding_free", "auto", "--chunked_loss", "True", "--no_async_save", "--on_nonfinite", "raise"]
    (args,) = HfArgumentParser(Seq2SeqTrainingArguments).parse_args_into_dataclasses(line)
    assert (args.padding_free, args.chunked_loss, args.async_save, args.on_nonfinite) == ("auto", True, False, "raise")


@pytest.mark.parametrize("cls", [TrainingArguments, Seq2SeqTrainingArguments, Config])
def test_help_can_be_printed(cls, capsys):
    with pytest.raises(SystemExit) as left:
        HfArgumentParser(cls).parse_args_into_dataclasses(["--help"])
    assert left.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Samples in one micro-batch on one process" in shown
    assert ("of a share of 10%" in shown) == (cls is Config)


def test_subclass_changes_defaults_adds_fields_and_json_fields():
    args = Config(model_init_kwargs='{"dtype": "bfloat16", "layers": "2"}')
    assert args.learning_rate == 1e-3
    assert args.model_init_kwargs == {"dtype": "bfloat16", "layers": 2}
    assert [entry.name for entry in dataclasses.fields(Config)][-2:] == ["beta", "model_init_kwargs"]


def test_subclass_repr_does_not_show_the_token():
    assert "secret" not in repr(Config(hub_token="secret"))


def test_subclass_with_its_own_init_may_take_any_keyword():
    class Free(TrainingArguments):
        def __init__(self, **kwargs):
            self.given = kwargs

    assert Free(anything=1).given == {"anything": 1}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("learning_rat", "Did you mean 'learning_rate'"),
        ("evaluation_strategy", "It is now: eval_strategy"),
        ("warmup_ratio", "below 1"),
        ("xyzzy", "expected one of its fields.$"),
    ],
)
@pytest.mark.parametrize("error", [TypeError, UsageError, UnknownArgument])
def test_unknown_name_says_what_was_meant(name, hint, error):
    with pytest.raises(error, match=hint):
        Config(**{name: 1})


SETTINGS = {
    "eval_strategy": "steps",
    "logging_steps": 5.0,
    "gradient_checkpointing": True,
    "report_to": "none",
    "load_best_model_at_end": True,
    "save_steps": 10,
    "lr_scheduler_kwargs": '{"a": "1"}',
    "accelerator_config": {"split_batches": True},
    "warmup_steps": 0.1,
    "output_dir": "~/run",
}


def test_post_init_again_replace_and_rebuild_change_nothing():
    args = TrainingArguments(**SETTINGS)
    before = args.to_dict()
    args.__post_init__()
    assert args.to_dict() == before
    assert dataclasses.replace(args).to_dict() == before
    assert TrainingArguments(**before).to_dict() == before


def test_pickle_leaves_the_place_behind():
    args = TrainingArguments(use_cpu=True, data_seed=3)
    device = args.device
    file = io.BytesIO()
    torch.save(args, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert "_placement" not in loaded.__dict__
    assert loaded == args
    assert loaded.device == device
    assert pickle.loads(pickle.dumps(Config(beta=3))).beta == 3


@pytest.mark.parametrize("twin_of", [copy.copy, copy.deepcopy])
def test_copies_stay_in_place_and_are_independent(twin_of):
    args = TrainingArguments(use_cpu=True, report_to=["tensorboard"])
    state = args.distributed_state
    twin = twin_of(args)
    assert twin.distributed_state is state
    assert twin == args
    twin.learning_rate = 1.0
    assert args.learning_rate == 5e-5
    assert (twin.report_to is args.report_to) == (twin_of is copy.copy)
