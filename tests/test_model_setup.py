"""What is read from a model and attached to it is what transformers reads and attaches."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertForQuestionAnswering, CLIPModel, GenerationConfig, T5ForConditionalGeneration
from transformers.integrations.neftune import activate_neftune as their_neftune
from transformers.trainer_utils import align_special_tokens as their_alignment
from transformers.utils.generic import can_return_loss as their_can_return_loss, find_labels as their_labels

from onward import model_setup
from onward.errors import MissingDependency, UsageError
from tests.tiny import TinyClassifier, TinyRegression, tiny_classifier, tiny_llama, tiny_tokenizer

# peft asks transformers by a name that transformers has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def lora(model: Any) -> Any:
    import peft

    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=2))


def tokens() -> torch.Tensor:
    return torch.randint(3, 64, (2, 6))


# Questions


@pytest.mark.parametrize("kind", [TinyRegression, BertForQuestionAnswering, CLIPModel, T5ForConditionalGeneration])
def test_signatures_are_read_as_theirs(kind: type) -> None:
    assert model_setup.label_names(kind) == their_labels(kind)
    assert model_setup.can_return_loss(kind) is their_can_return_loss(kind)


def test_signatures_differ_between_these_models() -> None:
    assert model_setup.label_names(BertForQuestionAnswering) == ["start_positions", "end_positions"]
    assert model_setup.label_names(TinyRegression) == ["labels"]


def test_who_takes_the_count_of_items() -> None:
    assert model_setup.accepts_loss_kwargs(tiny_llama())
    assert model_setup.accepts_loss_kwargs(lora(tiny_llama()))
    assert not model_setup.accepts_loss_kwargs(TinyRegression())
    says_so = TinyRegression()
    says_so.accepts_loss_kwargs = True  # type: ignore[assignment]
    assert model_setup.accepts_loss_kwargs(says_so)


def test_whose_loss_shifts() -> None:
    assert model_setup.loss_shifts_labels(tiny_llama())
    assert model_setup.loss_shifts_labels(lora(tiny_llama()))
    assert not model_setup.loss_shifts_labels(tiny_classifier())
    assert not model_setup.loss_shifts_labels(TinyRegression())
    seq2seq = SimpleNamespace(loss_type="ForConditionalGeneration", config=SimpleNamespace(is_encoder_decoder=True))
    assert not model_setup.loss_shifts_labels(seq2seq)  # type: ignore[arg-type]


def test_for_whom_smoothing_shifts() -> None:
    assert model_setup.is_causal_language_model(tiny_llama())
    assert model_setup.is_causal_language_model(lora(tiny_llama()))
    assert not model_setup.is_causal_language_model(tiny_classifier())
    assert not model_setup.is_causal_language_model(TinyRegression())


def test_peft_is_taken_off() -> None:
    model = tiny_llama()
    assert model_setup.is_pretrained(model)
    assert not model_setup.is_pretrained(TinyRegression())
    assert model_setup.without_peft(model) is model
    assert model_setup.without_peft(lora(model)) is model


def test_quantized_models_that_cannot_learn_are_refused() -> None:
    model: Any = TinyRegression()
    model_setup.check_trainable(model)
    model.is_quantized = True
    with pytest.raises(UsageError, match="purely quantized"):
        model_setup.check_trainable(model)
    method = SimpleNamespace(quant_method="frozen")
    model.hf_quantizer = SimpleNamespace(is_qat_trainable=True, is_trainable=False, quantization_config=method)
    with pytest.raises(UsageError, match="quantized with frozen"):
        model_setup.check_trainable(model)
    model.hf_quantizer.is_trainable = True
    model_setup.check_trainable(model)
    model._orig_mod = None
    with pytest.raises(UsageError, match="compiled"):
        model_setup.check_trainable(model)
    model._hf_peft_config_loaded = True
    model_setup.check_trainable(model)


def test_who_places_itself() -> None:
    model: Any = TinyRegression()
    assert not model_setup.is_placed_by_itself(model)
    model.quantization_method = "bitsandbytes"
    assert model_setup.is_placed_by_itself(model)
    model.quantization_method, model.hf_device_map = None, {"": 0}
    assert model_setup.is_placed_by_itself(model)


# NEFTune


@pytest.mark.parametrize("wrap", [lambda model: model, lora])
def test_noise_is_theirs_to_the_bit(wrap: Any) -> None:
    ours, theirs = wrap(tiny_llama()).train(), wrap(tiny_llama()).train()
    ids = tokens()
    handle = model_setup.activate_neftune(ours, 5.0)
    their_neftune(theirs, 5.0)
    torch.manual_seed(1)
    noisy = ours(ids).logits
    torch.manual_seed(1)
    assert torch.equal(noisy, theirs(ids).logits)
    model_setup.deactivate_neftune(ours, handle)
    assert not torch.equal(noisy, ours(ids).logits)
    assert not hasattr(ours.get_input_embeddings(), "neftune_noise_alpha")


def test_no_noise_in_evaluation() -> None:
    model = tiny_llama().eval()
    ids = tokens()
    before = model(ids).logits
    model_setup.activate_neftune(model, 5.0)
    assert torch.equal(model(ids).logits, before)


def test_a_plain_module_with_one_embedding_gets_noise() -> None:
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 2))
    ids = torch.tensor([[1, 2]])
    before = model(ids)
    handle = model_setup.activate_neftune(model, 5.0)
    assert not torch.equal(model(ids), before)
    model_setup.deactivate_neftune(model, handle)
    assert torch.equal(model(ids), before)
    model_setup.deactivate_neftune(model, None)


def test_a_module_without_an_embedding_is_refused() -> None:
    with pytest.raises(UsageError, match="0 embeddings"):
        model_setup.activate_neftune(TinyRegression(), 5.0)


# Liger


def test_liger_is_named_when_it_is_missing() -> None:
    with pytest.raises(MissingDependency, match="pip install liger-kernel"):
        model_setup.apply_liger_kernel(tiny_llama())


# Special tokens


def configs(model: Any) -> Any:
    generation = model.generation_config
    names = ("eos_token_id", "bos_token_id", "pad_token_id")
    return [[getattr(part, name, None) for name in names] for part in (model.config, generation) if part is not None]


def aligned_models() -> list[Any]:
    same, fresh, listed, no_generation = tiny_llama(), tiny_llama(), tiny_llama(), tiny_llama()
    fresh.config.pad_token_id = fresh.generation_config.pad_token_id = None
    fresh.config.eos_token_id = 40
    fresh.generation_config.eos_token_id = 40
    listed.config.eos_token_id = [41, 2]
    listed.generation_config = GenerationConfig(eos_token_id=[42, 43], bos_token_id=7)
    no_generation.generation_config = None
    no_generation.config.bos_token_id = 9
    return [same, fresh, listed, no_generation]


@pytest.mark.parametrize("case", range(4))
@pytest.mark.parametrize("cleared", [None, "bos_token"])
def test_tokens_are_aligned_as_theirs(case: int, cleared: str | None) -> None:
    ours, theirs, tokenizer = aligned_models()[case], aligned_models()[case], tiny_tokenizer()
    if cleared:
        setattr(tokenizer, cleared, None)
    changed = model_setup.align_special_tokens(ours, tokenizer)
    their_alignment(theirs, tokenizer)
    assert configs(ours) == configs(theirs)
    assert changed or configs(ours) == configs(aligned_models()[case])


def test_what_has_no_tokens_is_left_alone() -> None:
    assert model_setup.align_special_tokens(TinyRegression(), tiny_tokenizer()) == {}
    assert model_setup.align_special_tokens(tiny_llama(), object()) == {}


# Activation checkpointing


class Stack(nn.Module):
    """Blocks in a list, a head outside of it, dropout inside; ``runs`` counts the forward passes of blocks."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.head = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, scale=0.5)
        return self.head(x).sum()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.3))
        self.runs = 0

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        self.runs += 1
        return x + scale * self.inner(x)


