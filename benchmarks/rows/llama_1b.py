"""A Llama-shaped model of a billion weights on sequences of log-normal length, in bf16, for an accelerator."""

from __future__ import annotations

from benchmarks.contest import Contest
from benchmarks.language import Workload
from benchmarks.rows import language

DEVICES = ("cuda",)
CONTEST = Contest(
    row="llama_1b",
    workload=Workload("llama-1b", vocabulary=32_000, batch=8, longest=2048, mean=560, learning_rate=1e-4),
    more=language.CONTEST.more,
    best=language.CONTEST.best,
)
answer, measure = CONTEST.answer, CONTEST.measure
