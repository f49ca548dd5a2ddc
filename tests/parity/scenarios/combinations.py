"""Settings that meet: each is right alone in the other modules, and wrong together is where trainers break."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from ..models import Regression, Stream, classifier, gpt2, labelled, llama, pad, points, ragged, t5, tokenizer, tokens
from ..record import exact
from .evaluating import accuracy
from .registry import add, scenario

ACCUMULATED: dict[str, Any] = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4}


def _trained(stage: Any, **changes: Any) -> Any:
    """Ragged lengths, accumulated, with a short last step, over two epochs."""
    parts = {"data_collator": pad, "eval_dataset": ragged(7, seed=1)}
    return stage.train(llama(), ragged(), parts, **{"num_train_epochs": 2, **ACCUMULATED, **changes})


TOGETHER: dict[str, dict[str, Any]] = {
    "bf16_and_clipping": {"bf16": True, "max_grad_norm": 0.1, "weight_decay": 0.1},
    "bf16_and_smoothing": {"bf16": True, "label_smoothing_factor": 0.1, "eval_strategy": "epoch"},
    "bf16_and_recomputation": {"bf16": True, "gradient_checkpointing": True, "max_steps": 4},
    "smoothing_and_drop_last": {"label_smoothing_factor": 0.2, "dataloader_drop_last": True, "max_steps": 7},
    "noise_and_clipping": {"neftune_noise_alpha": 5.0, "max_grad_norm": 0.05},
    "fraction_of_an_epoch": {"num_train_epochs": 2.5, "warmup_steps": 0.3, "lr_scheduler_type": "cosine"},
    "epochs_cut_by_max_steps": {"max_steps": 7, "eval_strategy": "epoch", "logging_strategy": "epoch"},
    "sequential_and_tokens": {"train_sampling_strategy": "sequential", "include_num_input_tokens_seen": "all"},
    "grouped_with_seed": {"train_sampling_strategy": "group_by_length", "data_seed": 3, "max_steps": 5},
    "workers_and_saves": {"dataloader_num_workers": 1, "save_strategy": "steps", "save_steps": 2},
    "means_of_this_process": {"average_tokens_across_devices": False, "eval_on_start": True},
    "no_logs": {"logging_strategy": "no", "eval_strategy": "steps", "eval_steps": 2},
    "full_precision_off": {"bf16": True, "bf16_full_eval": True, "eval_strategy": "epoch"},
    "adafactor_alone": {"optim": "adafactor", "max_grad_norm": 0.0, "lr_scheduler_type": "inverse_sqrt"},
    "sgd_and_decay": {"optim": "sgd", "weight_decay": 0.3, "lr_scheduler_type": "polynomial"},
}
for _name, _changes in TOGETHER.items():
    add(f"accumulated_{_name}", partial(_trained, **_changes))


SCHEDULES: dict[str, tuple[str, dict[str, Any]]] = {
    "stable_cosine": ("warmup_stable_decay", {"num_decay_steps": 5, "decay_type": "cosine", "min_lr_ratio": 0.1}),
    "stable_linear": ("warmup_stable_decay", {"num_decay_steps": 5, "warmup_type": "cosine", "decay_type": "linear"}),
    "stable_1_sqrt": ("warmup_stable_decay", {"num_decay_steps": 5, "decay_type": "1-sqrt"}),
    "half_cosine": ("cosine", {"num_cycles": 1.25}),
    "slow_inverse_sqrt": ("inverse_sqrt", {"timescale": 7}),
    "floor_by_rate": ("cosine_with_min_lr", {"min_lr_rate": 0.2, "num_cycles": 0.7}),
    "floor_by_value": ("cosine_warmup_with_min_lr", {"min_lr": 1e-3, "warmup_lr_rate": 0.3}),
}


def schedule(stage: Any, kind: str, options: dict[str, Any]) -> Any:
    """A schedule with its further settings, over 14 steps that end within an epoch."""
    changes = {"lr_scheduler_type": kind, "lr_scheduler_kwargs": options, "warmup_steps": 3, "max_steps": 14}
    return stage.train(Regression(), points(), learning_rate=0.1, **changes)


for _name, (_kind, _options) in SCHEDULES.items():
    add(f"schedule_{_name}", partial(schedule, kind=_kind, options=_options))


@scenario
def adapters_accumulated(stage: Any) -> Any:
    """LoRA with smoothing, noise, recomputation, an adapter-free evaluation and the best checkpoint at the end."""
    from peft import LoraConfig, get_peft_model

    model = llama()
    torch.manual_seed(1)
    tuned = get_peft_model(model, LoraConfig(r=2, lora_dropout=0.2, target_modules="all-linear", task_type="CAUSAL_LM"))
    best = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}
    changes = {"label_smoothing_factor": 0.1, "gradient_checkpointing": True, "num_train_epochs": 2}
    parts = {"data_collator": pad, "eval_dataset": ragged(7, seed=1)}
    return stage.train(tuned, ragged(), parts, **ACCUMULATED, **best, **changes)


@scenario
def stream_accumulated(stage: Any) -> Any:
    """A stream whose batches divide into steps, with several evaluation sets, one of them a stream."""
    sets = {"rows": ragged(5, seed=1), "stream": Stream(ragged(6, seed=2))}
    changes = {"max_steps": 5, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 4}
    parts = {"data_collator": pad, "eval_dataset": sets}
    return stage.train(llama(), Stream(ragged(24)), parts, eval_strategy="steps", eval_steps=2, **changes)


class Branching(Regression):
    """Leaves a layer out, so that it has no gradient, where a batch's first number is negative."""

    def __init__(self) -> None:
        """A second way through."""
        super().__init__()
        self.other = nn.Linear(4, 8)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        """As `Regression`."""
        hidden = self.hidden(x) if x[0, 0] < 0 else self.hidden(x) + self.other(x)
        logits = self.output(torch.relu(self.norm(hidden))).squeeze(-1)
        return {"logits": logits} if labels is None else {"loss": (logits - labels).pow(2).mean(), "logits": logits}


