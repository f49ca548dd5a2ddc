"""No argument is accepted and then ignored: a test shows what it does, or it is refused, or says why it does not."""

import ast
import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest
from tests.conftest import ROOT as REPOSITORY
from tests.parity.scenarios.arguments import ARGUMENTS as IN_PARITY

import onward
from onward.arguments import TrainingArguments
from onward.arguments.documented import field_docstrings
from onward.arguments.training_arguments import Seq2SeqTrainingArguments
from onward.errors import NotSupported

ROOT = Path(onward.__file__).parent
# They look at every argument, or set it, whether or not anything comes of it.
NO_READERS = (
    "arguments/checks.py",
    "arguments/setters.py",
    "arguments/kinds.py",
    "arguments/serialised.py",
    "hub/card.py",
)

REFUSED = {"deepspeed": "zero.json", "parallelism_config": object()}
FOR_THE_SCRIPT = {"do_train", "do_eval", "do_predict", "resume_from_checkpoint", "local_rank"}
FOR_TRACKERS = {"run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"}
OTHER_NAMES = {"gradient_checkpointing", "gradient_checkpointing_kwargs"}
# What they ask for is done anyway, or by another argument; their descriptions say so.
NOTHING_LEFT = {
    "eval_accumulation_steps": "Nothing to tune",
    "enable_jit_checkpoint": "Done anyway",
    "sortish_sampler": "Read by nothing",
}
# What they do shows only where there is the device.
NEEDS_A_DEVICE = {
    "use_cpu": "keeps off a device", "tf32": "an NVIDIA GPU", "dataloader_pin_memory": "a device to copy to",
    "torch_empty_cache_steps": "a device with a cache",
}  # fmt: skip
# For all others the test that fails when nothing comes of them. `IN_PARITY` has the rest: each by itself, beside the
# same run without it, and the same in both libraries.
SHOWN_BY = {
    "output_dir": "checkpoint/test_runs.py::test_a_moved_run_resumes_and_still_finds_its_best",
    "optim_target_modules": "optim/test_third_party.py::test_recipes_are_theirs",
    "average_tokens_across_devices": "parity/scenarios/processes.py::two_ranks_each_by_its_own_count",
    "fp16": "parity/scenarios/settings.py::fp16_on_a_cpu",
    "torch_compile": "speed/test_compiling.py::test_inductor_gives_the_same_losses",
    "torch_compile_backend": "speed/test_compiling.py::test_trains_saves_and_evaluates_as_without",
    "torch_compile_mode": "speed/test_compiling.py::test_inductor_gives_the_same_losses",
    "torch_compile_fallback": "speed/test_compiling.py::test_a_plain_module_by_blocks_compiles_once_however_deep",
    "use_liger_kernel": "arguments/test_effects.py::test_use_liger_kernel_and_liger_kernel_config",
    "liger_kernel_config": "arguments/test_effects.py::test_use_liger_kernel_and_liger_kernel_config",
    "auto_find_batch_size": "robustness/test_grow.py::test_accumulation_falls_as_the_micro_batch_grows",
    "log_on_each_node": "arguments/test_effects.py::test_log_on_each_node",
    "log_level_replica": "arguments/test_effects.py::test_ddp_backend_ddp_timeout_and_log_level_replica",
    "fsdp": "loop/test_sharding.py::test_shards_train_like_whole_weights",
    "fsdp_config": "arguments/test_sharding.py::test_words_mean_what_they_mean_to_transformers",
    "ddp_backend": "arguments/test_effects.py::test_ddp_backend_ddp_timeout_and_log_level_replica",
    "ddp_timeout": "arguments/test_effects.py::test_ddp_backend_ddp_timeout_and_log_level_replica",
    "logging_nan_inf_filter": "arguments/test_effects.py::test_logging_nan_inf_filter",
    "report_to": "sinks/test_sinks.py::test_wandb",
    "eval_use_gather_object": "evaluation/test_against_transformers.py::test_the_labels_of_images_are_whole",
    "save_on_each_node": "checkpoint/test_ranks.py::test_two_machines_without_a_shared_folder_each_keep_a_checkpoint",
    "push_to_hub": "hub/test_training.py::test_what_a_run_pushes",
    "hub_strategy": "hub/test_training.py::test_what_a_run_pushes",
    "hub_always_push": "hub/test_training.py::test_what_a_run_pushes",
    "hub_model_id": "hub/test_training.py::test_push_to_hub_sends_model_and_card",
    "hub_token": "hub/test_training.py::test_the_token_is_written_nowhere",
    "hub_private_repo": "hub/test_training.py::test_a_new_repository_is_as_private_as_asked",
    "hub_revision": "hub/test_training.py::test_push_to_hub_without_waiting_and_to_a_branch",
    "push_failure": "hub/test_training.py::test_a_failed_push_raises_at_the_end_where_asked",
    "push_wait_seconds": "hub/test_training.py::test_no_fault_changes_or_stops_training",
    "ignore_data_skip": "arguments/test_effects.py::test_ignore_data_skip",
    "restore_callback_states_from_checkpoint":
        "arguments/test_effects.py::test_restore_callback_states_from_checkpoint",
    "skip_memory_metrics": "evaluation/test_hooks.py::test_memory_figures_come_on_request",
    "async_save": "arguments/test_effects.py::test_async_save",
    "max_failed_saves": "checkpoint/test_saving.py::test_too_many_failures_in_a_row_end_training",
    "max_shard_size": "checkpoint/test_saving.py::test_a_pretrained_model_with_its_tokenizer_saves_beside_the_loop",
    "metrics_file": "hooks/test_reporting.py::test_the_callbacks_come_in_transformers_order",
    "preemption_signals": "arguments/test_effects.py::test_preemption_signals_and_preemption_exit_code",
    "preemption_exit_code": "arguments/test_effects.py::test_preemption_signals_and_preemption_exit_code",
    "max_train_seconds": "resume/test_leaving.py::test_a_chosen_exit_code_and_a_time_limit",
    "allow_resume_mismatch": "test_bad_input.py::test_other_data_than_the_run_saw",
    "on_nonfinite": "robustness/test_nonfinite.py::test_ignore_is_what_transformers_does",
    "max_nonfinite_steps": "robustness/test_nonfinite.py::test_too_many_in_a_row_end_the_run",
    "max_rollbacks": "robustness/test_nonfinite.py::test_rollbacks_are_limited",
    "padding_free": "speed/test_shortcuts.py::test_trains_as_with_padding_and_logits",
    "chunked_loss": "speed/test_shortcuts.py::test_trains_as_with_padding_and_logits",
    "packing": "speed/test_packing.py::test_trains_and_resumes_in_the_middle_of_an_epoch",
    "max_tokens_per_batch": "speed/test_packing.py::test_trains_and_resumes_in_the_middle_of_an_epoch",
    "length_aware_window": "arguments/test_effects.py::test_length_aware_window",
    "keep_trials": "search/test_optuna.py::test_which_checkpoints_stay",
    "predict_with_generate": "parity/scenarios/evaluating.py::generation",
    "generation_max_length": "parity/scenarios/evaluating.py::generation",
    "generation_num_beams": "parity/scenarios/evaluating.py::generation",
    "generation_config": "test_seq2seq.py::test_the_arguments_replace_the_models_configuration",
}  # fmt: skip


