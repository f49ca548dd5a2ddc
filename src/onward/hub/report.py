"""The words at the end of a run: what was pushed, what was not and why, and how to push it now."""

from __future__ import annotations

import shlex
from pathlib import Path

from onward.hub.contents import NOT_THE_MODEL, REMOVAL, STATE_FILES
from onward.hub.place import HubPlace, Outcome


def report(outcomes: list[Outcome], place: HubPlace) -> tuple[str, bool]:
    """Return the text, and whether the newest state of the run is on the Hub."""
    pushed = [outcome for outcome in outcomes if outcome.status == "pushed"]
    complete = bool(outcomes) and outcomes[-1].status == "pushed"
    lines = [f"Hub: {len(pushed)} of {len(outcomes)} pushes to {place.title} arrived."]
    if pushed:
        lines.append(f"  pushed: {', '.join(outcome.name for outcome in pushed)}; the last one is {pushed[-1].url}")
    for outcome in outcomes:
        if outcome.status == "replaced":
            lines.append(f"  skipped: {outcome.name}, {outcome.reason}")
        elif outcome.status == "failed":
            tries = f" after {outcome.attempts} tries" if outcome.attempts > 1 else ""
            lines.append(f"  not pushed: {outcome.name}{tries}: {outcome.reason}")
    if not complete and outcomes:
        lines.append(f"  to push {outcomes[-1].name} now: {how_to_push(outcomes[-1], place)}")
    return "\n".join(lines), complete


def how_to_push(outcome: Outcome, place: HubPlace) -> str:
    """The shell command that does by hand what the push would have done."""
    if outcome.name.startswith(REMOVAL):
        branch = [] if place.revision is None else ["--revision", place.revision]
        return shlex.join(["hf", "repos", "delete-files", place.repo, f"{outcome.target}/*", *branch])
    if not Path(outcome.source).is_dir():
        return f"nothing to do it with, {outcome.source} is gone; call trainer.push_to_hub()"
    words = ["hf", "upload", place.repo, outcome.source, outcome.target or "."]
    if place.revision is not None:
        words += ["--revision", place.revision]
    if not outcome.target:
        is_model = outcome.name == "the model"
        for pattern in NOT_THE_MODEL if is_model else STATE_FILES:
            words += ["--exclude", pattern]
    return shlex.join(words)
