"""A causal language model learns from tokens alone."""

from __future__ import annotations

import torch
from tests.tiny import RegressionData, TinyRegression, pad_tokens, tiny_llama, tiny_tokenizer, token_data
from transformers import DataCollatorWithPadding

from onward import Trainer, TrainingArguments
from onward.data.causal import NextTokenCollator
from onward.data.collate import default_data_collator


def unlabelled(n: int, length: int | tuple[int, int]) -> list[dict[str, list[int]]]:
    return [{k: v for k, v in sample.items() if k != "labels"} for sample in token_data(n, length)]


def test_samples_of_unequal_length_are_padded_and_labelled() -> None:
    batch = NextTokenCollator(default_data_collator)(unlabelled(5, (3, 9)))
    expected = pad_tokens(token_data(5, (3, 9)))
    assert batch.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(batch[name], value), name


def test_bare_tokens_get_the_mask_that_padding_needs() -> None:
    batch = NextTokenCollator(default_data_collator)([{"input_ids": [5, 6, 7]}, {"input_ids": [8]}])
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[5, 6, 7], [8, -100, -100]]


def test_an_empty_text_is_all_padding() -> None:
    batch = NextTokenCollator(default_data_collator)([{"input_ids": []}, {"input_ids": [8, 9]}])
    assert batch["input_ids"].tolist() == [[0, 0], [8, 9]]
    assert batch["labels"].tolist() == [[-100, -100], [8, 9]]
    assert NextTokenCollator(default_data_collator)([{"input_ids": []}] * 2)["labels"].tolist() == [[-100], [-100]]


def test_a_tokenizer_pads_its_own_way() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    batch = NextTokenCollator(DataCollatorWithPadding(tokenizer))(unlabelled(4, (3, 9)))
    assert torch.equal(batch["labels"] == -100, batch["attention_mask"] == 0)
    assert (batch["attention_mask"][:, -1] == 1).all()


def test_labels_that_are_there_stay_as_they_are() -> None:
    samples = [{"input_ids": [4, 5], "labels": [-100, 5]}, {"input_ids": [6, 7], "labels": [-100, 7]}]
    assert NextTokenCollator(default_data_collator)(samples)["labels"].tolist() == [[-100, 5], [-100, 7]]


def test_only_causal_models_without_a_collator_of_the_user_get_it() -> None:
    args = TrainingArguments("out", report_to="none", use_cpu=True)
    assert isinstance(Trainer(tiny_llama(), args).data_collator, NextTokenCollator)
    assert Trainer(tiny_llama(), args, data_collator=pad_tokens).data_collator is pad_tokens
    assert Trainer(TinyRegression(), args, train_dataset=RegressionData()).data_collator is default_data_collator


def test_training_equals_training_on_labels_made_by_hand() -> None:
    def weights(samples: list[dict[str, list[int]]], **keywords: object) -> dict[str, torch.Tensor]:
        model = tiny_llama()
        args = TrainingArguments("out", max_steps=3, save_strategy="no", report_to="none", use_cpu=True)
        Trainer(model, args, train_dataset=samples, **keywords).train()
        return model.state_dict()

    ours = weights(unlabelled(24, (3, 9)))
    by_hand = weights(token_data(24, (3, 9)), data_collator=pad_tokens)
    assert all(torch.equal(ours[name], by_hand[name]) for name in by_hand)
