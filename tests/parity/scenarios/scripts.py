"""Whole scripts as people write them, from texts to saved results."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..models import VOCABULARY, Regression, classifier, gpt2, points, ragged, tokenizer, tokens
from ..record import exact
from .registry import scenario

BERT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def bert(kind: str, **config: Any) -> Any:
    """A small BERT with the head `kind`."""
    import transformers

    torch.manual_seed(0)
    sizes = {**BERT, "vocab_size": VOCABULARY, "max_position_embeddings": 32}
    return getattr(transformers, f"BertFor{kind}")(transformers.BertConfig(**sizes, **config))


def texts(count: int = 26, seed: int = 0) -> Any:
    """Sentences of 3 to 12 words with a class each."""
    from datasets import Dataset

    words = [row["input_ids"] for row in ragged(count, seed)]
    return Dataset.from_dict(
        {"text": [" ".join(map(str, row)) for row in words], "label": [row[0] % 3 for row in words]}
    )


def written(folder: Path) -> dict[str, Any]:
    """Names of the files in `folder`, and what the JSON files of results hold."""
    files = sorted(path.name for path in folder.iterdir() if path.is_file() and path.name != "metrics.jsonl")
    results = {path.name: exact(json.loads(path.read_text())) for path in sorted(folder.glob("*_results.json"))}
    return {"files": files, "results": results}


@scenario
def script_texts_classified(stage: Any) -> Any:
    """Tokenized by `map`, padded by batch, best model, results and model saved: the end of every example script."""
    from transformers import DataCollatorWithPadding

    words = tokenizer()

    def accuracy(pair: Any) -> dict[str, float]:
        predictions, labels = pair
        return {"accuracy": float((np.argmax(predictions, axis=1) == labels).mean())}

    def tokenize(batch: dict[str, Any]) -> Any:
        return words(batch["text"], truncation=True, max_length=10)

    train, held_out = texts().map(tokenize, batched=True), texts(9, seed=1).map(tokenize, batched=True)
    args = stage.arguments(
        num_train_epochs=2, eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
        metric_for_best_model="accuracy", per_device_train_batch_size=4, weight_decay=0.01, save_total_limit=2,
    )  # fmt: skip
    parts = {"data_collator": DataCollatorWithPadding(words, pad_to_multiple_of=4), "compute_metrics": accuracy}
    trainer = stage.trainer(
        classifier(), args, train_dataset=train, eval_dataset=held_out, processing_class=words, **parts
    )
    record = stage.finish(trainer)
    trainer.save_model()
    trainer.log_metrics("train", {"train_loss": trainer.state.log_history[-1]["train_loss"]})
    trainer.save_state()
    scores = trainer.evaluate()
    trainer.save_metrics("eval", {**scores, "eval_samples": len(held_out)})
    predicted = trainer.predict(held_out.remove_columns("label"), metric_key_prefix="predict")
    return {**record, "predicted": exact(predicted.predictions), "written": written(stage.folder / "run")}


@scenario
def script_texts_grouped(stage: Any) -> Any:
    """A causal language model on texts joined and cut into blocks."""
    from transformers import default_data_collator

    words, block = tokenizer(), 12

    def group(batch: dict[str, Any]) -> dict[str, Any]:
        joined = {key: list(chain(*rows)) for key, rows in batch.items()}
        total = len(joined["input_ids"]) // block * block
        blocks = {key: [row[at : at + block] for at in range(0, total, block)] for key, row in joined.items()}
        blocks["labels"] = [list(row) for row in blocks["input_ids"]]
        return blocks

    tokenized = texts(40).map(lambda batch: words(batch["text"]), batched=True, remove_columns=["text", "label"])
    blocks = tokenized.map(group, batched=True, batch_size=16)

    def preprocess(logits: Any, labels: Any) -> Any:
        return (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1)

    def accuracy(pair: Any) -> dict[str, float]:
        predictions, labels = pair
        return {"accuracy": float((predictions[:, :-1] == labels[:, 1:]).mean())}

    args = stage.arguments(num_train_epochs=2, eval_strategy="steps", eval_steps=2, gradient_accumulation_steps=2)
    parts = {"data_collator": default_data_collator, "compute_metrics": accuracy, "processing_class": words}
    trainer = stage.trainer(
        gpt2(), args, train_dataset=blocks, eval_dataset=blocks.select(range(5)),
        preprocess_logits_for_metrics=preprocess, **parts,
    )  # fmt: skip
    record = stage.finish(trainer)
    return {**record, "perplexity": exact(math.exp(trainer.evaluate()["eval_loss"]))}


@scenario
def script_tokens_tagged(stage: Any) -> Any:
    """Token classification, where parts of words have no tag."""
    from datasets import Dataset
    from transformers import DataCollatorForTokenClassification

    rows = [row["input_ids"] for row in ragged()]
    tags = [[-100 if at % 3 == 2 else word % 4 for at, word in enumerate(row)] for row in rows]
    data = Dataset.from_dict({"input_ids": rows, "labels": tags, "attention_mask": [[1] * len(row) for row in rows]})

    def known(pair: Any) -> dict[str, float]:
        predictions, labels = pair
        found = np.argmax(predictions, axis=2)
        kept = [
            (p, t) for row, goal in zip(found, labels, strict=True) for p, t in zip(row, goal, strict=True) if t != -100
        ]
        return {"known": float(len(kept)), "accuracy": float(np.mean([p == t for p, t in kept]))}

    args = stage.arguments(num_train_epochs=2, eval_strategy="epoch", per_device_eval_batch_size=3)
    parts = {"data_collator": DataCollatorForTokenClassification(tokenizer()), "compute_metrics": known}
    trainer = stage.trainer(
        bert("TokenClassification", num_labels=4), args, train_dataset=data, eval_dataset=data.select(range(8)), **parts
    )
    record = stage.finish(trainer)
    predictions, labels, scores = trainer.predict(data.select(range(7)))
    return {**record, "predicted": [exact(predictions), exact(labels), exact(scores)]}


@scenario
def script_answers_postprocessed(stage: Any) -> Any:
    """The question answering trainer of the examples: evaluation without metrics, answers made of it, then metrics."""
    from transformers.trainer_utils import speed_metrics

    class Answering(stage.lib.Trainer):  # type: ignore[misc, name-defined]
        def __init__(self, *args: Any, eval_examples: Any = None, post_process: Any = None, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.eval_examples, self.post_process = eval_examples, post_process

        def evaluate(
            self, eval_dataset: Any = None, eval_examples: Any = None, ignore_keys: Any = None,
            metric_key_prefix: str = "eval",
        ) -> Any:  # fmt: skip
            eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
            loader = self.get_eval_dataloader(eval_dataset)
            compute_metrics, self.compute_metrics = self.compute_metrics, None
            begun = time.time()
            try:
                output = self.evaluation_loop(
                    loader, description="Evaluation", prediction_loss_only=None, ignore_keys=ignore_keys,
                    metric_key_prefix=metric_key_prefix,
                )  # fmt: skip
            finally:
                self.compute_metrics = compute_metrics
            steps = math.ceil(output.num_samples / (self.args.eval_batch_size * self.args.world_size))
            output.metrics.update(speed_metrics(metric_key_prefix, begun, output.num_samples, steps))
            if self.args.should_save:
                answers = self.post_process(self.eval_examples, output.predictions)
                scores = self.compute_metrics(answers)
                metrics = {f"{metric_key_prefix}_{key}": value for key, value in scores.items()} | output.metrics
            if self.args.should_log:
                self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

    rows = [
        {"input_ids": row["input_ids"], "start_positions": int(row["input_ids"][0]) % 8, "end_positions": 7}
        for row in tokens(18)
    ]

    def answer(examples: Any, predictions: Any) -> Any:
        starts, ends = predictions
        return [(int(start.argmax()), int(end.argmax())) for start, end in zip(starts, ends, strict=True)]

    best = {"load_best_model_at_end": True, "metric_for_best_model": "exact", "greater_is_better": True}
    args = stage.arguments(num_train_epochs=2, eval_strategy="epoch", save_strategy="epoch", **best)
    parts = {"eval_examples": rows[:7], "post_process": answer}
    return stage.finish(
        stage.trainer(
            bert("QuestionAnswering"), args, Answering, train_dataset=rows, eval_dataset=rows[:7],
            compute_metrics=lambda answers: {"exact": float(sum(end == 7 for _, end in answers))}, **parts,
        )
    )  # fmt: skip


@scenario
def script_pictures(stage: Any) -> Any:
    """Image classification with a transform on access and columns kept for it."""
    from datasets import Dataset
    from transformers import ViTConfig, ViTForImageClassification

    pixels = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    data = Dataset.from_dict({"image": pixels.tolist(), "label": [at % 3 for at in range(20)]})

    def transform(batch: dict[str, Any]) -> dict[str, Any]:
        return {
            "pixel_values": [(torch.tensor(image) - 0.5) / 0.5 for image in batch["image"]],
            "label": batch["label"],
        }

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
            "labels": torch.tensor([row["label"] for row in rows]),
        }

    torch.manual_seed(0)
    sizes = {**BERT, "image_size": 8, "patch_size": 4, "num_labels": 3, "hidden_dropout_prob": 0.1}
    model = ViTForImageClassification(ViTConfig(**sizes, label2id={c: i for i, c in enumerate("abc")}))
    data = data.with_transform(transform)
    args = stage.arguments(num_train_epochs=2, remove_unused_columns=False, eval_strategy="epoch")
    return stage.finish(
        stage.trainer(model, args, train_dataset=data, eval_dataset=data.select(range(6)), data_collator=collate)
    )


@scenario
def script_speech(stage: Any) -> Any:
    """CTC over raw sound; the model masks time steps with numpy's generator and drops layers while it trains."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    generator = torch.Generator().manual_seed(2)
    rows = [
        {"input_values": torch.randn(400 + 40 * (at % 5), generator=generator), "labels": [1 + at % 5, 2, 3 + at % 7]}
        for at in range(16)
    ]

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        sounds = nn.utils.rnn.pad_sequence([row["input_values"] for row in batch], batch_first=True)
        return {"input_values": sounds, "labels": torch.tensor([row["labels"] for row in batch])}

    torch.manual_seed(0)
    sizes = {**BERT, "num_hidden_layers": 2, "conv_dim": (8, 8), "conv_stride": (5, 4), "conv_kernel": (10, 8)}
    config = Wav2Vec2Config(
        **sizes, vocab_size=12, mask_time_prob=0.3, mask_time_length=2, mask_feature_prob=0.2, mask_feature_length=2,
        layerdrop=0.3, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, num_feat_extract_layers=2,
        ctc_loss_reduction="mean", pad_token_id=0, ctc_zero_infinity=True,
    )  # fmt: skip
    model = Wav2Vec2ForCTC(config)
    model.freeze_feature_encoder()
    args = stage.arguments(num_train_epochs=2, per_device_train_batch_size=4, warmup_steps=2, eval_strategy="epoch")
    return stage.finish(stage.trainer(model, args, train_dataset=rows, eval_dataset=rows[:5], data_collator=collate))


