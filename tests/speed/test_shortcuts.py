"""Training without padding and without logits, against training with both."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onward import Trainer, TrainingArguments
from onward.errors import UsageError
from tests.tiny import pad_tokens, tiny_llama, token_data


def settings(folder: Path, **options: Any) -> TrainingArguments:
    given: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 4,
        "learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "use_cpu": True,
    }  # fmt: skip
    return TrainingArguments(**(given | options))


def trained(
    folder: Path, model: nn.Module | None = None, kind: type[Trainer] = Trainer, more: Any = None, **options: Any
) -> Trainer:
    data = token_data(32, (3, 20))
    trainer = kind(
        tiny_llama() if model is None else model,
        settings(folder, **options),
        data_collator=pad_tokens,
        train_dataset=data,
        **(more or {}),
    )
    trainer.train()
    return trainer


def losses(trainer: Trainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def took(trainer: Trainer) -> tuple[bool, bool]:
    assert trainer._shortcuts is not None
    return trainer._shortcuts.packing.taken, trainer._shortcuts.chunking.taken


def distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


MODELS: dict[str, dict[str, Any]] = {
    "sdpa": {},
    "eager": {"attn_implementation": "eager"},
    "grouped heads": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
}


@pytest.mark.parametrize("overrides", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("asked", [(True, False), (False, True), (True, True)], ids=["row", "chunks", "both"])
def test_trains_as_with_padding_and_logits(
    tmp_path: Path, overrides: dict[str, Any], asked: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onward.speed.chunked_loss.CHUNK", {"cpu": 64 * 7})
    plain = trained(tmp_path / "plain", tiny_llama(**overrides))
    short = trained(tmp_path / "short", tiny_llama(**overrides), padding_free=asked[0], chunked_loss=asked[1])
    assert took(short) == asked
    assert losses(short) == pytest.approx(losses(plain), rel=1e-5)
    assert distance(plain.model, short.model) < 1e-4
    assert short.meters.samples == plain.meters.samples
    assert short.meters.tokens == plain.meters.tokens
    assert plain.meters.pads > 0
    assert (short.meters.pads == 0) is asked[0]


def test_gpt2_whose_loss_has_no_name_takes_both(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    def model() -> Any:
        torch.manual_seed(0)
        still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=32, **still))

    short = trained(tmp_path / "short", model(), padding_free=True, chunked_loss=True)
    assert took(short) == (True, True)
    assert losses(short) == pytest.approx(losses(trained(tmp_path / "plain", model())), rel=1e-5)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    model = tiny_llama()
    trained(tmp_path, model, padding_free=True, chunked_loss=True)
    assert model.config._attn_implementation == "sdpa"
    assert "forward" not in vars(model.lm_head)
    assert "_loss_function" not in vars(model)
    assert not model.lm_head._forward_hooks
    assert not model.lm_head._forward_pre_hooks


def test_the_check_moves_no_random_numbers_and_no_gradients(tmp_path: Path) -> None:
    seen: list[tuple[Tensor, bool, bool]] = []

    class Watched(Trainer):
        def compute_loss_context_manager(self) -> Any:
            model = self.model
            no_gradients = all(p.grad is None for p in model.parameters())
            seen.append((torch.get_rng_state(), no_gradients, all(m.training for m in model.modules())))
            return super().compute_loss_context_manager()

    for asked in (False, True):
        trained(tmp_path, tiny_llama(), Watched, padding_free=asked, chunked_loss=asked, max_steps=1)
    (plain, *_), (checked, no_gradients, trains) = seen[0], seen[2]
    assert torch.equal(plain, checked)
    assert no_gradients
    assert trains


class Leaky(nn.Module):
    """An attention layer's output plus a little of the token before, from whichever sample."""

    def __init__(self, inner: nn.Module, share: float) -> None:
        super().__init__()
        self.inner, self.share = inner, share

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output, weights = self.inner(*args, **kwargs)
        return output + self.share * output.roll(1, dims=1), weights


