"""A model in mixed precision that returns its loss alone."""

from __future__ import annotations

from accelerate import Accelerator
from torch import nn

from onward.speed.outputs import loss_alone
from tests.tiny import pad_tokens, tiny_llama, token_data

BATCH = pad_tokens(token_data(3, (2, 7)))


def prepared(precision: str) -> nn.Module:
    model: nn.Module = Accelerator(mixed_precision=precision, cpu=True).prepare(tiny_llama())
    return model.eval()


def test_the_loss_is_the_same_and_logits_come_back_afterwards() -> None:
    model = prepared("bf16")
    with loss_alone(model):
        alone = model(**BATCH)
    assert set(alone) == {"loss"}
    assert alone["loss"].item() == model(**BATCH).loss.item()
    assert "logits" in model(**BATCH)


def test_hooks_and_full_precision_see_all() -> None:
    watched = prepared("bf16")
    watched.register_forward_hook(lambda _, __, outputs: None)
    with loss_alone(watched):
        assert "logits" in watched(**BATCH)
    plain = tiny_llama()
    with loss_alone(plain):
        assert "logits" in plain(**BATCH)
