"""What is left of a run to which something happens: what the promises say, counted with both libraries.

The resumes are the scenarios of `tests/resume`; those that transformers has no argument for are left out of the count.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

from benchmarks.accidents import STEPS, answer
from benchmarks.peers import Peer, peers
from benchmarks.result import ONWARD, TRANSFORMERS, Figure, Result, Settings

__all__ = ["DEVICES", "answer", "measure"]
DEVICES = ("cpu",)


def measure(settings: Settings) -> list[Result]:
    """A result for each accident."""
    with peers("accidents", [TRANSFORMERS, ONWARD]) as started:
        return [*resumes(started, settings), *others(started, settings)]


def resumes(started: dict[str, Peer], settings: Settings) -> Iterator[Result]:
    """Scenarios that end equal, and what `train_loss` covers."""
    from tests.resume.scenarios import SCENARIOS

    names = list(SCENARIOS)[:: settings.pick(full=1, quick=12, smoke=20)]
    every = settings.effort == "full"
    found = {
        peer: {name: process.ask(what="resumed", name=name, every=every) for name in names}
        for peer, process in started.items()
    }
    asked = [name for name in names if all(answers[name]["asked"] for answers in found.values())]
    equal = {peer: Figure((float(sum(answers[n]["equal"] for n in asked)),)) for peer, answers in found.items()}
    whose = {peer: {n: answers[n]["why"] for n in asked if not answers[n]["equal"]} for peer, answers in found.items()}
    yield Result(
        "accidents", f"resumes that end equal to the bit, of {len(asked)} scenarios", "scenarios", equal,
        lower_is_better=False, target=float(len(asked)), notes={"not equal": whose},
    )  # fmt: skip
    off = {
        peer: Figure((100 * max(answers[n]["train_loss off by"] for n in asked),)) for peer, answers in found.items()
    }
    yield Result("accidents", "train_loss after a resume, off by at most", "%", off, target=0.0)


def others(started: dict[str, Peer], settings: Settings) -> Iterator[Result]:
    """One result for each of the other accidents."""

    def ask(what: str, **more: Any) -> dict[str, dict[str, Any]]:
        return {peer: process.ask(what=what, **more) for peer, process in started.items()}

    def row(title: str, unit: str, values: dict[str, float], target: float, lower: bool = True, **notes: Any) -> Result:
        figures = {peer: Figure((float(value),)) for peer, value in values.items()}
        return Result("accidents", title, unit, figures, lower_is_better=lower, target=target, notes=notes)

    cases = {peer: found["cases"] for peer, found in ask("damaged").items()}
    yield row(
        "newest checkpoint damaged: resumes that end as if it had not been", "%",
        {peer: 100 * sum(found.values()) / len(found) for peer, found in cases.items()}, 100, lower=False, cases=cases,
    )  # fmt: skip
    kills = settings.pick(full=10, quick=2, smoke=1)
    ends = {peer: found["ends"] for peer, found in ask("killed", kills=kills).items()}
    equal = {peer: found.count("equal") for peer, found in ends.items()}
    yield row(f"{kills} times SIGKILL: resumes with equal weights", "runs", equal, kills, lower=False, ends=ends)
    found = ask("out_of_memory")
    title = f"out of memory: optimizer steps taken, wanted are {found[ONWARD]['wanted']}"
    yield row(title, "steps", {peer: a["steps"] for peer, a in found.items()}, found[ONWARD]["wanted"])
    yield row("out of memory: weights off by at most", "absolute", {peer: a["off"] for peer, a in found.items()}, 1e-5)
    found = ask("not_a_number")
    lost, logged = ({peer: a[key] for peer, a in found.items()} for key in ("lost", "logged"))
    title = "one NaN among the labels: weights that are NaN"
    yield row(title, "%", {peer: 100 * share for peer, share in lost.items()}, 0, logged=logged)
    if settings.effort != "quick":  # ranks that hang take a minute
        found = {peer: process.ask(what="told_to_leave", peer=peer) for peer, process in started.items()}
        left = {peer: a["left"] for peer, a in found.items()}
        title = "SIGTERM to two ranks half a second apart: steps to be taken again"
        yield row(title, "steps", {peer: a["again"] for peer, a in found.items()}, 0, left=left)
    if shutil.which("unshare"):
        disks = {peer: process.ask(what="full_disk", peer=peer) for peer, process in started.items()}
        if all(found["steps"] is not None for found in disks.values()):  # mounting may be refused
            steps = {peer: found["steps"] for peer, found in disks.items()}
            title = f"disk full for a while: steps trained with one resume, of {STEPS}"
            yield row(title, "steps", steps, STEPS, lower=False)
