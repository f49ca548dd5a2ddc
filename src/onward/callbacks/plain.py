"""The display for output that no one watches: one line of plain text per log line."""

from __future__ import annotations

from typing import Any

from onward.callbacks.figures import Picture, cells, count, duration


class PlainView:
    """Prints each log line to standard output, flushed, and nothing in between."""

    live = False

    def log(self, picture: Picture, logs: dict[str, Any], max_length: int) -> None:
        """Print a log line."""
        print(line(picture, logs, max_length), flush=True)

    def write(self, text: str) -> None:
        """Print `text`."""
        print(text, flush=True)

    def show(self, picture: Picture) -> None:
        """Nothing is alive here."""

    def close(self) -> None:
        """Nothing is held."""


def line(picture: Picture, logs: dict[str, Any], max_length: int) -> str:
    """A log line as plain text: ``[ 120/1000] epoch 0.48  loss 2.341  lr 4.2e-05  18.3k tok/s  0:23 left``."""
    total = str(picture.max_steps)
    parts = [f"[{picture.step:>{len(total)}}/{total}]"]
    if picture.name != "training":
        parts.append(picture.name)
    if "epoch" in logs:
        parts.append(f"epoch {float(logs['epoch']):.2f}")
    parts += [f"{name} {value}" for name, value in cells(logs, max_length)]
    if "loss" in logs:
        if picture.tokens_per_second is not None and "tokens_per_second" not in logs:
            parts.append(f"{count(picture.tokens_per_second)} tok/s")
        if picture.left is not None and picture.step < picture.max_steps:
            parts.append(f"{duration(picture.left)} left")
    return "  ".join(parts)
