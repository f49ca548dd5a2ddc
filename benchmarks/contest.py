"""All peers on one workload of language modelling, in turns: the rows about speed and memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks import language
from benchmarks.language import Task, Workload
from benchmarks.peers import peers
from benchmarks.result import (
    HAND,
    LIGHTNING,
    ONWARD,
    TRANSFORMERS,
    Figure,
    Result,
    Settings,
    check_losses,
    forth_and_back,
)

EVERYONE = (HAND, TRANSFORMERS, LIGHTNING, ONWARD)
Runs = dict[str, tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Contest:
    """A workload, who trains it how, and what is held against which target."""

    row: str
    workload: Workload
    more: Runs
    """What is run beside every peer with the same settings: peer, and what it does beyond them."""
    best: dict[str, dict[str, str]]
    """Tables of best settings: title → peer → the run that stands for it."""
    speed: float | None = None
    """At least this many times the tokens per second of transformers, in the first table of best settings."""
    gigabytes: float | None = None
    """At most this much memory, in the last one."""
    mfu: float | None = None
    """At least this share of the chip's peak, where it is known."""

    @property
    def runs(self) -> Runs:
        """Everything that is run."""
        return {**{peer: (peer, {}) for peer in EVERYONE}, **self.more}

    def answer(self, name: str, question: dict[str, Any]) -> dict[str, Any]:
        """In the process of run `name`: one round."""
        peer, more = self.runs[name]
        workload = self.workload.shrunk() if question.pop("shrunk") else self.workload
        return language.answer(peer, workload, Task(**question, **more))

    def measure(self, settings: Settings) -> list[Result]:
        """Equal losses in float32 first; then the clock, in bfloat16.

        On a CPU the runs take turns after every step: a shared machine changes its speed within seconds.
        """
        steps = settings.pick(full=4, quick=3, smoke=2)
        rounds = settings.pick(full=10, quick=1, smoke=1)
        # A process for each run, not for each peer: what one run's memory leaves behind weighs on no other.
        with peers(self.row, list(self.runs)) as started:

            def run(order: list[str], **task: Any) -> dict[str, dict[str, Any]]:
                """One run of each, a step at a time."""
                question = {"shrunk": settings.effort == "smoke", "device": settings.device, **task}
                for _ in range(language.turns(settings.device, task["steps"])):
                    answers = {name: started[name].ask(**question) for name in order}
                return answers

            short = settings.pick(full=4, quick=2, smoke=2)
            shown = run(list(self.runs), steps=short, bf16=False, keep_losses=True)
            checked = check_losses({name: answer["losses"] for name, answer in shown.items()}, HAND, 1e-5)
            answers: dict[str, list[dict[str, Any]]] = {name: [] for name in self.runs}
            for at in range(rounds):
                for name, answer in run(forth_and_back(self.runs, at), steps=steps, bf16=True).items():
                    answers[name].append(answer)
        return self.results(answers, checked)

    def results(self, answers: dict[str, list[dict[str, Any]]], checked: str) -> list[Result]:
        """Rows of the tables from what the peers answered."""

        def figures(names: dict[str, str], key: str, unit: float = 1.0) -> dict[str, Figure]:
            """Of the runs that have this figure: some are known on a GPU only."""
            known = {peer: [a[key] for a in answers[name] if a[key] is not None] for peer, name in names.items()}
            return {peer: Figure(tuple(v / unit for v in values)) for peer, values in known.items() if values}

        same = {peer: peer for peer in EVERYONE}
        tables = [("same", "", same), *(("best", f", {title}", names) for title, names in self.best.items())]
        keys = {"tokens/s": "tokens_per_second", "peak bytes": "peak", "bytes before the model": "baseline"}
        keys |= {"reserved bytes": "reserved", "host syncs": "syncs", "share of the chip's peak": "mfu"}
        notes = {
            name: {label: found[name].median for label, key in keys.items() if (found := figures({name: name}, key))}
            for name in answers
        }
        results = []
        for number, (table, title, names) in enumerate(tables):
            first, last = number == 1, number == len(tables) - 1 and number > 0
            speed = Result(
                self.row, f"{self.row}: tokens without pads{title}", "tokens/s",
                figures(names, "tokens_per_second"), table,
                lower_is_better=False, ratio_target=self.speed if first else None, checked=checked,
            )  # fmt: skip
            memory = Result(
                self.row, f"{self.row}: peak memory{title}", "GB", figures(names, "peak", 1e9), table,
                target=self.gigabytes if last else None, notes={"runs": notes} if last else {},
            )  # fmt: skip
            results += [speed, memory]
            if used := figures(names, "mfu", 0.01):
                share = f"{self.row}: share of the chip's peak{title}"
                limit = None if self.mfu is None or not last else self.mfu * 100
                results.append(Result(self.row, share, "%", used, table, lower_is_better=False, target=limit))
        if waits := figures(same, "syncs"):
            title = f"{self.row}: host syncs between two log lines"
            results.append(Result(self.row, title, "syncs", waits, target=0.0))
        return results
