"""Which checkpoint is taken, which is skipped, which is deleted."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoint.conftest import write_checkpoint

from onward.checkpoint import layout, manifest, pin, problems, resolve_checkpoint, store
from onward.checkpoint.store import get_last_checkpoint, list_checkpoints, newest_whole, rotate
from onward.errors import BrokenCheckpoint, NoCheckpoint


def steps(folder: Path) -> list[int]:
    return [each.step for each in list_checkpoints(folder)]


def test_a_committed_checkpoint_is_whole_and_leaves_nothing_beside_it(run_dir: Path) -> None:
    path = write_checkpoint(run_dir, 3)
    assert problems(path) == []
    assert [each.name for each in run_dir.iterdir()] == ["checkpoint-3"]
    recorded = manifest.read(path)
    assert recorded is not None
    assert recorded.step == 3
    on_disk = {each.name for each in path.iterdir()} - {layout.MANIFEST}
    assert set(recorded.files) == on_disk
    assert recorded.size == sum((path / name).stat().st_size for name in on_disk)


def test_files_added_later_are_no_damage(run_dir: Path) -> None:
    path = write_checkpoint(run_dir, 3)
    (path / "README.md").write_text("a model card")
    assert problems(path) == []


def test_last_checkpoint_orders_by_number_and_ignores_what_is_no_checkpoint(run_dir: Path) -> None:
    assert get_last_checkpoint(run_dir) is None
    for step in (2, 9, 10):
        write_checkpoint(run_dir, step)
    (run_dir / "checkpoint-99").write_text("a file")
    (run_dir / "checkpoint-new").mkdir()
    assert get_last_checkpoint(str(run_dir)) == str(run_dir / "checkpoint-10")
    assert get_last_checkpoint(run_dir / "nowhere") is None


def test_a_later_run_wins_over_a_higher_step_of_an_earlier_run(run_dir: Path) -> None:
    write_checkpoint(run_dir, 500, run="old")
    write_checkpoint(run_dir, 10, run="new")
    assert steps(run_dir) == [500, 10]
    assert resolve_checkpoint(True, run_dir) == run_dir / "checkpoint-10"


def test_a_broken_newest_is_skipped_by_name_file_and_reason(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = write_checkpoint(run_dir, 1), write_checkpoint(run_dir, 2)
    (bad / layout.OPTIMIZER).write_bytes((bad / layout.OPTIMIZER).read_bytes()[:-7])
    with caplog.at_level(logging.WARNING):
        assert resolve_checkpoint(True, run_dir) == good
    assert str(bad) in caplog.text
    assert "optimizer.pt has" in caplog.text
    with pytest.raises(BrokenCheckpoint, match=r"optimizer\.pt has \d+ bytes, expected \d+"):
        resolve_checkpoint(bad, run_dir)


def test_nothing_to_resume_from(run_dir: Path) -> None:
    assert resolve_checkpoint(None, run_dir) is None
    assert resolve_checkpoint(False, run_dir) is None
    with pytest.raises(NoCheckpoint, match="no valid checkpoint in the output directory"):
        resolve_checkpoint(True, run_dir)
    with pytest.raises(NoCheckpoint, match="no valid checkpoint in the output directory"):
        resolve_checkpoint(True, run_dir / "nowhere")
    with pytest.raises(NoCheckpoint, match="no such folder"):
        resolve_checkpoint(str(run_dir / "nowhere"), run_dir)
    write_checkpoint(run_dir, 4)
    with pytest.raises(NoCheckpoint, match="It holds checkpoint-4"):
        resolve_checkpoint(str(run_dir), run_dir)


def test_all_broken_is_an_error_that_lists_them(run_dir: Path) -> None:
    for step in (1, 2):
        (write_checkpoint(run_dir, step) / layout.WEIGHTS).unlink()
    with pytest.raises(BrokenCheckpoint, match=r"(?s)none of the 2 .*checkpoint-2 .*checkpoint-1 "):
        resolve_checkpoint(True, run_dir)


def test_a_checkpoint_of_transformers_passes_on_its_structure(run_dir: Path) -> None:
    path = write_checkpoint(run_dir, 5, commit=False)
    assert problems(path) == []
    assert resolve_checkpoint(True, run_dir) == path


@pytest.mark.parametrize(
    "name", [layout.WEIGHTS, layout.OPTIMIZER, layout.SCHEDULER, layout.TRAINER_STATE, "rng_state.pth"]
)
@pytest.mark.parametrize("damage", ["cut", "empty"])
def test_structure_alone_finds_cut_and_empty_files(run_dir: Path, name: str, damage: str) -> None:
    file = write_checkpoint(run_dir, 5, commit=False) / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2 if damage == "cut" else 0])
    assert any(name in line for line in problems(file.parent))


def swap_halves(data: bytes) -> bytes:
    half = len(data) // 2
    return data[half : 2 * half] + data[:half] + data[2 * half :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "first bit": lambda data: bytes([data[0] ^ 128]) + data[1:],
    "last bit": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "zeros": lambda data: data[:100] + bytes(200) + data[300:],
    "swapped": swap_halves,
    "shifted": lambda data: data[-4:] + data[:-4],
    "two signs": lambda data: data[:400] + bytes([data[400] ^ 128, *data[401:440], data[440] ^ 128]) + data[441:],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("format_", [1, 2])
def test_damage_that_keeps_the_size_is_found(run_dir: Path, damage: str, format_: int) -> None:
    path = write_checkpoint(run_dir, 5)
    if format_ == 1:
        as_format_1(path)
    assert problems(path) == []
    file = path / layout.OPTIMIZER
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    assert problems(path) == ["optimizer.pt has the right size but its content was altered (hash differs)"]


def as_format_1(path: Path) -> None:
    """Give a checkpoint the manifest that it would have got from versions that wrote SHA-256."""
    body = json.loads((path / layout.MANIFEST).read_text())
    del body["self"], body["algorithm"]
    body["format"] = 1
    body["files"] = {
        name: {"size": record["size"], "sha256": hashlib.sha256((path / name).read_bytes()).hexdigest()}
        for name, record in body["files"].items()
    }
    write_manifest(path, body)


def write_manifest(path: Path, body: dict[str, Any]) -> None:
    body["self"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (path / layout.MANIFEST).write_text(json.dumps(body))


def test_digests_by_an_unknown_algorithm_are_no_damage_but_cannot_be_checked(run_dir: Path) -> None:
    path = write_checkpoint(run_dir, 5)
    body = json.loads((path / layout.MANIFEST).read_text())
    del body["self"]
    write_manifest(path, body | {"algorithm": "md7"})
    assert problems(path) == ["onward_manifest.json has digests by md7, this version of onward knows xxh3_128, sha256"]


def test_a_lost_manifest_is_not_taken_for_a_checkpoint_of_transformers(run_dir: Path) -> None:
    path = write_checkpoint(run_dir, 5)
    (path / layout.MANIFEST).unlink()
    assert problems(path) == ["onward_manifest.json is missing"]


def test_a_manifest_that_was_edited_is_not_trusted(run_dir: Path) -> None:
    path = write_checkpoint(run_dir, 5)
    body = json.loads((path / layout.MANIFEST).read_text())
    body["step"] = 7
    (path / layout.MANIFEST).write_text(json.dumps(body))
    assert problems(path) == ["onward_manifest.json was altered (its own hash differs)"]
    body["format"] = 99
    (path / layout.MANIFEST).write_text(json.dumps(body))
    assert "format 99" in problems(path)[0]


def test_rotation_keeps_the_newest_by_step_not_by_name(run_dir: Path) -> None:
    for step in (8, 9, 10, 11):
        newest = write_checkpoint(run_dir, step)
    deleted = rotate(run_dir, 2, "run-a", keep=newest)
    assert [each.name for each in deleted] == ["checkpoint-8", "checkpoint-9"]
    assert sorted(each.name for each in run_dir.iterdir()) == ["checkpoint-10", "checkpoint-11"]


@pytest.mark.parametrize("limit", [None, 0, 9])
def test_rotation_without_need_deletes_nothing(run_dir: Path, limit: int | None) -> None:
    newest = [write_checkpoint(run_dir, step) for step in (1, 2)][-1]
    assert rotate(run_dir, limit, "run-a", keep=newest) == []
    assert steps(run_dir) == [1, 2]


def test_rotation_spares_best_and_the_one_just_committed(run_dir: Path) -> None:
    paths = [write_checkpoint(run_dir, step) for step in (1, 2, 3, 4)]
    rotate(run_dir, 1, "run-a", keep=paths[3], best=run_dir / "." / "checkpoint-2")
    assert steps(run_dir) == [2, 4]


def test_rotation_deletes_other_runs_first_whatever_their_steps(run_dir: Path) -> None:
    write_checkpoint(run_dir, 500, run="old")
    write_checkpoint(run_dir, 5, run="new")
    newest = write_checkpoint(run_dir, 10, run="new")
    rotate(run_dir, 2, "new", keep=newest)
    assert steps(run_dir) == [5, 10]


def test_rotation_leaves_a_pinned_checkpoint_until_it_is_free(run_dir: Path) -> None:
    paths = [write_checkpoint(run_dir, step) for step in (1, 2, 3)]
    with pin(paths[0]), pin(paths[0]):
        rotate(run_dir, 1, "run-a", keep=paths[2])
        assert steps(run_dir) == [1, 3]
    rotate(run_dir, 1, "run-a", keep=paths[2])
    assert steps(run_dir) == [3]
    assert [each.name for each in run_dir.iterdir()] == ["checkpoint-3"]


def test_a_moved_run_folder_is_still_whole(run_dir: Path, tmp_path: Path) -> None:
    write_checkpoint(run_dir, 1)
    shutil.move(run_dir, tmp_path / "elsewhere")
    path, skipped = newest_whole(tmp_path / "elsewhere")
    assert path == tmp_path / "elsewhere" / "checkpoint-1"
    assert not skipped


def test_sizes_alone_miss_a_flipped_bit_that_the_hash_finds(run_dir: Path) -> None:
    file = write_checkpoint(run_dir, 1) / layout.WEIGHTS
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    assert store.problems(file.parent, deep=False) == []
    assert "content was altered" in store.problems(file.parent)[0]


def test_a_clock_that_was_set_back_does_not_make_the_later_run_the_older(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(run_dir, 500, run="old")
    monkeypatch.setattr(manifest.time, "time", lambda: 1e9)
    write_checkpoint(run_dir, 10, run="new")
    assert steps(run_dir) == [500, 10]
