"""What settings come to mean: equal to transformers, field by field, over a wide set of settings."""

import json
import logging

import pytest
import transformers

from onward.arguments import AcceleratorConfig, Seq2SeqTrainingArguments, TrainingArguments
from onward.arguments.resolve import resolve_report_to
from onward.errors import UsageError
from onward.types import DebugOption, SchedulerType

SETTINGS = [
    {},
    {"output_dir": "~/somewhere"},
    {"eval_strategy": "steps"},
    {"eval_strategy": "steps", "eval_steps": 0, "logging_steps": 7},
    {"eval_strategy": "steps", "eval_steps": 0.2, "save_steps": 0.4, "load_best_model_at_end": True},
    {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True},
    {"eval_strategy": "epoch", "save_strategy": "best", "metric_for_best_model": "eval_f1"},
    {"eval_strategy": "epoch", "save_strategy": "best", "load_best_model_at_end": True},
    {"metric_for_best_model": "my_loss"},
    {"metric_for_best_model": "accuracy", "greater_is_better": False},
    {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps"},
    {"lr_scheduler_type": "greedy", "eval_strategy": "epoch"},
    {"logging_steps": 0.05, "save_steps": 3.0},
    {"logging_strategy": "epoch", "logging_steps": 0},
    {"save_strategy": "no"},
    {"save_steps": 0},
    {"report_to": "wandb"},
    {"report_to": ["none"]},
    {"report_to": ["mlflow", "tensorboard"]},
    {"report_to": "all"},
    {"bf16": True},
    {"bf16_full_eval": True},
    {"fp16_full_eval": True},
    {"tf32": False},
    {"torch_compile": True},
    {"torch_compile_mode": "default"},
    {"torch_compile_backend": "eager"},
    {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}},
    {"accelerator_config": {"even_batches": False, "gradient_accumulation_kwargs": {"sync_each_batch": True}}},
    {"accelerator_config": '{"dispatch_batches": "false"}'},
    {"lr_scheduler_kwargs": '{"num_cycles": "3", "rate": "0.5", "nested": {"on": "True"}}'},
    {"include_num_input_tokens_seen": True},
    {"include_num_input_tokens_seen": "non_padding"},
    {"debug": "underflow_overflow"},
    {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 4, "dataloader_multiprocessing_context": "fork"},
    {"per_device_train_batch_size": 3, "per_device_eval_batch_size": 5, "warmup_steps": 0.13},
    {"log_level": "debug", "log_level_replica": "error"},
    {"warmup_steps": 17, "hub_token": "secret", "push_to_hub": True, "hub_strategy": "end"},
    {"disable_tqdm": True, "seed": 0, "data_seed": 9, "optim": "lion_8bit"},
    {"ddp_timeout": 60, "max_grad_norm": None},
    {"fsdp": True},
    {"fsdp": False, "fsdp_config": {"version": 1}},
    {"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": "Block", "activation_checkpointing": "true"}},
    {"fsdp": True, "fsdp_config": {"fsdp_auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 2000}},
    {"fsdp": True, "fsdp_config": '{"cpu_ram_efficient_loading": "true", "reshard_after_forward": "false"}'},
]
DERIVED = [
    "train_batch_size",
    "eval_batch_size",
    "world_size",
    "process_index",
    "local_process_index",
    "should_save",
    "should_log",
    "n_gpu",
    "device",
    "mixed_precision",
    "ddp_timeout_delta",
    "place_model_on_device",
    "deepspeed_plugin",
    "fsdp_plugin_args",
    "_no_sync_in_gradient_accumulation",
]


@pytest.mark.parametrize("given", SETTINGS, ids=json.dumps)
def test_same_values_as_transformers(given):
    theirs = transformers.TrainingArguments(use_cpu=True, **given)
    ours = TrainingArguments(use_cpu=True, **given)
    ours_values, their_values = ours.to_dict(), theirs.to_dict()
    ours_values["accelerator_config"].pop("use_configured_state")  # they lose it when they look for the device
    assert {name: ours_values[name] for name in their_values} == their_values
    assert list(ours_values)[: len(their_values)] == list(their_values)
    their_derived = {name: getattr(theirs, name) for name in DERIVED}
    assert {name: getattr(ours, name) for name in DERIVED} == their_derived
    assert ours.parallel_mode.value == theirs.parallel_mode.value
    assert ours.get_process_log_level() == theirs.get_process_log_level()
    for steps in (1, 10, 99, 1000):
        assert ours.get_warmup_steps(steps) == theirs.get_warmup_steps(steps)


def test_sanitized_values_are_those_of_transformers():
    ours = TrainingArguments(use_cpu=True, hub_token="secret").to_sanitized_dict()
    theirs = transformers.TrainingArguments(use_cpu=True, hub_token="secret").to_sanitized_dict()
    del ours["accelerator_config"], theirs["accelerator_config"]
    assert {name: ours[name] for name in theirs} == theirs
    assert ours["hub_token"] == "<HUB_TOKEN>"


def test_enums_are_members():
    args = TrainingArguments(debug=["underflow_overflow"])
    assert args.lr_scheduler_type is SchedulerType.LINEAR
    assert args.debug == [DebugOption.UNDERFLOW_OVERFLOW]


def test_new_name_wins_and_the_old_one_mirrors_it():
    args = TrainingArguments(gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True})
    assert args.activation_checkpointing is True
    assert args.activation_checkpointing_kwargs == {"use_reentrant": True}
    args = TrainingArguments(gradient_checkpointing=True, activation_checkpointing=False)
    assert args.gradient_checkpointing is False