@scenario
def parameters_that_come_and_go(stage: Any) -> Any:
    """Without gradient in some steps: clipping, decay and the optimizer must leave them alone there."""
    changes = {"per_device_train_batch_size": 2, "weight_decay": 0.2, "max_grad_norm": 0.5}
    return stage.train(Branching(), points(), num_train_epochs=2, **changes)


@scenario
def frozen_later(stage: Any) -> Any:
    """A callback freezes a layer in the middle of training."""
    from transformers import TrainerCallback

    class Freeze(TrainerCallback):  # type: ignore[misc]
        def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            model.hidden.requires_grad_(False)

    return stage.train(Regression(dropout=0.1), points(), {"callbacks": [Freeze()]}, num_train_epochs=3)


class Norms(nn.Module):
    """Norms of several kinds, and names that end as norms do: decay must tell them apart as transformers does."""

    def __init__(self) -> None:
        """Weights come from a fixed seed."""
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(64, 8)
        self.rms = nn.RMSNorm(8)
        self.group = nn.GroupNorm(2, 8)
        self.final_layernorm = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.ones(8))
        self.head = nn.Linear(8, 64)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        """input_ids, labels: (batch, length)."""
        hidden = self.rms(self.embedding(input_ids)) * self.scale
        hidden = self.group(hidden.transpose(1, 2)).transpose(1, 2)
        logits = self.head(self.final_layernorm(hidden))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


@scenario
def decay_by_kind_and_name(stage: Any) -> Any:
    """Strong decay on a module full of norms."""
    return stage.train(Norms(), tokens(), weight_decay=0.9, num_train_epochs=2)


@scenario
def tied_weights_accumulated(stage: Any) -> Any:
    """One tensor in two places: its norm counts once, its decay as well."""
    model = llama(tie_word_embeddings=True)
    return stage.train(model, tokens(), weight_decay=0.2, max_grad_norm=0.1, num_train_epochs=2, **ACCUMULATED)


@scenario
def question_answering(stage: Any) -> Any:
    """Two labels, neither of them called so."""
    from transformers import BertConfig, BertForQuestionAnswering

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = BertForQuestionAnswering(BertConfig(**sizes, vocab_size=64, max_position_embeddings=32))
    rows = [
        {"input_ids": row["input_ids"], "start_positions": int(row["input_ids"][0]) % 8, "end_positions": 7}
        for row in tokens(14)
    ]
    args = stage.arguments(eval_strategy="epoch", num_train_epochs=2)
    trainer = stage.trainer(model, args, train_dataset=rows, eval_dataset=rows[:5])
    record = stage.finish(trainer)
    predicted = trainer.predict(rows[:6])
    return {**record, "predicted": [exact(part) for part in (predicted.predictions, predicted.label_ids)]}


