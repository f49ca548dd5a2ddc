"""Tokens per second and peak memory of a small Llama-shaped model on sequences of log-normal length.

Padding costs most of a batch here: sequences have 134 tokens on average and up to 512, and the vocabulary is large
beside the model. First every peer, and every option of onward, shows the same losses in fp32; the clock runs in bf16.
"""

from __future__ import annotations

from typing import Any

from benchmarks import language
from benchmarks.language import Task, Workload
from benchmarks.peers import Peer, peers
from benchmarks.result import HAND, LIGHTNING, ONWARD, TRANSFORMERS, Figure, Result, Settings, check_losses

DEVICES = ("cpu", "cuda")
WORKLOAD = Workload("llama-4x256", vocabulary=32_000, batch=8, longest=512, mean=140)  # 134 once cut at 512
FREE = (("padding_free", True),)
FREE_AND_CHUNKED = (("padding_free", True), ("chunked_loss", True))

# What is run: peer, and what it does beyond the defaults.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    HAND: (HAND, {}),
    TRANSFORMERS: (TRANSFORMERS, {}),
    LIGHTNING: (LIGHTNING, {}),
    ONWARD: (ONWARD, {}),
    "hand-written, flattened": (HAND, {"flattened": True}),
    "onward, padding_free": (ONWARD, {"options": FREE}),
    "onward, padding_free and chunked_loss": (ONWARD, {"options": FREE_AND_CHUNKED}),
}


def answer(peer: str, question: dict[str, Any]) -> dict[str, Any]:
    """In a peer's process: one round."""
    options = tuple((key, value) for key, value in question.pop("options", ()))
    return language.answer(peer, WORKLOAD, Task(**question, options=options))


def measure(settings: Settings) -> list[Result]:
    """Speed and memory, each with the same settings for all and with the best ones of each."""
    return compare("language", WORKLOAD, settings)


def compare(row: str, workload: Workload, settings: Settings) -> list[Result]:
    """All runs of `row` in turns."""
    steps = settings.pick(full=8, quick=4, smoke=2)
    rounds = settings.pick(full=5, quick=2, smoke=1)
    with peers(row, [HAND, TRANSFORMERS, LIGHTNING, ONWARD]) as started:

        def run(name: str, **task: Any) -> dict[str, Any]:
            peer, more = RUNS[name]
            found: Peer = started[peer]
            return found.ask(device=settings.device, **task, **more)

        short = settings.pick(full=4, quick=3, smoke=2)
        losses = {name: run(name, steps=short, bf16=False, keep_losses=True)["losses"] for name in RUNS}
        checked = check_losses(losses, HAND, 1e-5)
        answers: dict[str, list[dict[str, Any]]] = {name: [] for name in RUNS}
        for at in range(rounds):
            for name in list(RUNS)[:: 1 if at % 2 == 0 else -1]:
                answers[name].append(run(name, steps=steps, bf16=True))
    return results(row, answers, checked)


def results(row: str, answers: dict[str, list[dict[str, Any]]], checked: str) -> list[Result]:
    """Four rows from what the peers answered."""

    def figure(name: str, key: str, unit: float = 1.0) -> Figure:
        return Figure(tuple(found[key] / unit for found in answers[name]))

    same = {peer: peer for peer in (HAND, TRANSFORMERS, LIGHTNING, ONWARD)}
    best = {HAND: "hand-written, flattened", TRANSFORMERS: TRANSFORMERS, ONWARD: "onward, padding_free"}
    least = {**best, ONWARD: "onward, padding_free and chunked_loss"}
    notes = {
        "runs": {
            name: {
                "tokens per second": figure(name, "tokens_per_second").median,
                "peak GB": figure(name, "peak", 1e9).median,
                "GB before the model": figure(name, "baseline", 1e9).median,
            }
            for name in answers
        }
    }
    found = []
    for table, names, target in (("same", same, None), ("best", best, 2.6)):
        figures = {peer: figure(name, "tokens_per_second") for peer, name in names.items()}
        title = "tokens without pads" + (", padding-free" if table == "best" else "")
        found.append(
            Result(row, title, "tokens/s", figures, table, lower_is_better=False, ratio_target=target, checked=checked)
        )
    for table, names, limit in (("same", same, None), ("best", least, 1.2)):
        figures = {peer: figure(name, "peak", 1e9) for peer, name in names.items()}
        title = "peak memory of the process" + (", padding-free and chunked loss" if table == "best" else "")
        found.append(Result(row, title, "GB", figures, table, target=limit, notes=notes if table == "best" else {}))
    return found