def test_progress_is_hidden_above_warning():
    logger = logging.getLogger("onward")
    before = logger.level
    try:
        logger.setLevel(logging.ERROR)
        assert TrainingArguments().disable_tqdm is True
        assert TrainingArguments(disable_tqdm=False).disable_tqdm is False
        logger.setLevel(logging.INFO)
        assert TrainingArguments().disable_tqdm is False
    finally:
        logger.setLevel(before)


def test_numbers_quoted_in_json_are_read():
    args = TrainingArguments(lr_scheduler_kwargs='{"a": "1e-3", "b": "-2", "c": "false", "d": "text", "e": "null"}')
    assert args.lr_scheduler_kwargs == {"a": 1e-3, "b": -2, "c": False, "d": "text", "e": "null"}


def test_mixed_precision_comes_from_the_environment_unless_set(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    assert TrainingArguments().mixed_precision == "fp8"
    assert TrainingArguments(bf16=True).mixed_precision == "bf16"


def test_kubeflow_job_reports_its_progress(monkeypatch):
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", "http://localhost")
    assert resolve_report_to("none") == ["kubeflow"]
    assert resolve_report_to(["wandb", "kubeflow"]) == ["wandb", "kubeflow"]
    monkeypatch.setenv("DISABLE_KUBEFLOW_INTEGRATION", "true")
    assert resolve_report_to(None) == []


def test_accelerator_config_from_every_source(tmp_path):
    from transformers.trainer_pt_utils import AcceleratorConfig as Theirs

    file = tmp_path / "config.json"
    file.write_text('{"non_blocking": true}')
    sources = [str(file), {"non_blocking": True}, AcceleratorConfig(non_blocking=True), Theirs(non_blocking=True)]
    for source in sources:
        config = TrainingArguments(accelerator_config=source).accelerator_config
        assert isinstance(config, AcceleratorConfig)
        assert config.to_dict() == Theirs(non_blocking=True).to_dict()
    assert config.pop("non_blocking") is True
    assert config.pop("non_blocking", "gone") == "gone"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.json", "expected a JSON file"),
        ({"split_batchs": True}, "Did you mean 'split_batches'"),
        (AcceleratorConfig, r"write AcceleratorConfig\(\)"),
        ('{"split_batches": ', "expected a dict or a JSON object"),
    ],
)
def test_bad_accelerator_config(source, message):
    with pytest.raises(UsageError, match=message):
        TrainingArguments(accelerator_config=source)


def test_generation_config_becomes_a_dict():
    config = transformers.GenerationConfig(max_new_tokens=3)
    values = Seq2SeqTrainingArguments(generation_config=config).to_dict()
    assert values["generation_config"] == config.to_dict()
    json.dumps(values)
