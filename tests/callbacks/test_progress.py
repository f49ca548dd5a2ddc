"""The displays: what they show, on a real pseudo-terminal, in a pipe and in a notebook's page."""

from __future__ import annotations

import io
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from onward.callbacks import PrinterCallback, ProgressCallback, figures as fig, progress as progress_module
from onward.callbacks.figures import Pace, Picture
from onward.callbacks.notebook import NotebookView, in_notebook, page
from onward.callbacks.plain import PlainView, line
from onward.callbacks.terminal import frame, row
from onward.state import TrainerControl, TrainerState

ARGS = SimpleNamespace(metric_for_best_model="loss")
CONTROL = TrainerControl()

RUN = """
import sys, time, logging
from types import SimpleNamespace
logging.basicConfig(format="%(message)s")
logging.getLogger("with.the.last.resort").addHandler(logging.lastResort)
from onward.callbacks import ProgressCallback
from onward.state import TrainerControl, TrainerState
args = SimpleNamespace(metric_for_best_model="loss")
state, control, show = TrainerState(max_steps=40, num_train_epochs=2), TrainerControl(), ProgressCallback()
def step(seconds=0.0):
    time.sleep(seconds)
    state.global_step += 1
    state.epoch = state.global_step / 20
    show.on_step_end(args, state, control)
def log(**logs):
    show.on_log(args, state, control, logs=logs)
show.on_train_begin(args, state, control)
"""


