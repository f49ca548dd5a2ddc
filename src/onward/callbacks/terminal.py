"""The display in a terminal: a few live lines at the bottom, log lines scrolling by above them.

Nothing here runs by itself: no thread, no timer. Lines are drawn when the callback says so, a few times per second, so
a display costs what its drawing costs, and a data loader that forks finds no lock held by another thread. The cursor
is never hidden: a run that is killed must leave a terminal that works.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.text import Text

from onward.callbacks.figures import Picture, cells, count, duration, number, spark

_COLOURS = {"": "cyan", "done": "green", "stopped": "yellow", "failed": "red"}


class TerminalView:
    """Live lines on a terminal.

    While it is open, what others print or log appears above the lines instead of through them.
    """

    live = True
    current: TerminalView | None = None
    """The view that has the terminal; a second trainer in the same process prints plain lines above it."""

    def __init__(self, stream: IO[str]) -> None:
        self.console = Console(file=stream)
        self._picture = Picture()
        self._rows: list[Text] = []
        self._detours: list[_Above] = []
        # A log that is piped into a file while the terminal shows the bar must still get into the file.
        self._rows_elsewhere = not _is_terminal(sys.stdout)
        self._live = Live(self, console=self.console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._live.start()
        self.console.show_cursor(True)
        watched = [name for name in ("stdout", "stderr") if _is_terminal(getattr(sys, name))]
        self._detours = [_Above(self, name) for name in watched]
        TerminalView.current = self

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield from frame(self._picture, options.max_width, options.ascii_only)

    @property
    def height(self) -> int:
        """How many live lines there are."""
        return (2 if self._picture.max_steps else 0) + (self._picture.evaluation is not None)

    def log(self, picture: Picture, logs: dict[str, Any], max_length: int) -> None:
        """Keep a log line for the next drawing, which the caller sees to."""
        if self._rows_elsewhere:
            from onward.callbacks.plain import line

            print(line(picture, logs, max_length), flush=True)
        else:
            text = row(picture, logs, max_length)
            if text.cell_len > self.console.width:
                # Speeds are on the live lines and in the files; a row that wraps is hard to read.
                kept = {name: value for name, value in logs.items() if not name.endswith("_per_second")}
                text = row(picture, kept, max_length)
            self._rows.append(text)

    def write(self, text: str) -> None:
        """Print `text`, which may have colours of its own, above the lines and below the rows that are due."""
        self._rows.extend(Text.from_ansi(line) for line in text.split("\n"))
        self._flush_rows()

    def show(self, picture: Picture) -> None:
        """Draw."""
        self._picture = picture
        if not self._flush_rows():
            self._live.refresh()

    def close(self) -> None:
        """Draw a last time, leave the lines where they are and give the terminal back."""
        if TerminalView.current is self:
            TerminalView.current = None
        self._flush_rows()
        for detour in self._detours:
            detour.close_detour()
        self._detours = []
        self._live.stop()

    def _flush_rows(self) -> bool:
        rows, self._rows = self._rows, []
        if rows:
            self.console.print(Text("\n").join(rows))
        return bool(rows)


class _Above:
    """Stands in for a standard stream: whole lines are printed above the live lines.

    Handlers of `logging` hold on to the stream that they found, so those are given the stand-in too.
    """

    def __init__(self, view: TerminalView, name: str) -> None:
        self._view = view
        self._name = name
        self._stream: IO[str] = getattr(sys, name)
        self._owner = os.getpid()
        self._line = ""
        self._handlers = [handler for handler in _stream_handlers() if handler.stream is self._stream]
        for handler in self._handlers:
            handler.setStream(self)
        setattr(sys, name, self)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._stream, attribute)

    def write(self, text: str) -> int:
        *lines, rest = (self._line + text).split("\n")
        # A carriage return starts the line anew: of a progress bar that someone draws, only the last state counts.
        self._line = rest.rpartition("\r")[2]
        if lines:
            shown = [line.rstrip("\r").rpartition("\r")[2] for line in lines]
            if os.getpid() == self._owner:
                self._view.write("\n".join(shown))
            else:
                self._write_from_fork("\n".join(shown))
        return len(text)

    def _write_from_fork(self, text: str) -> None:
        """Write from a forked worker: in place of the live lines, leaving the cursor where their owner expects it."""
        down = max(self._view.height - 1, 0)
        up = f"\x1b[{down}A" if down else ""
        self._stream.write(f"\r{up}\x1b[J{text}\n" + "\n" * down)
        self._stream.flush()

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        """Nothing is flushed: half a line stays here until the rest of it comes."""

    def close_detour(self) -> None:
        """Put the stream back."""
        if self._line:
            self.write("\n")
        self._stream.flush()
        if getattr(sys, self._name) is self:
            setattr(sys, self._name, self._stream)
        for handler in self._handlers:
            if handler.stream is self:
                handler.setStream(self._stream)


def _stream_handlers() -> list[logging.StreamHandler[Any]]:
    loggers = [logging.getLogger(), *logging.root.manager.loggerDict.values()]
    handlers = {handler for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers}
    # Those without a stream of their own ask for the standard one each time, and so find the stand-in by themselves.
    return [handler for handler in handlers if isinstance(handler, logging.StreamHandler) and "stream" in vars(handler)]


def find_terminal() -> IO[str] | None:
    """The standard stream that a person watches (errors before output, as other bars do), if any."""
    if os.environ.get("TERM", "") in ("dumb", "unknown"):
        return None
    return next((stream for stream in (sys.stderr, sys.stdout) if _is_terminal(stream)), None)


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # replaced by something bare, or closed
        return False


def frame(picture: Picture, width: int, ascii_only: bool = False) -> list[Text]:
    """The live lines, at most `width` columns wide."""
    lines = [_bar_line(picture, width, ascii_only), _figures_line(picture, width, ascii_only)]
    if picture.evaluation is not None:
        lines.append(_evaluation_line(picture.evaluation, width, ascii_only))
    return lines if picture.max_steps else lines[2:]


def row(picture: Picture, logs: dict[str, Any], max_length: int) -> Text:
    """One log line for the scrolling part."""
    total = f"{picture.max_steps:,}"
    text = Text()
    text.append(f"{picture.step:>{len(total)},}", style="bold")
    text.append(f"/{total}", style="dim")
    if "epoch" in logs:
        text.append("  epoch ", style="dim")
        text.append(f"{float(logs['epoch']):.2f}")
    for name, value in cells(logs, max_length):
        evaluated = name.startswith("eval_")
        text.append(f"  {name} ", style="green" if evaluated else "dim")
        text.append(f"{value:<8}", style="bold" if name in ("loss", "eval_loss") else "")
    text.rstrip()
    return text


def _bar_line(picture: Picture, width: int, ascii_only: bool) -> Text:
    done = picture.step / picture.max_steps if picture.max_steps else 0.0
    colour = _COLOURS[picture.ending]
    label = Text.assemble((f"{picture.ending or picture.name} ", f"bold {colour}"))
    facts = [
        Text.assemble((f"{picture.step:,}", "bold"), (f"/{picture.max_steps:,}", "dim")),
        Text(f"{done:4.0%}"),
    ]
    if picture.ending:
        facts.append(Text(f"in {duration(picture.elapsed)}"))
    else:
        facts.append(Text(duration(picture.elapsed), style="dim"))
        if picture.left is not None:
            facts.append(Text.assemble((duration(picture.left), "bold"), (" left", "dim")))
    return _with_bar(label, done, facts, width, colour, ascii_only)


def _evaluation_line(evaluation: tuple[int, int | None], width: int, ascii_only: bool) -> Text:
    done, total = evaluation
    label = Text.assemble(("evaluating ", "bold magenta"))
    if total is None:
        return label.append(f"{done:,} batches")
    facts = [Text.assemble((f"{done:,}", "bold"), (f"/{total:,}", "dim")), Text(f"{done / max(total, 1):4.0%}")]
    return _with_bar(label, done / max(total, 1), facts, width, "magenta", ascii_only)


def _with_bar(label: Text, done: float, facts: list[Text], width: int, colour: str, ascii_only: bool) -> Text:
    """A label, a bar over the room that is left, and facts; on a narrow terminal the last facts go first."""
    gap = Text("  ")
    while len(facts) > 1 and label.cell_len + 12 + sum(fact.cell_len + 2 for fact in facts) > width:
        facts = facts[:-1]
    room = width - label.cell_len - sum(fact.cell_len + 2 for fact in facts)
    line = label + bar(done, min(room, 60), colour, ascii_only) if room >= 5 else label
    for fact in facts:
        line = line + gap + fact
    line.no_wrap, line.overflow = True, "crop"
    return line


def bar(done: float, width: int, colour: str, ascii_only: bool = False) -> Text:
    """A bar of `width` columns, filled to the fraction `done` in half columns."""
    halves = round(min(max(done, 0.0), 1.0) * width * 2)
    if ascii_only:
        return Text.assemble(("=" * (halves // 2), colour), ("-" * (width - halves // 2), "dim"))
    text = Text("━" * (halves // 2), style=colour)
    if halves % 2:
        text.append("╸", style=colour)
    return text.append("━" * (width - (halves + 1) // 2), style="bright_black")


def _figures_line(picture: Picture, width: int, ascii_only: bool) -> Text:
    """Epoch, loss and speed; on a narrow terminal the curve goes first, then the last ones."""
    for curve in ("" if ascii_only else spark(picture.losses), ""):
        parts = list(_figures(picture, curve))
        if sum(part.cell_len + 3 for part in parts) <= width:
            break
    while len(parts) > 1 and sum(part.cell_len + 3 for part in parts) > width:
        parts.pop()
    gap = Text.assemble((" | " if ascii_only else " · ", "dim"))
    line = gap.join(parts)
    line.no_wrap, line.overflow = True, "crop"
    return line


def _figures(picture: Picture, curve: str) -> Iterator[Text]:
    if picture.reason:
        yield Text(picture.reason, style="red")
    if picture.epoch is not None:
        yield Text.assemble(("epoch ", "dim"), f"{picture.epoch:.2f}", (f"/{picture.epochs}", "dim"))
    if picture.losses:
        shown = (f" {curve}" if curve else "", "cyan")
        yield Text.assemble(("loss ", "dim"), (number(picture.losses[-1]), "bold"), shown)
    if picture.ending and picture.best:
        yield Text(picture.best)
    if picture.learning_rate is not None and not picture.ending:
        yield Text.assemble(("lr ", "dim"), number(picture.learning_rate))
    if picture.tokens_per_second is not None:
        yield Text.assemble(count(picture.tokens_per_second), (" tok/s", "dim"))
    if picture.steps_per_second is not None:
        yield Text.assemble(*speed(picture.steps_per_second))
    if picture.memory:
        yield Text(picture.memory)


def speed(rate: float) -> tuple[str, tuple[str, str]]:
    """Steps per second, or seconds per step where they are slow."""
    return (f"{rate:.3g}", (" steps/s", "dim")) if rate >= 1 else (f"{1 / rate:.3g}", (" s/step", "dim"))
