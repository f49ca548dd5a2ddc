"""Kinds of models and the ways to hand one over."""

from __future__ import annotations

from typing import Any

import torch

from ..models import Regression, classifier, labelled, llama, points, tokens
from .registry import scenario


@scenario
def sequence_classifier(stage: Any) -> Any:
    """Dropout on, `label` in the rows."""
    return stage.train(classifier(), labelled(), per_device_train_batch_size=4)


@scenario
def sequence_classifier_smoothed(stage: Any) -> Any:
    """Label smoothing without a shift."""
    return stage.train(classifier(), labelled(), label_smoothing_factor=0.2, num_train_epochs=2)


@scenario
def plain_module_dict(stage: Any) -> Any:
    """An `nn.Module` that returns a dict."""
    parts = {"eval_dataset": points(8, seed=1)}
    return stage.train(Regression("dict", dropout=0.3), points(), parts, eval_strategy="epoch")


@scenario
def plain_module_tuple(stage: Any) -> Any:
    """An `nn.Module` that returns a tuple."""
    parts = {"eval_dataset": points(8, seed=1)}
    return stage.train(Regression("tuple", dropout=0.3), points(), parts, eval_strategy="epoch")


@scenario
def plain_module_saved(stage: Any) -> Any:
    """Checkpoints of an `nn.Module` are its state dict."""
    return stage.train(Regression(), points(), save_strategy="epoch")


@scenario
def model_init(stage: Any) -> Any:
    """The model is made by the trainer, from the seed."""

    def build() -> Any:
        model = Regression(dropout=0.2)
        torch.manual_seed(0)
        return model

    args = stage.arguments(num_train_epochs=2)
    return stage.finish(stage.trainer(None, args, model_init=build, train_dataset=points()))


@scenario
def frozen_parameters(stage: Any) -> Any:
    """Part of the model does not train."""
    model = llama()
    model.model.embed_tokens.requires_grad_(False)
    return stage.train(model, tokens(), weight_decay=0.1, num_train_epochs=2)


@scenario
def tied_weights(stage: Any) -> Any:
    """Embedding and head share one tensor, saved once."""
    return stage.train(llama(tie_word_embeddings=True), tokens(), save_strategy="epoch", num_train_epochs=1)


@scenario
def adapters(stage: Any) -> Any:
    """A PEFT model trains and saves its adapters alone."""
    from peft import LoraConfig, get_peft_model

    model = llama()
    torch.manual_seed(1)
    tuned = get_peft_model(model, LoraConfig(r=2, lora_dropout=0.1, target_modules=["q_proj", "v_proj"]))
    return stage.train(tuned, tokens(), save_strategy="epoch", num_train_epochs=2)


@scenario
def module_in_half_precision(stage: Any) -> Any:
    """Weights in bf16, no autocast."""
    return stage.train(llama().to(torch.bfloat16), tokens(), num_train_epochs=2)
