"""Tokens per second and peak memory of a small Llama-shaped model on sequences of log-normal length.

Padding costs most of a batch here: sequences have 134 tokens on average and up to 512, and the vocabulary is large
beside the model. First every peer, and every option of onward, shows the same losses in fp32; the clock runs in bf16.
"""

from __future__ import annotations

from benchmarks.contest import Contest
from benchmarks.language import Workload
from benchmarks.result import HAND, ONWARD, TRANSFORMERS

DEVICES = ("cpu", "cuda")
FLAT = {HAND: "hand-written, flattened", TRANSFORMERS: TRANSFORMERS}
CONTEST = Contest(
    row="language",
    workload=Workload("llama-4x256", vocabulary=32_000, batch=8, longest=512, mean=140),  # 134 once cut at 512
    more={
        "hand-written, flattened": (HAND, {"flattened": True}),
        "onward, padding_free": (ONWARD, {"options": (("padding_free", True),)}),
        "onward, both": (ONWARD, {"options": (("padding_free", True), ("chunked_loss", True))}),
    },
    best={
        "padding-free": {**FLAT, ONWARD: "onward, padding_free"},
        "padding-free and chunked loss": {**FLAT, ONWARD: "onward, both"},
    },
    speed=2.6,
    gigabytes=1.2,
)
answer, measure = CONTEST.answer, CONTEST.measure
