"""Saving through the real trainer: which way is taken, what lands on disk, what happens when it fails."""

from __future__ import annotations

import logging
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoint.saver import Through, arguments, steps, trainer
from tests.tiny import tiny_llama, token_data

from onward import Trainer, TrainerCallback
from onward.checkpoint import layout, manifest, problems, snapshot
from onward.checkpoint.store import list_checkpoints
from onward.errors import Preempted, SaveFailed
from onward.loop.listening import hooks_are_overridden, saves_are_listened_to

MANIFEST_AND_TIME = {layout.MANIFEST}


class Listener(TrainerCallback):
    """Looks at what is on disk when `on_save` comes, and leaves a file there."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, list[str]]] = []

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.seen.append((state.global_step, problems(folder)))
        (folder / "note.txt").write_text("mine")


def test_both_ways_write_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = []
    for name, cls in (("beside", Trainer), ("through", Through)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        torch.manual_seed(0)
        trainer(cls).train()
        found = [each for each in sorted(Path("run").rglob("*")) if each.is_file() and each.parent.name != "run"]
        contents.append({str(each): each.read_bytes() for each in found})
    assert contents[0].keys() == contents[1].keys()
    assert {Path(name).name for name in contents[0]} >= {layout.WEIGHTS, layout.OPTIMIZER, layout.TRAINER_STATE}
    for name in contents[0]:
        if Path(name).name in (layout.MANIFEST, layout.RUN_RECORD):
            continue  # they hold the time and the run's id
        assert contents[0][name] == contents[1][name], name


def test_the_loop_does_not_wait_for_the_writer() -> None:
    made = trainer()
    busy = []

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            busy.append(made._desk().writer._thread is not None)

    made.add_callback(Watch())
    made.train()
    assert busy == [False, True, True, True]
    assert steps() == [1, 2, 3, 4]
    assert made._desk().writer.buffers.size == 0


@pytest.mark.parametrize("way", ["subclass", "instance"])
def test_overridden_hooks_are_called_and_what_they_write_is_in_the_manifest(way: str) -> None:
    calls: list[str] = []

    class Sub(Trainer):
        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            calls.append(str(output_dir))
            super()._save(output_dir, state_dict)
            Path(str(output_dir), "extra.txt").write_text("x")

    made = trainer(Sub if way == "subclass" else Trainer)
    if way == "instance":
        original = made.save_model

        def patched(output_dir: str | None = None, _internal_call: bool = False) -> None:
            calls.append(str(output_dir))
            original(output_dir, _internal_call)
            Path(str(output_dir), "extra.txt").write_text("x")

        made.save_model = patched  # type: ignore[method-assign]
    made.train()
    assert [Path(each).name for each in calls] == [layout.name_of(step) for step in (1, 2, 3, 4)]
    recorded = manifest.read(Path("run/checkpoint-2"))
    assert recorded is not None
    assert "extra.txt" in recorded.files


def test_hook_order_is_that_of_transformers() -> None:
    calls = []
    names = ("save_model", "_save", "_save_optimizer_and_scheduler", "_save_scaler", "_save_rng_state")

    def logged(name: str) -> Any:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return getattr(Trainer, name)(self, *args, **kwargs)

        return method

    trainer(type("Logged", (Trainer,), {name: logged(name) for name in names}), max_steps=1).train()
    assert calls == list(names)


def test_a_listener_finds_the_checkpoint_complete_and_may_write_into_it() -> None:
    listener = Listener()
    trainer(callbacks=[listener]).train()
    assert listener.seen == [(step, []) for step in (1, 2, 3, 4)]
    assert problems("run/checkpoint-4") == []


def test_who_is_noticed() -> None:
    class Sub(Trainer):
        def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None: ...

    assert hooks_are_overridden(trainer()) == []
    assert hooks_are_overridden(trainer(Sub)) == ["save_model"]
    assert saves_are_listened_to(trainer().callback_handler.callbacks) == []
    assert saves_are_listened_to([Listener()]) == ["Listener"]


def test_integrations_of_transformers_that_upload_no_models_do_not_count() -> None:
    from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

    quiet = object.__new__(WandbCallback)
    quiet._log_model = "false"
    loud = object.__new__(WandbCallback)
    loud._log_model = "checkpoint"
    trackio = object.__new__(TrackioCallback)
    board = object.__new__(TensorBoardCallback)
    assert saves_are_listened_to([quiet, trackio, board]) == []
    assert saves_are_listened_to([loud]) == ["WandbCallback"]


def test_a_pretrained_model_with_its_tokenizer_saves_beside_the_loop() -> None:
    made = Trainer(model=tiny_llama(), args=arguments(max_steps=2, max_shard_size="20KB"), train_dataset=token_data(8))
    made.train()
    assert problems("run/checkpoint-2") == []
    assert Path("run/checkpoint-2", layout.WEIGHTS_INDEX).exists()
    assert Path("run/checkpoint-2/config.json").exists()
    restored = type(made.model).from_pretrained("run/checkpoint-2")
    for (name, a), (_, b) in zip(made.model.state_dict().items(), restored.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_short_host_memory_means_a_synchronous_save(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(snapshot, "available_memory", lambda: 1)
    trainer().train()
    assert steps() == [1, 2, 3, 4]
    assert caplog.text.count("saved synchronously: a copy of the training state takes") == 1


def test_only_the_model_when_asked() -> None:
    trainer(save_only_model=True, max_steps=1).train()
    names = {each.name for each in Path("run/checkpoint-1").iterdir()}
    assert not names & {layout.OPTIMIZER, layout.SCHEDULER, "rng_state.pth"}
    assert problems("run/checkpoint-1") == []


class BlockFolder(TrainerCallback):
    """Puts a file where the run folder is, for some steps: every save then fails as on a dead mount."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.first:
            os.rename("run", "aside")
            Path("run").write_text("in the way")
        if state.global_step == self.last:
            Path("run").unlink()
            os.rename("aside", "run")


