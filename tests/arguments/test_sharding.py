"""`fsdp` and `fsdp_config`: what they come to, and what is refused with a word about what to do."""

import json

import pytest

from onward.arguments import TrainingArguments
from onward.errors import NotSupported, UnknownArgument, UsageError


@pytest.mark.filterwarnings("ignore")  # transformers' own, of words that it will drop
@pytest.mark.parametrize("words", ["full_shard", "shard_grad_op auto_wrap", "full_shard offload", ["full_shard"]])
def test_words_mean_what_they_mean_to_transformers(words):
    import transformers

    theirs = transformers.TrainingArguments(use_cpu=True, fsdp=words)
    ours = TrainingArguments(fsdp=words)
    assert ours.fsdp is True
    assert (ours.fsdp_plugin_args, ours.fsdp_config) == (theirs.fsdp_plugin_args, theirs.fsdp_config)


def test_a_file_is_read(tmp_path):
    (tmp_path / "fsdp.json").write_text(json.dumps({"fsdp_min_num_params": 5, "auto_wrap_policy": "SIZE_BASED_WRAP"}))
    args = TrainingArguments(fsdp=True, fsdp_config=str(tmp_path / "fsdp.json"))
    assert args.fsdp_plugin_args["min_num_params"] == 5
    with pytest.raises(UsageError, match=r"missing\.json"):
        TrainingArguments(fsdp=True, fsdp_config=str(tmp_path / "missing.json"))


def test_the_dictionary_that_was_given_stays_as_it_was():
    given = {"version": 2}
    TrainingArguments(fsdp=True, fsdp_config=given)
    assert given == {"version": 2}


def test_resolving_again_changes_nothing():
    args = TrainingArguments(fsdp="shard_grad_op", fsdp_config={"cpu_offload": True})
    before = dict(args.fsdp_plugin_args), dict(args.fsdp_config)
    args.__post_init__()
    assert (args.fsdp_plugin_args, args.fsdp_config) == before
    assert before[0]["reshard_after_forward"] is False


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"fsdp_config": {"version": 1}}, NotSupported, "FSDP2"),
        ({"fsdp": "hybrid_shard"}, NotSupported, "FSDP1"),
        ({"fsdp": "no_shard"}, NotSupported, "leave it out"),
        ({"fsdp": "full_shart"}, UsageError, "full_shard"),
        ({"fsdp_config": {"xla": True}}, NotSupported, "TPU"),
        ({"fsdp_config": {"auto_wrap_policy": "transformer_based_wrap"}}, UsageError, "TRANSFORMER_BASED_WRAP"),
        ({"fsdp_config": {"reshard_after_forward": "full_shard"}}, UsageError, "True or False"),
        ({"fsdp_config": {"min_params": 5}}, UnknownArgument, "min_num_params"),
        ({"torch_compile": True}, NotSupported, "torch_compile"),
        ({"auto_find_batch_size": True}, NotSupported, "per_device_train_batch_size"),
        ({"bf16_full_eval": True}, NotSupported, "bf16=True"),
        ({"padding_free": True}, NotSupported, "padding_free"),
        ({"chunked_loss": True}, NotSupported, "chunked_loss"),
        ({"accelerator_config": {"even_batches": False}}, NotSupported, "even_batches"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        TrainingArguments(**{"fsdp": True, "use_cpu": True} | given)


@pytest.mark.parametrize("name", ["forward_prefetch", "use_orig_params", "sync_module_states"])
def test_options_of_fsdp1_have_no_effect_and_say_so(name, caplog):
    args = TrainingArguments(fsdp=True, fsdp_config={name: True})
    assert name not in args.fsdp_plugin_args
    assert name in caplog.text
    assert "FSDP1" in caplog.text


def test_one_process_is_not_sharded():
    from tests.tiny import RegressionData, TinyRegression

    from onward import Trainer

    with pytest.raises(UsageError, match="torchrun"):
        Trainer(TinyRegression(), TrainingArguments(fsdp=True, use_cpu=True), train_dataset=RegressionData())
