"""The benchmark runs, refuses to compare what is not equal, and says what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.result import (
    HAND,
    ONWARD,
    TRANSFORMERS,
    Figure,
    Result,
    Settings,
    UnequalLossError,
    calm,
    check_losses,
    in_turns,
    over,
)
from benchmarks.rows import ROWS, overhead, row
from benchmarks.run import main

from benchmarks import accidents, report


def result(ours: float, theirs: float = 1.0, **more: object) -> Result:
    figures = {TRANSFORMERS: Figure((theirs, theirs)), ONWARD: Figure((ours, ours))}
    return Result("row", "a title", "ms", figures, **more)  # type: ignore[arg-type]


def test_the_peers_take_turns_and_no_one_is_always_first() -> None:
    calls: list[str] = []
    figures = in_turns({name: lambda name=name: float(len(calls)) or calls.append(name) or 1.0 for name in "ab"}, 1)
    assert list(figures) == ["a", "b"]
    order: list[str] = []
    in_turns({name: lambda name=name: order.append(name) or 0.0 for name in "abc"}, 3)
    assert "".join(order) == "abccbaabc"


def test_median_and_spread() -> None:
    assert Figure((3.0, 1.0, 2.0)).median == 2.0
    assert Figure((3.0, 1.0, 2.0)).spread == (1.0, 3.0)
    low, high = Figure(tuple(float(value) for value in range(1, 12))).spread
    assert (low, high) == (3.0, 9.0)


def test_rounds_in_which_all_were_slow_do_not_count() -> None:
    kept = calm({"a": Figure((1.0, 9.0, 2.0, 3.0)), "b": Figure((5.0, 9.0, 6.0, 1.0))})
    assert {peer: figure.values for peer, figure in kept.items()} == {"a": (1.0, 3.0), "b": (5.0, 1.0)}


def test_the_floor_is_taken_off_round_by_round() -> None:
    assert over(Figure((1.0, 5.0)), Figure((1.5, 5.25))).values == (0.5, 0.25)


def test_a_turn_is_measured_behind_the_steps_that_warm_the_caches() -> None:
    clock = overhead.Clock(accumulation=2)
    slow = 2 * overhead.SETTLE
    calls = [*(0.5 for _ in range(slow)), *(0.001 for _ in range(39)), 0.011]
    clock.times = [(sum(calls[:at]), 2 * sum(calls[:at])) for at in range(len(calls) + 1)]
    assert clock.figures() == pytest.approx({"median": 2.0, "wall": 2.5, "processor": 5.0})


@pytest.mark.parametrize("other", [[1.0, 2.1], [1.0], [1.0, float("nan")]])
def test_unequal_losses_are_not_compared(other: list[float]) -> None:
    with pytest.raises(UnequalLossError):
        check_losses({HAND: [1.0, 2.0], ONWARD: other}, HAND, 1e-5)


def test_equal_losses_are_described() -> None:
    assert check_losses({HAND: [1.0], ONWARD: [1.0]}, HAND, 0).endswith("equal to the bit")
    assert "equal within" in check_losses({HAND: [1.0], ONWARD: [1.000001]}, HAND, 1e-5)


def test_targets() -> None:
    assert result(0.1, target=0.1).meets_target
    assert not result(0.2, target=0.1).meets_target
    assert result(0.2).meets_target is None
    assert result(2.6, ratio_target=2.6, lower_is_better=False).meets_target
    assert not result(2.5, ratio_target=2.6, lower_is_better=False).meets_target


def test_files_keep_rows_that_were_not_measured_again(tmp_path: Path) -> None:
    settings = Settings("cpu", "smoke")
    report.write([result(0.5), result(0.5, table="best")], settings, tmp_path)
    json_file, png, svg = report.write([result(0.25)], settings, tmp_path)
    rows = json.loads(json_file.read_text())["rows"]
    assert [(found["table"], found["figures"][ONWARD]["median"]) for found in rows] == [("same", 0.25), ("best", 0.5)]
    assert rows[0]["environment"]["versions"]["torch"]
    assert png.stat().st_size > 1000
    assert svg.read_text().startswith("<?xml")


def test_a_results_file_becomes_a_table_for_a_document(tmp_path: Path) -> None:
    file, *_ = report.write([result(0.5, target=1.0)], Settings("cpu", "smoke"), tmp_path)
    heading, _, line, _, machine = report.markdown(json.loads(file.read_text())["rows"]).splitlines()
    assert heading.startswith("| | unit | hand-written loop | transformers")
    assert line == "| a title | ms |  | 1 |  | 0.5 | ≤ 1: met |"
    assert "torch" in machine


def test_every_row_can_be_loaded() -> None:
    for name in ROWS:
        assert row(name).devices
    with pytest.raises(SystemExit, match="expected one of"):
        row("speed")


def test_accidents_are_told_from_runs_that_nothing_happened_to() -> None:
    found = {what: accidents.answer(ONWARD, {"what": what}) for what in ("out_of_memory", "not_a_number")}
    assert found["out_of_memory"]["steps"] == found["out_of_memory"]["wanted"] == 16
    assert found["out_of_memory"]["off"] < 1e-5
    assert found["not_a_number"]["lost"] == 0
    assert accidents.answer(ONWARD, {"what": "killed", "kills": 1}) == {"ends": ["equal"]}
    resumed = accidents.answer(ONWARD, {"what": "resumed", "name": "dropout", "every": False})
    assert resumed == {"asked": True, "equal": True, "why": "", "train_loss off by": 0}


def test_another_end_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts as equal is not equal for a run that forgets its generators."""
    monkeypatch.setattr("onward.Trainer._load_rng_state", lambda trainer, checkpoint: None)
    resumed = accidents.answer(ONWARD, {"what": "resumed", "name": "dropout", "every": False})
    assert not resumed["equal"]
    assert "another end" in resumed["why"]


def test_a_row_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--smoke", "--rows", "resume", "--output", str(tmp_path)]) == 0
    assert "stream with state_dict" in capfd.readouterr().out.replace("\n", " ")
    assert (tmp_path / "cpu.png").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_rows_run(tmp_path: Path) -> None:
    assert main(["--smoke", "--output", str(tmp_path)]) == 0
    rows = {found["row"] for found in json.loads((tmp_path / "cpu.json").read_text())["rows"]}
    assert rows == set(ROWS)
