"""The table in the terminal, the JSON file and the plot.

python -m benchmarks.report [results/cpu.json] prints the table for a document from a file of results.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import sys
import textwrap
from pathlib import Path
from typing import Any

from benchmarks.result import HAND, LIGHTNING, ONWARD, TRANSFORMERS, Figure, Result, Settings

PEERS = (HAND, TRANSFORMERS, LIGHTNING, ONWARD)
COLORS = {HAND: "#9aa0a6", TRANSFORMERS: "#e8b04b", LIGHTNING: "#8f6bb5", ONWARD: "#2b7a78"}
TABLES = {"same": "same settings", "best": "best settings"}
PACKAGES = ("torch", "transformers", "accelerate", "lightning", "onward")


def environment(settings: Settings) -> dict[str, Any]:
    """What a reader needs to judge or repeat the figures."""
    import torch

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    chip = torch.cuda.get_device_name() if settings.device == "cuda" else processor()
    return {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": settings.device,
        "chip": chip,
        "cores": os.cpu_count(),
        "effort": settings.effort,
        "python": platform.python_version(),
        "versions": versions,
    }


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        return names[0] if names else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def cell(figure: Figure | None) -> str:
    """Median and spread."""
    if figure is None:
        return "·"
    low, high = figure.spread
    return f"{number(figure.median)}  [dim]{number(low)} to {number(high)}[/dim]"


def ratio(result: Result) -> str:
    """How many times better onward is than transformers."""
    ours, theirs = result.figures.get(ONWARD), result.figures.get(TRANSFORMERS)
    if ours is None or theirs is None:
        return "·"
    over, under = (theirs.median, ours.median) if result.lower_is_better else (ours.median, theirs.median)
    return f"{over / under:.1f}x" if under > 0 and over > 0 else "·"


def show(results: list[Result]) -> None:
    """Print one table for the same settings and one for the best ones."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if os.isatty(1) else 150)
    for table, name in TABLES.items():
        rows = [result for result in results if result.table == table]
        if not rows:
            continue
        grid = Table(title=f"{name} (median, quartiles)")
        for heading in ("row", "unit", *PEERS, "onward vs transformers", "target"):
            grid.add_column(heading, justify="left" if heading in ("row", "unit") else "right")
        for result in rows:
            sign = "≤" if result.lower_is_better else "≥"
            met = {True: " [green]met[/green]", False: " [red]missed[/red]", None: ""}[result.meets_target]
            target = "" if result.target is None else f"{sign} {number(result.target)}{met}"
            if result.ratio_target is not None:
                target = f"{sign} {number(result.ratio_target)} x transformers{met}"
            cells = [cell(result.figures.get(peer)) for peer in PEERS]
            grid.add_row(result.title, result.unit, *cells, ratio(result), target)
        console.print(grid)
    for result in results:
        if result.checked:
            console.print(f"[dim]{result.title}: {result.checked}[/dim]")


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows of a results file as a table for a document: medians, and how onward compares."""
    lines = ["| | unit | " + " | ".join(PEERS) + " | target |", "|---|---" + "|--:" * len(PEERS) + "|---|"]
    for row in rows:
        medians = [row["figures"][peer]["median"] if peer in row["figures"] else None for peer in PEERS]
        cells = ["" if median is None else number(median) for median in medians]
        sign = "≤" if row["lower_is_better"] else "≥"
        limit = "" if row["target"] is None else f"{sign} {number(row['target'])}"
        if row["ratio_target"] is not None:
            limit = f"{sign} {number(row['ratio_target'])} x transformers"
        verdict = {True: ": met", False: ": missed", None: ""}[row["meets_target"]]
        title = row["title"] if row["table"] == "same" else f"{row['title']} *(best settings)*"
        lines.append(f"| {title} | {row['unit']} | {' | '.join(cells)} | {limit}{verdict} |")
    found = sorted({_machine(row["environment"]) for row in rows})
    return "\n".join([*lines, "", *found])


def _machine(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"Medians, measured on {found['chip']}, {found['cores']} cores, Python {found['python']}, {versions}."


def write(results: list[Result], settings: Settings, folder: Path) -> list[Path]:
    """Write `DEVICE.json`, `DEVICE.png` and `DEVICE.svg` into `folder`; rows not measured now keep their figures."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{settings.device}.json"
    found = environment(settings)
    rows = {}
    if path.exists():
        rows = {key(row): row for row in json.loads(path.read_text())["rows"]}
    rows.update({key(row): {**row, "environment": found} for row in (result.as_dict() for result in results)})
    path.write_text(json.dumps({"rows": list(rows.values())}, indent=1) + "\n")
    return [path, *plot(list(rows.values()), folder / settings.device)]


def key(row: dict[str, Any]) -> str:
    """What identifies a row among all results."""
    return f"{row['row']}/{row['table']}/{row['title']}"


def plot(rows: list[dict[str, Any]], stem: Path) -> list[Path]:
    """One small bar chart per row, as PNG and SVG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    columns = min(3, len(rows))
    lines = -(-len(rows) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(4.4 * columns, 2.6 * lines), squeeze=False)
    for axis in axes.flat[len(rows) :]:
        axis.remove()
    for axis, row in zip(axes.flat, rows, strict=False):
        draw(axis, row)
    figure.tight_layout()
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    for path in paths:
        figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
    return paths


def draw(axis: Any, row: dict[str, Any]) -> None:
    """Bars with medians and quartiles, and the target as a line."""
    peers = [peer for peer in PEERS if peer in row["figures"]]
    for at, peer in enumerate(peers):
        found = row["figures"][peer]
        low, high = found["spread"]
        middle = found["median"]
        error = [[max(0.0, middle - low)], [max(0.0, high - middle)]]
        axis.barh(at, middle, color=COLORS[peer], xerr=error, error_kw={"lw": 1, "alpha": 0.6})
        axis.annotate(number(middle), (max(middle, high, 0), at), (4, 0), textcoords="offset points", va="center")
    target = row["target"]
    if row["ratio_target"] is not None and TRANSFORMERS in row["figures"]:
        target = row["ratio_target"] * row["figures"][TRANSFORMERS]["median"]
    if target is not None:
        axis.axvline(target, color="black", lw=0.8, ls=":")
    axis.set_yticks(range(len(peers)), peers)
    axis.invert_yaxis()
    axis.margins(x=0.2)
    axis.spines[["top", "right"]].set_visible(False)
    better = "lower is better" if row["lower_is_better"] else "higher is better"
    better += ", dotted: target" if target is not None else ""
    title = textwrap.fill(row["title"], 44)
    axis.set_title(f"{title}\n{row['unit']}, {better}", fontsize=9, loc="left", x=-0.3)


if __name__ == "__main__":
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results" / "cpu.json"
    print(markdown(json.loads(source.read_text())["rows"]))