def gradients(model: nn.Module) -> list[torch.Tensor]:
    torch.manual_seed(3)
    model.zero_grad()
    model(torch.randn(5, 8)).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("options", [None, {"use_reentrant": False}, {"every_n_layers": 2}, {"offload": True}])
def test_recomputing_changes_no_gradient(options: Any) -> None:
    plain, model = Stack(), Stack()
    changed = model_setup.enable_activation_checkpointing(model, options)
    every = (options or {}).get("every_n_layers", 1)
    assert changed == 4 // every
    for ours, expected in zip(gradients(model), gradients(plain), strict=True):
        assert torch.equal(ours, expected)
    assert [block.runs for block in model.blocks] == [2 if i % every == 0 else 1 for i in range(4)]
    assert list(model.state_dict()) == list(plain.state_dict())
    assert isinstance(model.blocks[0], Block)


def test_nothing_is_recomputed_in_evaluation_and_twice_is_once() -> None:
    model = Stack()
    model_setup.enable_activation_checkpointing(model)
    model_setup.enable_activation_checkpointing(model)
    gradients(model)
    assert [block.runs for block in model.blocks] == [2] * 4
    gradients(model.eval())
    assert [block.runs for block in model.blocks] == [3] * 4


def test_a_copy_calls_its_own_blocks() -> None:
    model = Stack()
    model_setup.enable_activation_checkpointing(model)
    twin = copy.deepcopy(model)
    gradients(twin)
    assert [block.runs for block in model.blocks] == [0] * 4


def test_models_that_know_how_do_it_themselves() -> None:
    plain, model = tiny_llama().train(), tiny_llama().train()
    assert model_setup.enable_activation_checkpointing(model, {"every_n_layers": 2}) == 0
    assert model.is_activation_checkpointing
    ids = tokens()
    for one in (plain, model):
        one(ids, labels=ids).loss.backward()
    for p, q in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_an_older_method_gets_what_it_knows(caplog: pytest.LogCaptureFixture) -> None:
    class Older(nn.Module):
        def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None) -> None:
            self.given = gradient_checkpointing_kwargs

    model = Older()
    model_setup.enable_activation_checkpointing(model, {"use_reentrant": True, "every_n_layers": 3})
    assert model.given == {"use_reentrant": True}
    assert "every_n_layers" in caplog.text


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(UsageError, match="without blocks"):
        model_setup.enable_activation_checkpointing(TinyClassifier())


def test_batch_statistics_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), Block(), nn.ModuleList([nn.Sequential(nn.Linear(2, 2))]))
    model[1].norm = nn.BatchNorm1d(8)
    assert model_setup.enable_activation_checkpointing(model) == 1
    assert "batch statistics of Block" in caplog.text