@scenario
def several_labels_at_once(stage: Any) -> Any:
    """Multi-label classification, where smoothing does not apply and is left out."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**sizes, vocab_size=64, num_labels=3, problem_type="multi_label_classification")
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    rows = [{"input_ids": row["input_ids"], "labels": (row["input_ids"][:3] % 2).float()} for row in tokens(14)]
    return stage.train(model, rows, label_smoothing_factor=0.1, num_train_epochs=2)


@scenario
def translation_smoothed(stage: Any) -> Any:
    """An encoder-decoder with smoothing, in bf16, accumulated."""
    from transformers import DataCollatorForSeq2Seq

    rows = [{"input_ids": row["input_ids"], "labels": row["labels"][:5]} for row in tokens()]
    model = t5()
    args = stage.arguments(
        stage.lib.Seq2SeqTrainingArguments, label_smoothing_factor=0.1, bf16=True, num_train_epochs=2, **ACCUMULATED
    )
    parts = {"train_dataset": rows, "data_collator": DataCollatorForSeq2Seq(tokenizer(), model)}
    return stage.finish(stage.trainer(model, args, stage.lib.Seq2SeqTrainer, **parts))


@scenario
def best_of_several_sets(stage: Any) -> Any:
    """The best checkpoint by one of several sets, where more is better, and an early end."""
    stopping = stage.lib.EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=0.05)
    parts = {
        "eval_dataset": {"near": labelled(13, seed=1), "far": labelled(11, seed=2)},
        "compute_metrics": accuracy,
        "callbacks": [stopping],
    }
    changes = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "save_strategy": "steps"}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_far_accuracy", "save_total_limit": 1}
    return stage.train(classifier(), labelled(), parts, num_train_epochs=6, **changes, **best)


@scenario
def trained_evaluated_predicted(stage: Any) -> Any:
    """The end of many scripts, on one trainer; each evaluation under a name of its own."""
    trainer = stage.trainer(
        gpt2(), stage.arguments(num_train_epochs=1), train_dataset=tokens(), eval_dataset=tokens(6, seed=1)
    )
    record = stage.finish(trainer)
    evaluated = trainer.evaluate(tokens(9, seed=2), metric_key_prefix="held_out")
    predicted = trainer.predict(tokens(5, seed=3))
    return {
        **record,
        "evaluated": exact(evaluated),
        "predicted": [exact(part) for part in predicted],
        "history": exact(trainer.state.log_history),
    }


@scenario
def batches_kept_apart(stage: Any) -> Any:
    """`eval_do_concat_batches=False` hands the metric lists, one entry a batch."""

    def metrics(prediction: Any) -> dict[str, float]:
        return {"batches": float(len(prediction.predictions)), "rows": float(len(prediction.label_ids[-1]))}

    parts = {"data_collator": pad, "eval_dataset": ragged(9, seed=1), "compute_metrics": metrics}
    changes = {"eval_do_concat_batches": False, "eval_strategy": "epoch", "per_device_eval_batch_size": 4}
    return stage.train(llama(), ragged(), parts, num_train_epochs=1, **changes)


@scenario
def resumed_within_an_epoch(stage: Any) -> Any:
    """Accumulated, ragged, with a schedule and a short last step; nothing in it draws random numbers within a step."""
    parts = {"train_dataset": ragged(), "data_collator": pad}
    changes = {"save_steps": 2, "save_strategy": "steps", "num_train_epochs": 3, "warmup_steps": 2, **ACCUMULATED}
    stage.trainer(llama(), stage.arguments(**changes), **parts).train()
    trainer = stage.trainer(llama(), stage.arguments(**changes), **parts)
    stage.recorder.trace.clear()
    record = stage.finish(trainer, resume_from_checkpoint=str(stage.folder / "run" / "checkpoint-4"))
    # `train_loss` after a resume covers the whole run in onward and the rest of it in transformers: docs/differences.md
    del record["train_output"]["training_loss"], record["train_output"]["metrics"]
    record["log_history"].pop()
    return record
