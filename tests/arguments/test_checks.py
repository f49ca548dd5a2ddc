"""Bad input: each message says what was got and what was expected."""

import pytest

from onward.arguments import TrainingArguments
from onward.arguments.checks import RANGES
from onward.errors import NotSupported, UsageError

BAD = [
    ({"eval_strategy": "step"}, "Did you mean 'steps'"),
    ({"optim": "adamw_torch_fuse"}, "Did you mean 'adamw_torch_fused'"),
    ({"lr_scheduler_type": "cosin"}, "Did you mean 'cosine'"),
    ({"debug": "overflow"}, "underflow_overflow"),
    ({"include_num_input_tokens_seen": "nonpadding"}, "Did you mean 'non_padding'"),
    ({"log_level": "warn"}, "Did you mean 'warning'"),
    ({"train_sampling_strategy": "group_by_len"}, "Did you mean 'group_by_length'"),
    ({"dataloader_multiprocessing_context": "thread"}, "fork, spawn, forkserver"),
    ({"ddp_backend": "glo"}, "Did you mean 'gloo'"),
    ({"on_nonfinite": "skipp"}, "Did you mean 'skip'"),
    ({"packing": "ffd"}, "expected one of bfd"),
    ({"keep_trials": "bests"}, "Did you mean 'best'"),
    ({"push_failure": "fail"}, "warn, raise"),
    ({"auto_find_batch_size": "shrink"}, "True, False or 'grow'"),
    ({"padding_free": "always"}, "True, False or 'auto'"),
    ({"chunked_loss": "always"}, "True, False or 'auto'"),
    ({"preemption_signals": "SIGTREM"}, "Did you mean 'SIGTERM'"),
    ({"debug": True}, "debug got True; expected underflow_overflow"),
    ({"adam_beta1": 1.0}, "adam_beta1 got 1.0; expected a value from 0 to below 1"),
    ({"adam_beta2": 1}, "below 1"),
    ({"num_train_epochs": -1}, "at least 0 epochs, or at least 1 step"),
    ({"num_train_epochs": None}, "num_train_epochs got None and max_steps -1"),
    ({"save_steps": None}, "save_strategy='steps' got save_steps=None"),
    ({"logging_steps": None}, "logging_strategy='no' or 'epoch'"),
    ({"logging_steps": None, "logging_strategy": "no", "eval_strategy": "steps"}, "set eval_steps"),
    ({"dataloader_persistent_workers": True}, "at least one worker"),
    ({"learning_rate": "5e-5"}, "In YAML write 5.0e-5"),
    ({"logging_steps": 0}, "logging_strategy='no'"),
    ({"logging_steps": 2.5}, "expected an integer number of steps"),
    ({"save_steps": 2.5}, "expected an integer number of steps"),
    ({"eval_strategy": "steps", "eval_steps": 1.5}, "expected an integer number of steps"),
    ({"eval_strategy": "steps", "logging_steps": 0, "logging_strategy": "no"}, "set eval_steps"),
    ({"load_best_model_at_end": True}, "eval_strategy='no' and save_strategy='steps'"),
    ({"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 3, "save_steps": 10}, "multiple"),
    ({"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 0.2, "save_steps": 0.5}, "multiple"),
    ({"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 0.5}, "multiple"),
    ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "follows an evaluation metric"),
    ({"lr_scheduler_type": "greedy"}, "follows an evaluation metric"),
    ({"dataloader_prefetch_factor": 2}, "at least one worker"),
    ({"fp16": True, "bf16": True}, "at most one"),
    ({"fp16_full_eval": True, "bf16_full_eval": True}, "at most one"),
    ({"lr_scheduler_kwargs": "num_cycles=3"}, "expected a dict or a JSON object"),
    ({"lr_scheduler_kwargs": '{"num_cycles": }'}, "expected a dict or a JSON object"),
    ({"seed": -1}, "from 0 to 4294967295"),
    ({"adam_beta2": 1.5}, "from 0 to 1"),
]


@pytest.mark.parametrize(("given", "message"), BAD, ids=lambda value: str(value)[:50])
def test_bad_input_is_refused_with_a_remedy(given, message):
    with pytest.raises(UsageError, match=message):
        TrainingArguments(**given)


@pytest.mark.parametrize("name", [name for name, (low, _) in RANGES.items() if low is not None])
def test_numbers_below_the_range_are_refused_and_the_lowest_is_not(name):
    low = RANGES[name][0]
    with pytest.raises(UsageError, match=f"{name} got {low - 1}"):
        TrainingArguments(**{name: low - 1})
    together = {
        "logging_steps": {"logging_strategy": "no"},
        "dataloader_prefetch_factor": {"dataloader_num_workers": 1},
    }
    assert getattr(TrainingArguments(**{name: low}, **together.get(name, {})), name) == low


@pytest.mark.parametrize(
    "given",
    [
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 0.1, "save_steps": 0.3},
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 5, "save_steps": 500},
        {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "best"},
        {"auto_find_batch_size": "grow"},
        {"preemption_signals": ""},
        {"preemption_signals": "SIGINT, SIGTERM"},
        {"max_grad_norm": None},
        {"save_total_limit": -1},
    ],
    ids=str,
)
def test_odd_but_sound_input_passes(given):
    args = TrainingArguments(**given)
    assert {name: getattr(args, name) for name in given} == given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"deepspeed": {"zero_optimization": {}}}, "DeepSpeed"),
        ({"deepspeed": "ds.json"}, "DeepSpeed"),
        ({"debug": "tpu_metrics_debug"}, "TPU"),
        ({"fsdp": "full_shard auto_wrap", "fsdp_config": {"version": 1}}, "FSDP2"),
    ],
)
def test_paths_that_onward_lacks_are_named(given, message):
    with pytest.raises(NotSupported, match=message):
        TrainingArguments(**given)


def test_what_onward_lacks_is_refused_from_the_launcher_too(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(NotSupported, match="DeepSpeed"):
        TrainingArguments()


def test_tf32_needs_a_gpu_that_has_it():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine may have TensorFloat-32")
    with pytest.raises(UsageError, match="Ampere"):
        TrainingArguments(tf32=True)
