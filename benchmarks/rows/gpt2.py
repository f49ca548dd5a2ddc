"""GPT-2 with 124 million weights at 1024 tokens, in bf16, for an accelerator: no padding, so the chip is what counts.

The best public loops for one GPU reach 40 to 46 % of the peak of chips of the H100's class, attention counted; the
share here counts six operations per weight and token, without attention's own.
"""

from __future__ import annotations

from benchmarks.contest import Contest
from benchmarks.language import Workload
from benchmarks.result import HAND, ONWARD, TRANSFORMERS

DEVICES = ("cuda",)
CONTEST = Contest(
    row="gpt2",
    workload=Workload("gpt2", vocabulary=50_304, batch=16, longest=1024, mean=1024, learning_rate=6e-4),
    more={
        "onward, chunked_loss": (ONWARD, {"options": (("chunked_loss", True),)}),
        "onward, compiled": (ONWARD, {"options": (("torch_compile", True),)}),
    },
    best={
        "chunked loss": {HAND: HAND, TRANSFORMERS: TRANSFORMERS, ONWARD: "onward, chunked_loss"},
        "compiled": {HAND: HAND, TRANSFORMERS: TRANSFORMERS, ONWARD: "onward, compiled"},
    },
    mfu=0.40,
)
answer, measure = CONTEST.answer, CONTEST.measure
