"""Evaluation by generation: the same as transformers in one process, without duplicates in two."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import GenerationConfig

import onward
from onward.errors import UsageError
from tests.evaluation.sides import assert_same, both, timeless, trainer
from tests.tiny import VOCAB, tiny_tokenizer, token_data


def t5(**overrides):
    from transformers import T5Config, T5ForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
        tokens = {"vocab_size": VOCAB, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
        return T5ForConditionalGeneration(T5Config(**(sizes | tokens | overrides)))


def rows(n, with_labels=True):
    data = token_data(n, 6)
    return [{"input_ids": row["input_ids"]} | ({"labels": row["labels"][:4]} if with_labels else {}) for row in data]


class Seen:
    def __init__(self):
        self.calls = []

    def __call__(self, prediction):
        self.calls.append(tuple(prediction))
        predictions = prediction.predictions
        return {} if isinstance(predictions, tuple) else {"width": predictions.shape[1]}


def generated(n=7, calls=({},), model=t5, parts=None, with_labels=True, **changes):
    def scenario(lib, folder):
        seen = Seen()
        own = {"eval_dataset": rows(n, with_labels), "compute_metrics": seen, **(parts or {})}
        settings = {"predict_with_generate": True, **changes}
        subject = trainer(lib, model(), folder, cls="Seq2SeqTrainer", parts=own, **settings)
        found = []
        for call in calls:
            output = subject.predict(rows(n, with_labels), **call)
            found += [timeless(subject.evaluate(**call)), output.predictions, output.label_ids]
            found.append(timeless(output.metrics))
        return [*found, seen.calls]

    return scenario


def with_pairs(samples):
    """What a collator for sequence to sequence does: decoder inputs made from the labels."""
    batch = transformers.default_data_collator(samples)
    batch["decoder_input_ids"] = torch.cat([torch.zeros(len(samples), 1).long(), batch["labels"][:, :-1]], dim=1)
    return batch


SCENARIOS = {
    "the model's length": generated(model=lambda: configured(max_length=9)),
    "length and beams of the arguments": generated(generation_max_length=6, generation_num_beams=2),
    "length and beams of the call": generated(calls=[{"max_length": 5, "num_beams": 2}, {}, {"max_new_tokens": 3}],
                                              generation_max_length=6),
    "new tokens in the configuration": generated(model=lambda: configured(max_new_tokens=5)),
    "loss only": generated(generation_max_length=6, prediction_loss_only=True),
    "no labels": generated(generation_max_length=6, with_labels=False),
    "decoder inputs from the labels": generated(generation_max_length=6, parts={"data_collator": with_pairs},
                                                label_names=["labels"]),
    "label smoothing": generated(generation_max_length=6, label_smoothing_factor=0.1),
    "without generation": generated(predict_with_generate=False),
    "sampling": generated(calls=[{"do_sample": True, "max_length": 6}]),
    "a tokenizer pads": generated(generation_max_length=8, parts={"processing_class": tiny_tokenizer()}),
    "bf16": generated(generation_max_length=6, bf16=True),
}  # fmt: skip


def configured(**settings):
    model = t5()
    model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=2, decoder_start_token_id=0, **settings)
    return model


@pytest.mark.parametrize("name", SCENARIOS)
def test_generation_is_that_of_transformers(name, tmp_path):
    assert_same(*both(SCENARIOS[name], tmp_path))


def test_without_a_metric_nothing_is_generated(tmp_path, monkeypatch):
    model = t5()
    monkeypatch.setattr(model, "generate", lambda *args, **kwargs: pytest.fail("nobody looks at it"))
    parts = {"eval_dataset": rows(3)}
    subject = trainer(onward, model, tmp_path, cls="Seq2SeqTrainer", parts=parts, predict_with_generate=True)
    assert "eval_loss" in subject.evaluate()


def test_several_sets_are_generated_alike(tmp_path):
    """transformers forgets the call's arguments when there are several sets."""
    seen = Seen()
    parts = {"eval_dataset": {"a": rows(3), "b": rows(2)}, "compute_metrics": seen}
    subject = trainer(onward, t5(), tmp_path, cls="Seq2SeqTrainer", parts=parts, predict_with_generate=True)
    metrics = subject.evaluate(max_length=5)
    assert (metrics["eval_a_width"], metrics["eval_b_width"]) == (20, 20)  # padded to the model's own limit
    assert all((call[0][:, 5:] == 0).all() for call in seen.calls)
    assert (seen.calls[0][0][:, 4] != 0).any()


def test_a_generation_config_is_loaded_from_wherever_it_is(tmp_path):
    config = GenerationConfig(max_length=7, num_beams=3)
    config.save_pretrained(tmp_path)
    load = onward.Seq2SeqTrainer.load_generation_config
    for source in (config, str(tmp_path), tmp_path, str(tmp_path / "generation_config.json")):
        loaded = load(source)
        assert (loaded.max_length, loaded.num_beams) == (7, 3)
        assert loaded is not config