@pytest.mark.parametrize("cls", [Trainer, Through])
def test_a_failed_save_warns_and_training_goes_on(cls: type[Trainer], caplog: pytest.LogCaptureFixture) -> None:
    # The file in the way must not meet a save in flight, so the loop is made to wait before it appears.
    made = trainer(cls, max_steps=5, metrics_file=False)
    block = BlockFolder(2, 4)
    block.on_step_begin = lambda *args, **kwargs: made._desk().writer.wait()  # type: ignore[method-assign]
    made.add_callback(block)
    output = made.train()
    assert output.global_step == 5
    assert steps() == [1, 4, 5]
    assert all(problems(each.path) == [] for each in list_checkpoints("run"))
    assert "training goes on" in caplog.text
    assert "failure 2 in a row, 3 end the training" in caplog.text


@pytest.mark.parametrize("cls", [Trainer, Through])
def test_too_many_failures_in_a_row_end_training(cls: type[Trainer]) -> None:
    made = trainer(cls, max_steps=6, metrics_file=False)
    block = BlockFolder(2, 99)
    block.on_step_begin = lambda *args, **kwargs: made._desk().writer.wait()  # type: ignore[method-assign]
    made.add_callback(block)
    with pytest.raises(SaveFailed, match=r"3 checkpoints in a row .*max_failed_saves=3"):
        made.train()
    assert [each.step for each in list_checkpoints("aside")] == [1]


class Unblock(logging.Handler):
    """Takes the file out of the way as soon as a failed save is reported."""

    def emit(self, record: logging.LogRecord) -> None:
        if "training goes on" in record.msg and Path("aside").exists():
            Path("run").unlink()
            os.rename("aside", "run")


@pytest.fixture
def unblock() -> Iterator[None]:
    handler = Unblock()
    logging.getLogger("onward").addHandler(handler)
    yield
    logging.getLogger("onward").removeHandler(handler)


class Told(BlockFolder):
    """Blocks the run folder, and is told to leave in the same step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, **kwargs)
        if state.global_step == self.first:
            os.kill(os.getpid(), signal.SIGTERM)


def blocked(cls: type[Trainer], block: BlockFolder, **settings: Any) -> Trainer:
    made = trainer(cls, metrics_file=False, **settings)
    block.on_step_begin = lambda *args, **kwargs: made._desk().writer.wait()  # type: ignore[method-assign]
    made.add_callback(block)
    return made


@pytest.mark.parametrize("cls", [Trainer, Through])
def test_a_last_save_that_failed_is_tried_again_at_the_end(cls: type[Trainer], unblock: None) -> None:
    blocked(cls, BlockFolder(4, 99)).train()
    assert steps() == [1, 2, 3, 4]


@pytest.mark.parametrize("cls", [Trainer, Through])
@pytest.mark.parametrize("save_steps", [1, 100])
def test_a_save_that_fails_on_leaving_is_tried_again(
    cls: type[Trainer], save_steps: int, unblock: None, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Preempted):
        blocked(cls, Told(2, 99), save_steps=save_steps).train()
    assert steps()[-1] == 2
    assert "Left at step 2, because SIGTERM was received. The run is saved" in caplog.text


@pytest.mark.parametrize("cls", [Trainer, Through])
def test_leaving_without_having_saved_is_said(cls: type[Trainer], caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Preempted):
        blocked(cls, Told(2, 99), max_failed_saves=9).train()
    assert "This step could NOT be saved" in caplog.text
    assert "The run is saved" not in caplog.text


def test_a_signal_during_a_save_leaves_behind_it() -> None:
    class Signalled(Trainer):
        def _save_scaler(self, output_dir: str) -> None:
            super()._save_scaler(output_dir)
            if self.state.global_step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted):
        trainer(Signalled).train()
    assert steps() == [1, 2]
    assert problems("run/checkpoint-2") == []


def test_a_signal_during_the_last_save_waits_for_it() -> None:
    made = trainer()
    flush = made._flush_saves

    def flush_and_hear(collective: bool = True) -> None:
        if collective and made.state.global_step == 4 and made._desk().writer.busy:
            os.kill(os.getpid(), signal.SIGTERM)
        flush(collective)

    made._flush_saves = flush_and_hear  # type: ignore[method-assign]
    with pytest.raises(Preempted):
        made.train()
    assert steps() == [1, 2, 3, 4]
    assert problems("run/checkpoint-4") == []


def test_on_save_does_not_fire_for_a_failed_save() -> None:
    listener = Listener()
    trainer(callbacks=[BlockFolder(2, 3), listener], metrics_file=False).train()
    assert [step for step, _ in listener.seen] == [1, 3, 4]


def test_a_bug_in_a_hook_is_raised_and_leaves_no_staging_folder() -> None:
    class Sub(Trainer):
        def _save_rng_state(self, output_dir: str) -> None:
            raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        trainer(Sub).train()
    assert steps() == []
    assert not list(Path("run").glob(".*"))


def test_a_vanished_run_folder_is_made_again() -> None:
    class Remove(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                made._desk().writer.wait()
                shutil.rmtree("run")

    made = trainer(callbacks=[Remove()], metrics_file=False)
    made.train()
    assert steps() == [3, 4]
