from __future__ import annotations

from pathlib import Path

import pytest

from onward.hub.contents import checkpoint_upload, message_of, model_upload
from tests.hub.folders import checkpoint

MODEL = {"config.json", "model.safetensors", "training_args.bin"}
STATE = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "onward_state.json"}
STATE |= {"onward_manifest.json"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = checkpoint(tmp_path, 5)
    (folder / "README.md").write_text("the form that PEFT leaves in every folder")
    (tmp_path / "README.md").write_text("card")
    (tmp_path / "config.json").write_text("of an older save")
    (tmp_path / "model.safetensors").write_text("of an older save")
    (tmp_path / "runs" / "today").mkdir(parents=True)
    (tmp_path / "runs" / "today" / "events").write_text("log")
    (tmp_path / ".onward-pins").mkdir()
    (tmp_path / ".onward-pins" / "checkpoint-5.x").touch()
    (tmp_path / "_private.txt").touch()
    checkpoint(tmp_path / "a-trial", 5)
    return tmp_path


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
def test_what_each_strategy_pushes(run: Path, strategy: str) -> None:
    upload = checkpoint_upload(str(run / "checkpoint-5"), str(run), strategy, "message")
    target = {"every_save": "", "checkpoint": "last-checkpoint", "all_checkpoints": "checkpoint-5"}[strategy]
    whole = {f"{target}/{name}" for name in MODEL | STATE | {"README.md"}} if target else set()
    assert {entry.path for entry in upload.files} == MODEL | {"README.md", "runs/today/events"} | whole
    assert upload.target == target
    sources = {entry.path: Path(entry.local).parent.name for entry in upload.files}
    assert sources["model.safetensors"] == "checkpoint-5", "the weights must be those of the checkpoint"
    assert sources["README.md"] == run.name, "the card of the output folder is the one that somebody wrote"
    assert {entry.path for entry in upload.files if entry.volatile} == {"README.md", "runs/today/events"}


def test_the_final_model_is_the_output_folder_without_its_checkpoints(run: Path) -> None:
    upload = model_upload(str(run), "message")
    assert {entry.path for entry in upload.files} == {
        "README.md", "config.json", "model.safetensors", "runs/today/events",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("strategy", "text"),
    [("steps", "Training in progress, step 5"), ("best", "Training in progress, step 5"),
     ("epoch", "Training in progress, epoch 2")],
)  # fmt: skip
def test_commit_messages_are_those_of_transformers(strategy: str, text: str) -> None:
    assert message_of("out/checkpoint-5", strategy, 2.0) == text
