"""Text, JSON and dicts: complete, readable by JSON, and without tokens."""

import json

import torch
from accelerate.parallelism_config import ParallelismConfig

from onward.arguments import TrainingArguments


def test_tokens_are_masked_everywhere():
    args = TrainingArguments(use_cpu=True, hub_token="secret")
    for text in (str(args), repr(args), args.to_json_string(), str(args.to_sanitized_dict())):
        assert "secret" not in text
        assert "<HUB_TOKEN>" in text


def test_text_lists_all_fields_in_order_of_their_names():
    lines = str(TrainingArguments()).splitlines()
    assert lines[0] == "TrainingArguments("
    names = [line.split("=")[0] for line in lines[1:-1]]
    assert names == sorted(TrainingArguments().to_dict())


def test_json_holds_what_python_objects_mean():
    args = TrainingArguments(
        lr_scheduler_kwargs={"dtype": torch.float32, "inner": {"dtype": torch.bfloat16}},
        parallelism_config=ParallelismConfig(),
        debug="underflow_overflow",
    )
    read = json.loads(args.to_json_string())
    assert read["lr_scheduler_kwargs"] == {"dtype": "float32", "inner": {"dtype": "bfloat16"}}
    assert read["debug"] == ["underflow_overflow"]
    assert read["optim"] == "adamw_torch_fused"
    assert read["parallelism_config"] == ParallelismConfig().to_json()
    assert args.lr_scheduler_kwargs["dtype"] is torch.float32  # the arguments themselves are untouched
