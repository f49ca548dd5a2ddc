"""Models and data so small that a run takes a fraction of a second."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

VOCABULARY = 64
Rows = list[dict[str, Any]]


def llama(**changes: Any) -> Any:
    """A causal language model without dropout."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": VOCABULARY, "pad_token_id": 0}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, **changes}))


def gpt2(**changes: Any) -> Any:
    """A causal language model with dropout everywhere."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": VOCABULARY}
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**{**sizes, "bos_token_id": 1, "eos_token_id": 1, **changes}))


def classifier(labels: int = 3) -> Any:
    """A sequence classifier with dropout, whose forward takes no loss arguments."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(**sizes, vocab_size=VOCABULARY, max_position_embeddings=32, num_labels=labels)
    )


def t5() -> Any:
    """An encoder-decoder with dropout."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(**sizes, vocab_size=VOCABULARY, decoder_start_token_id=0))


class Regression(nn.Module):
    """A plain module; `shape` says whether forward returns a dict or a tuple."""

    def __init__(self, shape: str = "dict", dropout: float = 0.0) -> None:
        """Weights come from a fixed seed."""
        super().__init__()
        torch.manual_seed(0)
        self.shape = shape
        self.hidden = nn.Linear(4, 8)
        self.norm = nn.LayerNorm(8)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        """x: (batch, 4); labels: (batch,)."""
        logits = self.output(self.dropout(torch.relu(self.norm(self.hidden(x))))).squeeze(-1)
        loss = None if labels is None else nn.functional.mse_loss(logits, labels)
        if self.shape == "tuple":
            return (logits,) if loss is None else (loss, logits)
        return {"logits": logits} if loss is None else {"loss": loss, "logits": logits}


def points(count: int = 26, seed: int = 0) -> Rows:
    """Inputs and targets for `Regression`."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator)
    return [{"x": row, "labels": row.sum()} for row in x]


def tokens(count: int = 26, length: int = 8, seed: int = 0) -> Rows:
    """Sequences of one length with labels."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(3, VOCABULARY, (count, length), generator=generator)
    return [{"input_ids": row, "labels": row.clone(), "attention_mask": torch.ones_like(row)} for row in rows]


def ragged(count: int = 26, seed: int = 0) -> Rows:
    """Sequences of 3 to 12 tokens, as lists, without labels; needs `pad`."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 13, (count,), generator=generator).tolist()
    return [{"input_ids": torch.randint(3, VOCABULARY, (n,), generator=generator).tolist()} for n in lengths]


def pad(rows: Rows) -> dict[str, torch.Tensor]:
    """Collate `ragged` rows for a causal language model; pads are masked out of the loss."""
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([[*row["input_ids"], *[0] * (width - len(row["input_ids"]))] for row in rows])
    mask = (ids != 0).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def labelled(count: int = 26, seed: int = 0) -> Rows:
    """Sequences of 8 tokens with a class in {0, 1, 2} under `label`."""
    return [
        {"input_ids": row["input_ids"], "attention_mask": row["attention_mask"], "label": int(row["input_ids"][0]) % 3}
        for row in tokens(count, seed=seed)
    ]


def tokenizer() -> Any:
    """A word-level tokenizer whose words are the numbers 0 … 63; 0 pads."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({str(number): number for number in range(VOCABULARY)}, unk_token="1"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="0", unk_token="1", eos_token="2")


class Stream(torch.utils.data.IterableDataset[dict[str, Any]]):
    """`rows` without a length."""

    def __init__(self, rows: Rows) -> None:
        """Keep `rows`."""
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """One pass, in order."""
        return iter(self.rows)