def in_terminal(script: str, columns: int = 100) -> tuple[str, int]:
    """Run `RUN` and `script` on a pseudo-terminal; return all that it wrote, and its exit code."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    for name in ("NO_COLOR", "COLUMNS", "LINES"):  # runners set sizes of their own
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-c", RUN + script], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # Linux's end of a terminal that the other side has closed
            break
        if not chunk:
            break
        written += chunk
    os.close(ours)
    return written.decode(), process.wait()


def screen(written: str) -> list[str]:
    """What is left on an endless screen: carriage return, line feed, cursor up, erase line and erase below."""
    lines, x, y = [""], 0, 0
    for match in re.finditer(r"\x1b\[([?0-9;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)", written):
        numbers, command, control, text = match.groups()
        if command == "A":
            y = max(y - int(numbers or 1), 0)
        elif command == "K":
            lines[y] = "" if numbers == "2" else lines[y][:x]
        elif command == "J":
            del lines[y + 1 :]
            lines[y] = lines[y][:x]
        elif control == "\r":
            x = 0
        elif control == "\n":
            y += 1
            lines += [""] * (y + 1 - len(lines))
        elif text:
            lines[y] = lines[y][:x].ljust(x) + text + lines[y][x + len(text) :]
            x += len(text)
    return [text.rstrip() for text in lines if text.strip()]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
class TestTerminal:
    def test_log_lines_stay_above_two_live_lines(self) -> None:
        written, code = in_terminal(
            "for _ in range(20): step(0.01)\n"
            "log(loss=2.5, learning_rate=1e-4, epoch=state.epoch)\n"
            "print('from print'); logging.warning('from logging')\n"
            "print('in two ', end=''); step(0.3); print('parts')\n"
            "for _ in range(19): step()\n"
            "show.on_prediction_step(args, state, control, eval_dataloader=range(3)); time.sleep(2); step()\n"
            "log(eval_loss=1.5, epoch=state.epoch); show.on_evaluate(args, state, control)\n"
            "state.global_step = 40; show.on_train_end(args, state, control); print('after')\n"
        )
        lines = screen(written)
        assert code == 0
        assert re.match(r"20/40  epoch 1\.00  loss 2\.500 +lr 0\.0001000$", lines[0])
        assert lines[1:4] == ["from print", "from logging", "in two parts"]
        assert "eval_loss 1.500" in lines[4]
        assert re.match(r"done ━+  40/40  100%  in 0:0\d$", lines[5])
        assert "loss 2.500" in lines[6]
        assert lines[7:] == ["after"]
        assert "evaluating" in written

    def test_speeds_leave_a_row_that_would_wrap(self) -> None:
        script = (
            "step(0.3); log(eval_loss=1.5, eval_runtime=0.25, eval_samples_per_second=1e6, eval_steps_per_second=1e6)\n"
        )
        assert "eval_steps_per_second" in screen(in_terminal(script, columns=120)[0])[0]
        assert screen(in_terminal(script, columns=70)[0])[0].endswith("eval_runtime 0.2500")

    def test_the_cursor_is_never_left_hidden(self) -> None:
        """Who is killed cannot bring it back."""
        written, code = in_terminal("import os\nfor _ in range(5): step(0.1)\nos.kill(os.getpid(), 9)\n")
        assert code == -9
        assert written.rfind("\x1b[?25h") > written.rfind("\x1b[?25l")
        assert "training" in written

    def test_an_error_is_readable_and_ends_the_display(self) -> None:
        written, code = in_terminal(
            "for _ in range(5): step(0.01)\n"
            "try: 1 / 0\n"
            "except ZeroDivisionError as e: show.on_train_error(args, state, control, error=e)\n"
            "assert type(sys.stdout).__name__ == 'TextIOWrapper' and show.training_bar is None\n"
            "raise SystemExit(7)\n"
        )
        assert code == 7
        lines = screen(written)
        assert re.match(r"failed ━+╸━+  5/40", lines[-2])
        assert lines[-1].startswith("ZeroDivisionError · epoch 0.25/2")

    def test_a_run_that_dies_without_a_word_gives_the_streams_back(self) -> None:
        written, code = in_terminal("for _ in range(5): step(0.1)\nraise RuntimeError('sudden')\n")
        assert code == 1
        assert "RuntimeError: sudden" in screen(written)

    def test_a_forked_worker_writes_above_the_lines_too(self) -> None:
        written, _ = in_terminal(
            "import os\nstep(); step(0.3)\n"
            "pid = os.fork()\n"
            "if not pid: print('from a worker', flush=True); os._exit(0)\n"
            "os.waitpid(pid, 0)\nstep(0.3)\nshow.on_train_end(args, state, control)\n"
        )
        lines = screen(written)
        assert lines[0] == "from a worker"
        assert [text.split()[0] for text in lines[1:]] == ["stopped", "epoch"]

    def test_another_bar_inside_ends_as_one_line(self) -> None:
        written, _ = in_terminal(
            "from tqdm import tqdm\nstep(0.3)\n"
            "for _ in tqdm(range(3), desc='theirs', mininterval=0): time.sleep(0.01)\n"
            "step(0.3); show.on_train_end(args, state, control)\n"
        )
        lines = screen(written)
        assert lines[0].startswith("theirs: 100%")
        assert len(lines) == 3

    def test_steps_draw_at_most_four_times_per_second(self) -> None:
        began = time.monotonic()
        written, _ = in_terminal("for _ in range(3000): step()\nprint(show._picture.steps_per_second)\n")
        drawings = written.count("\r\x1b[2K")
        assert 1 <= drawings / 2 <= 4 * (time.monotonic() - began) + 3

    def test_a_log_in_a_file_keeps_its_lines_while_the_bar_is_on_the_terminal(self, tmp_path: Path) -> None:
        written, _ = in_terminal(
            f"sys.stdout = open({str(tmp_path / 'out')!r}, 'w')\n"
            "show.on_train_end(args, state, control); show.on_train_begin(args, state, control)\n"
            "step(0.3); log(loss=1.5, epoch=0.05); print('print too'); show.on_train_end(args, state, control)\n"
        )
        assert (tmp_path / "out").read_text().startswith("[ 1/40]  epoch 0.05  loss 1.500")
        assert (tmp_path / "out").read_text().endswith("print too\n")
        assert "[ 1/40]" not in written
        assert "stopped" in written


@pytest.mark.parametrize("width", [10, 20, 40, 60, 80, 120, 300])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_live_lines_fit_every_width(width: int, ascii_only: bool) -> None:
    picture = Picture(
        step=123_456, max_steps=1_000_000, epoch=1.5, epochs=3, learning_rate=1e-4, elapsed=3725, left=90061
    )
    picture.losses.extend([3.0, math.nan, 1.0, 2.5])
    picture.tokens_per_second, picture.steps_per_second, picture.memory = 18_300.0, 0.25, "1.2 GB"
    picture.evaluation = (3, 40)
    lines = frame(picture, width, ascii_only)
    console = Console(width=width, file=io.StringIO())
    shown = [text for each in lines for text in console.render_lines(each, pad=False)]
    assert len(shown) == 3
    plain = [each.plain for each in lines]
    assert all(len(text) <= width for text in plain) or width <= 20
    assert not ascii_only or all(text.isascii() for text in plain)
    if width >= 120:
        assert "123,456/1,000,000   12%  1:02:05  1d 1:01:01 left" in plain[0]
        assert "loss 2.500" in plain[1]
        assert "18.3k tok/s" in plain[1]
        assert "4 s/step" in plain[1]
        assert "3/40" in plain[2]


def test_an_evaluation_without_training_or_length_has_a_line_of_its_own() -> None:
    (only,) = frame(Picture(evaluation=(3, None)), 80)
    assert only.plain == "evaluating 3 batches"


def test_a_log_row_shows_text_as_it_is() -> None:
    text = row(Picture(step=1, max_steps=2), {"loss": 0.5, "note": "[bold]x[/bold]\nnext", "total_flos": 9.0}, 10)
    assert text.plain == "1/2  loss 0.5000    note [bold]x[/…"


class TestPlain:
    def run(self, capsys: pytest.CaptureFixture[str], callback: Any, rates: Any = None, **kwargs: Any) -> str:
        rates = rates or {}
        state = TrainerState(max_steps=100, global_step=10, epoch=0.5, **kwargs)
        callback.on_train_begin(ARGS, state, CONTROL)
        for _ in range(3):
            state.global_step += 1
            callback.on_step_end(ARGS, state, CONTROL)
        logs = {"loss": 1.23456, "learning_rate": 5e-5, "epoch": 0.5, "note": "y" * 300}
        callback.on_log(ARGS, state, CONTROL, logs=logs, rates={"tokens_per_second": 18_300.0, **rates})
        callback.on_train_end(ARGS, state, CONTROL)
        assert "note" in logs
        return capsys.readouterr().out

    def test_one_line_per_log_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        out = self.run(capsys, ProgressCallback(max_str_len=12))
        expected = r"\[ 13/100\]  epoch 0\.50  loss 1\.235  lr 5\.000e-05  note y{11}…  18\.3k tok/s  \d:\d\d left\n"
        assert re.fullmatch(expected, out)

    def test_a_skipped_step_does_not_scroll_by_unseen(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "nonfinite_steps 2" in self.run(capsys, ProgressCallback(), rates={"nonfinite_steps": 2})

    def test_other_processes_are_silent(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(capsys, ProgressCallback(), is_world_process_zero=False) == ""
        assert self.run(capsys, PrinterCallback(), is_local_process_zero=False) == ""

    def test_the_printer_prints_the_dictionary(self, capsys: pytest.CaptureFixture[str]) -> None:
        out = self.run(capsys, PrinterCallback())
        assert out.startswith("{'loss': '1.235', 'learning_rate': '5e-05', 'epoch': '0.5', 'note': 'yyy")

    def test_evaluation_outside_of_training_prints_nothing_and_leaves_nothing(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        callback, state = ProgressCallback(), TrainerState()
        for _ in range(3):
            callback.on_prediction_step(ARGS, state, CONTROL, eval_dataloader=range(3))
        callback.on_log(ARGS, state, CONTROL, logs={"eval_loss": 1.0})
        callback.on_evaluate(ARGS, state, CONTROL)
        assert capsys.readouterr().out == ""
        assert callback.prediction_bar is None

    def test_a_dumb_terminal_gets_plain_lines(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: True))
        monkeypatch.setenv("TERM", "dumb")
        assert isinstance(progress_module.open_view(), PlainView)

    def test_a_trial_is_named(self) -> None:
        assert line(Picture(name="trial-3", step=1, max_steps=2), {"loss": 1.5}, 9).startswith("[1/2]  trial-3  loss")


def test_a_second_evaluation_counts_anew_after_one_that_broke_off() -> None:
    callback, state = ProgressCallback(), TrainerState()
    for loader in (range(5), range(7)):
        for _ in range(2):
            callback.on_prediction_step(ARGS, state, CONTROL, eval_dataloader=loader)
        assert callback._picture.evaluation == (2, len(loader))


def test_what_a_quiet_step_costs() -> None:
    """No drawing and no system call in between: fifty steps take less time than one drawing does."""
    callback, state = ProgressCallback(), TrainerState(max_steps=10**6)
    callback.training_bar = PlainView()
    callback._due = math.inf
    calls = 0

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        for _ in range(50):
            callback.on_step_end(ARGS, state, CONTROL)
    finally:
        sys.setprofile(None)
    assert calls <= 50 * 2 + 1, "a step calls on_step_end and looks at a clock, nothing else"


class TestPace:
    def test_the_first_step_does_not_count(self) -> None:
        pace = Pace(10)
        pace.mark(10, 0.0)
        assert pace.left(10, 100, 0.0) is None
        pace.mark(11, 60.0)  # compiled
        pace.mark(21, 65.0)
        assert pace.steps_per_second() == 2.0
        assert pace.left(21, 101, 65.0) == 40.0

    def test_an_evaluation_is_in_the_time_left_but_not_in_the_speed(self) -> None:
        pace = Pace(0)
        pace.mark(1, 0.0)
        pace.mark(11, 5.0)
        pace.forget_recent()  # an evaluation of 15 seconds
        pace.mark(12, 20.0)
        pace.mark(14, 21.0)
        assert pace.steps_per_second() == 2.0
        assert pace.left(14, 27, 21.0) == pytest.approx(21.0)

    def test_old_marks_are_forgotten(self) -> None:
        pace = Pace(0)
        for second in range(100):
            pace.mark(second + 1, float(second))
        assert len(pace._recent) <= Pace.WINDOW + 2


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (fig.number(2.5), "2.500"),
        (fig.number(3.0), "3"),
        (fig.number(4243.2), "4243"),
        (fig.number(18300.4), "18300"),
        (fig.number(4.6249e-05), "4.625e-05"),
        (fig.number(math.nan), "nan"),
        (fig.number(-math.inf), "-inf"),
        (fig.number(1e300), "1e+300"),
        (fig.count(18_300), "18.3k"),
        (fig.count(999), "999"),
        (fig.count(2.5e6), "2.5M"),
        (fig.duration(65), "1:05"),
        (fig.duration(3725), "1:02:05"),
        (fig.duration(90061), "1d 1:01:01"),
        (fig.size(1023 * 1024), "1023 KB"),
        (fig.size(1.5 * 2**30), "1.50 GB"),
        (fig.spark([1, 2, 3]), "▁▅█"),
        (fig.spark([2, 2]), "▁▁"),
        (fig.spark([1]), ""),
        (
            fig.best_in_words(TrainerState(best_metric=1.5, best_global_step=800), "loss"),
            "best eval_loss 1.500 at step 800",
        ),
        (fig.best_in_words(TrainerState(), "loss"), ""),
    ],
)
def test_figures_for_people(shown: str, expected: str) -> None:
    assert shown == expected


def test_memory_is_that_of_this_process() -> None:
    if sys.platform.startswith("linux"):
        assert re.fullmatch(r"[\d.]+ [MG]B", fig.memory())


class TestNotebook:
    def test_the_page_escapes_what_was_logged(self) -> None:
        picture = Picture(step=3, max_steps=9, epoch=1.0, epochs=3, evaluation=(1, 4), memory="1 GB")
        html = page(picture, [{"step": "3", "<b>": "<script>"}, {"step": "4", "loss": "1.5"}])
        assert "<script>" not in html
        assert "&lt;script&gt;" in html
        assert html.count("<progress") == 2
        assert html.count("<th>") == 3

    def test_it_is_chosen_in_a_kernel_and_updates_one_output(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """IPython is not installed here, so its three names that we use are stood in for."""
        assert not in_notebook()
        updates: list[str] = []
        display = ModuleType("IPython.display")
        display.HTML = str  # type: ignore[attr-defined]
        display.display = lambda html, display_id: SimpleNamespace(update=updates.append)  # type: ignore[attr-defined]
        ipython = ModuleType("IPython")
        ipython.get_ipython = type("ZMQInteractiveShell", (), {})  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        monkeypatch.setitem(sys.modules, "IPython.display", display)
        callback, state = ProgressCallback(), TrainerState(max_steps=2, global_step=1)
        callback.on_train_begin(ARGS, state, CONTROL)
        assert isinstance(callback.training_bar, NotebookView)
        callback.on_log(ARGS, state, CONTROL, logs={"loss": 1.5, "epoch": 0.5})
        callback.on_train_end(ARGS, state, CONTROL)
        assert "<td>1.500</td>" in updates[-1]
        assert "stopped" in updates[-1]
