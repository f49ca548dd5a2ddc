"""A value of the wrong type is refused when it is given, whatever Python would make of it later."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.tiny import RegressionData, TinyRegression

from onward import Trainer
from onward.arguments import TrainingArguments
from onward.errors import UsageError

WRONG = [
    ({"bf16": "False"}, "bf16 got the text 'False'; expected True or False."),
    ({"remove_unused_columns": "no"}, "expected True or False"),
    ({"disable_tqdm": 2}, "True or False or None"),
    ({"max_steps": "10"}, "max_steps got the text '10'; expected a whole number."),
    ({"max_steps": 2.5}, "whole number"),
    ({"per_device_train_batch_size": None}, "whole number"),
    ({"seed": 1.5}, "whole number"),
    ({"save_total_limit": "2"}, "whole number or None"),
    ({"learning_rate": None}, "finite number"),
    ({"learning_rate": float("nan")}, "got nan"),
    ({"num_train_epochs": float("inf")}, "finite number"),
    ({"metric_for_best_model": 5}, "metric_for_best_model got 5"),
    ({"label_names": "labels"}, "list of names"),
    ({"include_for_metrics": "inputs"}, "list of names"),
    ({"include_for_metrics": ["input"]}, "Did you mean 'inputs'"),
    ({"lr_scheduler_kwargs": [1]}, "a dictionary or a JSON object"),
    ({"liger_kernel_config": ["rope"]}, "a dictionary"),
    ({"report_to": 5}, "name of a tracker"),
    ({"enable_jit_checkpoint": True, "preemption_signals": "SIGUSR1"}, "add SIGTERM"),
]


@pytest.mark.parametrize(("given", "message"), WRONG, ids=lambda value: str(value)[:50])
def test_a_wrong_type_is_told(given, message):
    with pytest.raises(UsageError, match=message):
        TrainingArguments(use_cpu=True, **given)


@pytest.mark.parametrize(
    "given",
    [
        {"output_dir": Path("here")},
        {"seed": np.int64(3), "max_steps": np.int32(4)},
        {"learning_rate": np.float32(0.1), "num_train_epochs": 2},
        {"logging_first_step": 1, "bf16": np.False_},
        {"max_grad_norm": None},
        {"include_for_metrics": ("inputs", "loss")},
        {"max_shard_size": 10**6},
        {"resume_from_checkpoint": True},
        {"push_to_hub": None, "auto_find_batch_size": None},
        {"save_steps": -1},
        {"num_train_epochs": -1, "max_steps": 3},
        {"num_train_epochs": None, "max_steps": 3},
        {"max_steps": -5},
        {"save_steps": None, "save_strategy": "epoch"},
        {"logging_steps": None, "logging_strategy": "no"},
        {"logging_steps": -1, "eval_strategy": "steps", "eval_steps": -1},
        {"data_seed": -1},
        {"length_column_name": None, "project": None, "train_sampling_strategy": None},
    ],
    ids=str,
)
def test_what_works_is_let_through(given):
    TrainingArguments(use_cpu=True, **given)


def test_a_whole_float_is_a_whole_number():
    args = TrainingArguments(use_cpu=True, max_steps=4.0, save_total_limit=2.0)
    assert (repr(args.max_steps), repr(args.save_total_limit)) == ("4", "2")


def test_types_are_checked_after_a_parser_was_made():
    code = (
        "from transformers import HfArgumentParser; from onward import TrainingArguments;"
        "HfArgumentParser(TrainingArguments).parse_dict({'bf16': 'False'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "bf16 got the text 'False'; expected True or False." in done.stderr


def test_numpy_leaves_no_trace():
    import json

    kwargs = {"num_cycles": np.float64(0.5), "steps": [np.int64(1)]}
    args = TrainingArguments(
        use_cpu=True, seed=np.int64(3), learning_rate=np.float32(0.5), bf16=np.False_, lr_scheduler_kwargs=kwargs,
        optim_target_modules=np.array(["a", "b"]), save_total_limit=np.int16(2),
    )  # fmt: skip
    values = json.loads(args.to_json_string())
    assert (values["seed"], values["learning_rate"], values["bf16"], values["save_total_limit"]) == (3, 0.5, False, 2)
    assert values["lr_scheduler_kwargs"] == {"num_cycles": 0.5, "steps": [1]}
    assert args.optim_target_modules == ["a", "b"]
    assert type(args.seed) is int
    assert type(kwargs["num_cycles"]) is np.float64, "what the user passed in is not changed"
    args.seed = np.int64(4)  # past the checks
    assert json.loads(args.to_json_string())["seed"] == 4


def test_numpy_in_stock_arguments_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path), seed=np.int64(1), data_seed=np.int64(2), max_steps=np.int32(4), save_steps=np.int8(2),
        per_device_train_batch_size=np.int64(4), learning_rate=np.float32(0.5), use_cpu=True, report_to="none",
        disable_tqdm=True,
    )  # fmt: skip
    Trainer(TinyRegression(), args, train_dataset=RegressionData(32)).train()
    again = Trainer(TinyRegression(), args, train_dataset=RegressionData(32))
    assert again.train(resume_from_checkpoint=True).global_step == 4