def names_read(path: Path) -> set[str]:
    """Names of the arguments that a module reads: ``args.x``, ``getattr(args, "x")``, ``option(args, "x")`` …"""
    is_own = path.parent.name == "arguments"
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            whose = node.value
            if isinstance(whose, ast.Call) and getattr(whose.func, "id", "") == "cast":
                whose = whose.args[1]
            name = whose.attr if isinstance(whose, ast.Attribute) else getattr(whose, "id", "")
            if name in ("args", "arguments") or (name == "self" and is_own):
                found.add(node.attr)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("option", "getattr"):
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
        elif isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple):  # and then getattr(args, name)
            found |= {item.value for item in node.iter.elts if isinstance(item, ast.Constant)}
    return found


READ = {
    name
    for path in ROOT.rglob("*.py")
    if str(path.relative_to(ROOT)) not in NO_READERS
    for name in names_read(path)
}  # fmt: skip


@pytest.mark.parametrize("name", [entry.name for entry in fields(Seq2SeqTrainingArguments)])
def test_every_argument_is_read_refused_or_explained(name):
    elsewhere = [FOR_THE_SCRIPT, FOR_TRACKERS, OTHER_NAMES, REFUSED, NOTHING_LEFT]
    assert name in READ or any(name in group for group in elsewhere), f"nothing reads {name}"


@pytest.mark.parametrize("name", [entry.name for entry in fields(Seq2SeqTrainingArguments)])
def test_what_an_argument_does_is_shown_in_one_place(name):
    places = [
        IN_PARITY, SHOWN_BY, NEEDS_A_DEVICE, FOR_THE_SCRIPT, FOR_TRACKERS, REFUSED, NOTHING_LEFT,
    ]  # fmt: skip
    assert sum(name in place for place in places) == 1, f"name the test that fails when {name} is ignored"


@pytest.mark.parametrize("name", SHOWN_BY)
def test_the_test_that_shows_it_is_there_and_knows_the_argument(name):
    file, _, wanted = SHOWN_BY[name].partition("::")
    text = (REPOSITORY / "tests" / file).read_text()
    there = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}
    assert wanted in there
    assert re.search(rf"\b{name}\b", text), f"{file} never sets {name}"


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_the_alternative(name):
    with pytest.raises(NotSupported, match="leave"):
        TrainingArguments(**{name: REFUSED[name]})


@pytest.mark.parametrize("name", sorted(FOR_TRACKERS))
def test_what_trackers_are_said_to_read_they_read(name):
    from transformers.integrations import integration_utils

    assert f"args.{name}" in inspect.getsource(integration_utils)


@pytest.mark.parametrize("name", NOTHING_LEFT)
def test_what_has_nothing_left_to_do_says_so(name):
    texts = {key: text for cls in Seq2SeqTrainingArguments.__mro__ for key, text in field_docstrings(cls).items()}
    assert NOTHING_LEFT[name] in texts[name]


def test_what_the_script_reads_says_so():
    texts = {key: text for cls in TrainingArguments.__mro__ for key, text in field_docstrings(cls).items()}
    for name in FOR_THE_SCRIPT:
        assert "your script" in texts[name] or "launchers" in texts[name]
