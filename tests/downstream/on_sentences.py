"""The trainers of sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests import tiny

from .scenarios import scenario
from .stage import Stage, dataset, words

SENTENCES = ("sentence_transformers", "sentence_transformers.cross_encoder")


def encoder_folder(stage: Stage) -> str:
    """A tiny BERT and its tokenizer on disk, where sentence-transformers takes models from."""
    from transformers import BertModel

    folder = stage.folder / "model"
    if not folder.exists():
        bert: Any = tiny.tiny_classifier().bert
        assert isinstance(bert, BertModel)
        bert.save_pretrained(folder)
        stage.tokenizer().save_pretrained(folder)
    return str(folder)


def pairs(n: int = 12, shift: int = 0) -> Any:
    return dataset([{"anchor": words(i + shift, 4), "positive": words(i + shift, 5)} for i in range(n)])


def scored(n: int = 10) -> Any:
    return dataset([{"a": words(i, 4), "b": words(i + i % 2, 5), "score": float(i % 2)} for i in range(n)])


@scenario(*SENTENCES, quick=True)
def sentence_transformer(stage: Stage) -> dict[str, Any]:
    """Two data sets with a loss each, an evaluator, checkpoints, the best of them loaded, and a resume."""
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        losses,
    )
    from sentence_transformers.evaluation import EmbeddingSimilarityEvaluator

    def make() -> Any:
        model = SentenceTransformer(encoder_folder(stage), device="cpu")
        args = stage.arguments(
            SentenceTransformerTrainingArguments, eval_strategy="steps", eval_steps=3, save_strategy="steps",
            save_steps=3, max_steps=6, load_best_model_at_end=True, multi_dataset_batch_sampler="round_robin",
            metric_for_best_model="eval_pairs_loss",
        )  # fmt: skip
        rows = scored()
        return SentenceTransformerTrainer(
            model=model,
            args=args,
            train_dataset={"pairs": pairs(), "scored": rows},
            eval_dataset={"pairs": pairs(4, shift=20), "scored": scored(4)},
            loss={"pairs": losses.MultipleNegativesRankingLoss(model), "scored": losses.CosineSimilarityLoss(model)},
            evaluator=EmbeddingSimilarityEvaluator(rows["a"], rows["b"], rows["score"], write_csv=False),
        )

    return stage.train(make(), again=make)


@scenario(*SENTENCES)
def cross_encoder(stage: Stage) -> dict[str, Any]:
    from sentence_transformers.cross_encoder import (
        CrossEncoder,
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
        losses,
    )

    folder = stage.folder / "model"
    tiny.tiny_classifier(num_labels=1).save_pretrained(folder)
    stage.tokenizer().save_pretrained(folder)

    def make() -> Any:
        model = CrossEncoder(str(folder), device="cpu")
        args = stage.arguments(
            CrossEncoderTrainingArguments, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
            gradient_accumulation_steps=2,
        )  # fmt: skip
        return CrossEncoderTrainer(
            model=model, args=args, train_dataset=scored(), eval_dataset=scored(4),
            loss=losses.BinaryCrossEntropyLoss(model),
        )  # fmt: skip

    assert Path(folder).exists()
    return stage.train(make(), again=make)