@pytest.mark.parametrize("bf16", [False, True])
def test_a_model_whose_samples_meet_is_found_out(tmp_path: Path, caplog: pytest.LogCaptureFixture, bf16: bool) -> None:
    def leaky() -> Any:
        model = tiny_llama()
        for layer in model.model.layers:
            layer.self_attn = Leaky(layer.self_attn, 0.05)
        return model

    plain = trained(tmp_path / "plain", leaky(), bf16=bf16)
    with caplog.at_level(logging.WARNING, "onward"):
        short = trained(tmp_path / "short", leaky(), padding_free="auto", bf16=bf16)
    assert took(short) == (False, False)
    assert "do not stay apart" in caplog.text
    assert losses(short) == losses(plain)
    with pytest.raises(UsageError, match="do not stay apart"):
        trained(tmp_path / "must", leaky(), padding_free=True, bf16=bf16)


def test_logits_changed_before_the_loss_are_found_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8,
        "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "attn_implementation": "eager",
    }  # fmt: skip
    scaled = GraniteForCausalLM(GraniteConfig(**sizes, logits_scaling=3.0))
    capped = Gemma2ForCausalLM(Gemma2Config(**sizes, final_logit_softcapping=30.0))
    for model, found in ((scaled, "changed between output layer and loss"), (capped, "final_logit_softcapping")):
        with caplog.at_level(logging.INFO, "onward"):
            short = trained(tmp_path, model, chunked_loss="auto", max_steps=1, log_level="info")
        assert took(short) == (False, False)
        assert found in caplog.text


def _of_outputs(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Tensor:
    return outputs["logits"].square().mean()


class OwnLoss(Trainer):
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(*args, **kwargs)


AGAINST: dict[str, tuple[dict[str, Any], str]] = {
    "own compute_loss": ({"kind": OwnLoss}, "overridden"),
    "loss function": ({"more": {"compute_loss_func": _of_outputs}}, "compute_loss_func"),
    "smoothing": ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
}


@pytest.mark.parametrize(("case", "reason"), AGAINST.values(), ids=AGAINST.keys())
def test_what_wants_batches_or_logits_gets_them(tmp_path: Path, case: dict[str, Any], reason: str) -> None:
    for name in ("padding_free", "chunked_loss"):
        with pytest.raises(UsageError, match=reason):
            trained(tmp_path, **case, **{name: True})
    short = trained(tmp_path, **case, padding_free="auto", chunked_loss="auto")
    assert took(short) == (False, False)
    assert losses(short) == losses(trained(tmp_path, **case))


def test_activation_checkpointing_recomputes_within_samples(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", activation_checkpointing=True)
    short = trained(tmp_path / "short", activation_checkpointing=True, padding_free=True, chunked_loss=True)
    assert losses(short) == pytest.approx(losses(plain), rel=1e-5)
    assert distance(plain.model, short.model) < 1e-4


def test_evaluation_in_between_is_padded_and_has_logits(tmp_path: Path) -> None:
    evaluated: list[tuple[int, ...]] = []

    def shapes(prediction: Any) -> dict[str, float]:
        evaluated.append(prediction.predictions.shape)
        return {}

    more = {"eval_dataset": token_data(4, 10, seed=5), "compute_metrics": shapes}
    options = {"more": more, "eval_strategy": "steps", "eval_steps": 2}
    short = trained(tmp_path, padding_free=True, chunked_loss=True, **options)
    plain = trained(tmp_path, **options)
    assert evaluated[0] == (4, 10, 64)
    ours, theirs = ([h["eval_loss"] for h in t.state.log_history if "eval_loss" in h] for t in (short, plain))
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_half_precision_weights_are_compared_by_their_own_noise(tmp_path: Path) -> None:
    short = trained(tmp_path, tiny_llama().to(torch.bfloat16), padding_free=True, chunked_loss=True, max_steps=1)
    assert took(short) == (True, True)