@scenario
def script_scores(stage: Any) -> Any:
    """Regression by a classifier of one label, in the columns of the data set."""
    from datasets import Dataset

    rows = [{"input_ids": row["input_ids"].tolist(), "label": float(row["input_ids"][0]) / 64} for row in tokens(22)]

    def error(pair: Any) -> dict[str, float]:
        return {"mse": float(((np.squeeze(pair.predictions) - pair.label_ids) ** 2).mean())}

    data = Dataset.from_list(rows)
    parts = {"eval_dataset": data.select(range(7)), "compute_metrics": error}
    changes = {"metric_for_best_model": "mse", "greater_is_better": False, "save_strategy": "best"}
    model = bert("SequenceClassification", num_labels=1)
    return stage.train(model, data, parts, eval_strategy="steps", eval_steps=3, num_train_epochs=2, **changes)


@scenario
def script_main(stage: Any) -> Any:
    """`main()` of an example: arguments from a command line, the last checkpoint looked for, results saved."""
    from transformers import HfArgumentParser
    from transformers.trainer_utils import get_last_checkpoint

    @dataclass
    class Model:
        dropout: float = 0.0

    line = (
        f"--output_dir {stage.folder / 'run'} --do_train --do_eval --dropout 0.2 --num_train_epochs 2 --seed 3 "
        "--per_device_train_batch_size 4 --eval_strategy epoch --save_strategy epoch --learning_rate 1e-2 --use_cpu "
        "--logging_steps 1 --report_to none --disable_tqdm True --lr_scheduler_type cosine --warmup_steps 0.1"
    )
    parser = HfArgumentParser((Model, stage.lib.TrainingArguments))
    settings, args = parser.parse_args_into_dataclasses(line.split())
    last = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() and args.do_train else None
    stage.lib.set_seed(args.seed)
    trainer = stage.trainer(
        Regression(dropout=settings.dropout), args, train_dataset=points(), eval_dataset=points(9, 1)
    )
    record = stage.finish(trainer, resume_from_checkpoint=args.resume_from_checkpoint or last)
    trainer.save_model()
    trainer.save_metrics("train", {"train_samples": 26})
    trainer.save_state()
    if args.do_eval:
        trainer.save_metrics("eval", trainer.evaluate())
    return {**record, "written": written(Path(args.output_dir))}
