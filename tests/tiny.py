"""The tiny models and data sets that every test shares: small enough for milliseconds, real enough to fail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB = 64


class TinyRegression(nn.Module):
    """Two linear layers: ``x`` (n, 4) and ``labels`` (n,) in, ``{"loss": (), "logits": (n,)}`` out."""

    def __init__(self, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = nn.Linear(4, 8)
            self.norm = nn.LayerNorm(8)
            self.head = nn.Linear(8, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(self.dropout(torch.relu(self.norm(self.body(x))))).squeeze(-1)
        if labels is None:
            return {"logits": logits}
        return {"loss": torch.nn.functional.mse_loss(logits, labels), "logits": logits}


class TinyClassifier(nn.Module):
    """A plain classifier over ``x`` (n, 4) and class ids ``labels`` (n,); forward returns ``{"loss", "logits"}``."""

    def __init__(self, classes: int = 3, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, classes))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.layers(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


class RegressionData(Dataset[dict[str, Tensor]]):
    """``n`` samples ``{"x": (4,) float, "labels": () float}`` of a noisy linear function, fixed by ``seed``."""

    def __init__(self, n: int = 32, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(n, 4, generator=generator)
        self.labels = self.x @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + 0.1 * torch.randn(n, generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "labels": self.labels[index]}


class ClassData(Dataset[dict[str, Tensor]]):
    """``n`` samples ``{"x": (4,) float, "labels": () int64}`` in three classes (which of three inputs is largest)."""

    def __init__(self, n: int = 32, seed: int = 0) -> None:
        self.x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
        self.labels = self.x[:, :3].argmax(dim=1)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "labels": self.labels[index]}


class RegressionStream(IterableDataset[dict[str, Tensor]]):
    """The samples of `RegressionData` as a stream without a length; ``pulled`` counts what was asked of it."""

    def __init__(self, n: int = 32, seed: int = 0) -> None:
        self.data = RegressionData(n, seed)
        self.pulled = 0

    def __iter__(self) -> Any:
        for index in range(len(self.data)):
            self.pulled += 1
            yield self.data[index]


def tiny_llama(seed: int = 0, **overrides: Any) -> LlamaForCausalLM:
    """A Llama with two layers of width 16 over ``VOCAB`` tokens (about 7,000 weights), fixed by ``seed``."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**(sizes | overrides)))


def tiny_classifier(seed: int = 0, **overrides: Any) -> Any:
    """A BERT sequence classifier with three labels, one layer of width 16 over ``VOCAB`` tokens, fixed by ``seed``."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "num_labels": 3,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BertForSequenceClassification(BertConfig(**(sizes | overrides)))


def token_data(n: int = 16, length: int | tuple[int, int] = 12, seed: int = 0) -> list[dict[str, list[int]]]:
    """``n`` causal-LM samples ``{"input_ids", "attention_mask", "labels"}`` of ``length`` tokens.

    ``length`` may be a range (shortest, longest) to draw from.
    A list is a map-style data set. Tokens 0 to 2 (padding, begin, end) do not occur. Of unequal lengths they need a
    collator that pads: see `pad_tokens`.
    """
    generator = torch.Generator().manual_seed(seed)
    low, high = (length, length) if isinstance(length, int) else length
    samples = []
    for _ in range(n):
        size = int(torch.randint(low, high + 1, (), generator=generator))
        ids = torch.randint(3, VOCAB, (size,), generator=generator).tolist()
        samples.append({"input_ids": ids, "attention_mask": [1] * size, "labels": list(ids)})
    return samples


def pad_tokens(samples: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Collate samples of `token_data` into (n, longest) tensors: ids and mask padded with 0, labels with -100."""
    longest = max(len(sample["input_ids"]) for sample in samples)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {
        name: torch.tensor([sample[name] + [value] * (longest - len(sample[name])) for sample in samples])
        for name, value in fill.items()
    }


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of ``VOCAB`` entries: <pad>, <s>, </s>, <unk>, then the words w4 to w63."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(4, VOCAB))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
