"""Measure rows and report them.

python -m benchmarks.run [--device cpu|cuda] [--rows NAME,…] [--quick | --smoke] [--output FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import report
from benchmarks.result import Result, Settings, UnequalLossError
from benchmarks.rows import ROWS, row

FOLDER = Path(__file__).parent / "results"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options; `--help` lists the rows."""
    listing = "\n".join(f"  {name:12} {question}" for name, question in ROWS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        epilog=f"rows:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rows", help="names with commas between them; all that the device can run by default")
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--quick", dest="effort", action="store_const", const="quick", default="full")
    effort.add_argument("--smoke", dest="effort", action="store_const", const="smoke", help="only that it runs")
    parser.add_argument("--output", type=Path, default=FOLDER, help="where JSON and plots go (%(default)s)")
    return parser.parse_args(arguments)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the peers' talk between two progress lines of ours."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; 1 if peers did not train the same, else 0 (targets are reported, not enforced)."""
    options = parse(arguments)
    settings = Settings(options.device, options.effort)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    chosen = [row(name) for name in (options.rows.split(",") if options.rows else ROWS)]
    results: list[Result] = []
    written: list[Path] = []
    failed = 0
    for one in chosen:
        if settings.device not in one.devices and settings.effort != "smoke":  # which is small enough for any
            if options.rows:
                raise SystemExit(f"row {one.name!r} runs on {' or '.join(one.devices)}, not on {settings.device}")
            continue
        start = time.perf_counter()
        print(f"{one.name}: {ROWS[one.name]} …", end=" ", flush=True)
        try:
            with quiet():
                measured = one.measure(settings)
        except UnequalLossError as error:
            failed = 1
            print(f"not measured, the peers do not train the same: {error}")
            continue
        print(f"{time.perf_counter() - start:.0f} s")
        results += measured
        written = report.write(measured, settings, options.output)  # now: a later row that fails takes nothing along
    report.show(results)
    for path in written:
        print(path)
    return failed


if __name__ == "__main__":
    sys.exit(main())