def test_a_generation_config_that_could_not_be_saved_is_an_error(tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.5}))
    with pytest.raises(UsageError, match=r"temperature[\s\S]*Repair generation_config"):
        onward.Seq2SeqTrainer.load_generation_config(str(tmp_path))


def test_the_arguments_replace_the_models_configuration(tmp_path):
    config = GenerationConfig(max_length=5, pad_token_id=0, eos_token_id=2, decoder_start_token_id=0)
    parts = {"eval_dataset": rows(3), "compute_metrics": Seen()}
    subject = trainer(
        onward, t5(), tmp_path, cls="Seq2SeqTrainer", parts=parts, predict_with_generate=True, generation_config=config
    )
    assert subject.model.generation_config.max_length == 5
    assert subject.evaluate()["eval_width"] == 5


def test_every_new_model_generates_as_the_arguments_say(tmp_path):
    """transformers gives the configuration only to the first model that `model_init` makes."""
    config = GenerationConfig(max_length=5, pad_token_id=0, eos_token_id=2, decoder_start_token_id=0)
    parts = {"model_init": lambda: t5(), "train_dataset": rows(2), "eval_dataset": rows(2), "compute_metrics": Seen()}
    subject = trainer(
        onward, None, tmp_path, cls="Seq2SeqTrainer", parts=parts, predict_with_generate=True,
        generation_config=config, max_steps=1, save_strategy="no",
    )  # fmt: skip
    first = subject.model
    subject.train()
    assert subject.model is not first
    assert subject.evaluate()["eval_width"] == 5


def test_other_inputs_of_the_decoder_are_handed_to_generation(tmp_path, monkeypatch):
    """Only the ids and their mask are made from the labels."""

    def scenario(lib, folder):
        model, given = t5(), []

        def generate(**options):
            given.append(sorted(options))
            return torch.zeros(1, 2).long()

        monkeypatch.setattr(model, "generate", generate)
        monkeypatch.setattr(model, "forward", lambda **options: {"loss": torch.zeros(())})
        subject = trainer(lib, model, folder, cls="Seq2SeqTrainer", predict_with_generate=True)
        ids = torch.ones(1, 3).long()
        made = {"labels": ids, "decoder_input_ids": ids, "decoder_attention_mask": ids}
        inputs = {"input_ids": ids, **made, "decoder_head_mask": ids}
        subject.prediction_step(model, inputs, prediction_loss_only=False)
        return given

    assert_same(*both(scenario, tmp_path))


def test_an_unknown_padding_token_is_an_error(tmp_path):
    model = t5()
    parts = {"eval_dataset": rows(3), "compute_metrics": Seen()}
    subject = trainer(onward, model, tmp_path, cls="Seq2SeqTrainer", parts=parts, predict_with_generate=True)
    model.config.pad_token_id = None
    with pytest.raises(UsageError, match=r"padding token is unknown.*model\.config\.pad_token_id"):
        subject.predict(rows(3, with_labels=False), max_length=6)


def test_the_constructor_takes_what_trainer_takes():
    names = set(inspect.signature(onward.Seq2SeqTrainer).parameters)
    assert set(inspect.signature(transformers.Seq2SeqTrainer).parameters) <= names
    fields = inspect.signature(onward.Seq2SeqTrainingArguments).parameters
    assert inspect.signature(transformers.Seq2SeqTrainingArguments).parameters.keys() <= fields.keys()


TWO_RANKS = """
import sys
from pathlib import Path
import torch
import onward
from tests.evaluation.sides import trainer
from tests.test_seq2seq import Seen, rows, t5

folder = Path(sys.argv[1])
subject = trainer(onward, t5(), folder, cls="Seq2SeqTrainer", parts={"compute_metrics": Seen()},
                  per_device_eval_batch_size=2, predict_with_generate=True, generation_max_length=6)
output = subject.predict(rows(7))
torch.save([output.predictions, output.label_ids], folder / f"rank{subject.args.process_index}.pt")
subject.end()
"""


def test_two_processes_return_each_sample_once(tmp_path):
    """transformers returns eight generations for seven samples."""
    script = tmp_path / "generate.py"
    script.write_text(TWO_RANKS)
    torchrun = Path(sys.executable).with_name("torchrun")
    done = subprocess.run(
        [str(torchrun), "--standalone", "--nproc-per-node", "2", str(script), str(tmp_path)],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    parts = {"compute_metrics": Seen()}
    alone = trainer(
        onward, t5(), tmp_path, cls="Seq2SeqTrainer", parts=parts, predict_with_generate=True, generation_max_length=6
    ).predict(rows(7))
    for rank in (0, 1):
        predictions, labels = torch.load(tmp_path / f"rank{rank}.pt", weights_only=False)
        np.testing.assert_array_equal(predictions, alone.predictions)
        np.testing.assert_array_equal(labels, alone.label_ids)
