"""Settings, models and data drawn at random. Of `COUNT` scenarios the first `QUICK` run in every suite."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

from tests.drawn import drawn

from ..models import Regression, Stream, classifier, gpt2, labelled, llama, pad, points, ragged, tokens
from .evaluating import accuracy
from .registry import add

QUICK, COUNT = 24, 240
LANGUAGE: dict[str, tuple[Any, ...]] = {
    "label_smoothing_factor": (0.0, 0.0, 0.1),
    "neftune_noise_alpha": (None, None, 5.0),
    "gradient_checkpointing": (False, False, True),
    "include_num_input_tokens_seen": ("no", "all", "non_padding"),
    "average_tokens_across_devices": (True, False),
}


def _lm(chance: random.Random, count: int) -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
    parts = {"data_collator": pad, "eval_dataset": ragged(7, seed=1)}
    return llama(attention_dropout=0.1), ragged(count), parts, {k: chance.choice(v) for k, v in LANGUAGE.items()}


def _dense(chance: random.Random, count: int) -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
    several = {"near": tokens(5, seed=1), "far": tokens(4, seed=2)}
    return gpt2(), tokens(count), {"eval_dataset": several if chance.random() < 0.5 else tokens(6, seed=1)}, {}


def _classes(chance: random.Random, count: int) -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
    metrics = {"compute_metrics": accuracy} if chance.random() < 0.5 else {}
    return classifier(), labelled(count), {"eval_dataset": labelled(9, seed=1), **metrics}, {}


def _plain(chance: random.Random, count: int) -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
    shape = chance.choice(("dict", "tuple"))
    return Regression(shape, dropout=0.2), points(count), {"eval_dataset": points(5, seed=1)}, {}


def _any(stage: Any, seed: int) -> Any:
    chance = random.Random(seed)
    settings = drawn(chance)
    model, data, parts, more = chance.choice((_lm, _dense, _classes, _plain))(chance, chance.choice((8, 17, 33)))
    if isinstance(parts["eval_dataset"], dict) and "metric_for_best_model" in settings:
        settings["metric_for_best_model"] = "eval_far_loss"
    if chance.random() < 0.2:
        # Streams end in steps as full as any other, and read all: docs/differences.md says what is otherwise.
        settings |= {"max_steps": 9, "gradient_accumulation_steps": 1, "dataloader_drop_last": False}
        settings.pop("train_sampling_strategy", None)
        data = Stream(data)
    return stage.train(model, data, parts, **settings, **more)


for _seed in range(COUNT):
    add(f"drawn_{_seed:03}", partial(_any, seed=_seed))
