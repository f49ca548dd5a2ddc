"""Whole runs that push to a Hub in every state of health: training ends the same, and says what did not arrive."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import CommitInfo, ModelCard

from onward import Trainer, TrainerCallback, TrainingArguments
from onward.checkpoint.pins import pin
from onward.errors import HubError
from onward.hub.card import BEGIN
from onward.hub.place import HubPlace, Patience
from onward.hub.uploader import Uploader
from tests.hub.folders import HASTY, below, content
from tests.hub.server import GOOD, READER, HubServer
from tests.tiny import RegressionData, TinyRegression, tiny_llama, token_data

Weights = dict[str, torch.Tensor]


def make(out: Path, callbacks: list[TrainerCallback] | None = None, **arguments: Any) -> Trainer:
    """A run of 6 steps with a checkpoint at every second; dropout makes its random state matter."""
    defaults: dict[str, Any] = {
        "max_steps": 6, "save_steps": 2, "logging_steps": 2, "per_device_train_batch_size": 4, "report_to": "none",
        "use_cpu": True, "disable_tqdm": True, "learning_rate": 0.01,
    }  # fmt: skip
    args = TrainingArguments(output_dir=str(out), **(defaults | arguments))
    return Trainer(TinyRegression(dropout=0.2), args, train_dataset=RegressionData(16), callbacks=callbacks)


def pushing(out: Path, strategy: str = "checkpoint", **arguments: Any) -> Trainer:
    callbacks = arguments.pop("callbacks", None)
    named = {"push_to_hub": True, "hub_strategy": strategy, "hub_model_id": "user/model"}
    return make(out, callbacks, **(named | arguments))


def weights(trainer: Trainer) -> Weights:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_same(ours: Weights, theirs: Weights) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def hasty(trainer: Trainer, patience: Patience = HASTY) -> Trainer:
    """Let a trainer give up sooner, so that what makes it give up is seen before the time limit."""
    place = HubPlace(str(trainer.hub_model_id))
    trainer.push_in_progress = Uploader(place, pin, known=True, patience=patience)
    return trainer


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The weights of the run without a Hub."""
    trainer = make(tmp_path_factory.mktemp("alone"))
    trainer.train()
    return weights(trainer)


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_what_a_run_pushes(hub: HubServer, tmp_path: Path, strategy: str) -> None:
    trainer = pushing(tmp_path / "out", strategy, hub_always_push=True, save_steps=3)
    trainer.train()
    steps = [] if strategy == "end" else [3, 6]
    assert hub.storage.messages("user/model")[1:] == [f"Training in progress, step {step}" for step in steps]
    files = hub.storage.files("user/model")
    last = content(tmp_path / "out" / "checkpoint-6")
    assert ("model.safetensors" in files) == bool(steps)
    if steps:
        assert files["model.safetensors"] == last["model.safetensors"]
        assert "optimizer.pt" not in files
    assert below(files, "last-checkpoint") == (last if strategy == "checkpoint" else {})
    assert below(files, "checkpoint-6") == (last if strategy == "all_checkpoints" else {})


@pytest.mark.parametrize("private", [None, True, False])
def test_a_new_repository_is_as_private_as_asked(hub: HubServer, tmp_path: Path, private: bool | None) -> None:
    pushing(tmp_path, "end", hub_private_repo=private, save_strategy="no").train()
    assert hub.storage.repos["user/model"].private is bool(private)


def test_the_token_is_written_nowhere(hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """``training_args.bin`` is a pickle of the arguments, and it is pushed."""
    hub.tokens["hf_secret"] = hub.tokens[GOOD]
    caplog.set_level(logging.DEBUG)
    trainer = pushing(tmp_path / "out", hub_token="hf_secret")
    trainer.train()
    assert trainer.push_to_hub() is not None
    assert trainer.args.hub_token == "hf_secret"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"training_args.bin", "trainer_state.json", "metrics.jsonl", "README.md"} <= {path.name for path in files}
    assert not [path for path in files if b"hf_secret" in path.read_bytes()]
    assert "hf_secret" not in caplog.text


def refused(hub: HubServer) -> None:
    hub.stop()


def expired(hub: HubServer) -> None:
    """The token is refused as soon as the first large file was sent."""
    hub.fail("POST /lfs/verify", "status", status=401)


def commits_fail(hub: HubServer) -> None:
    hub.fail("POST .*/commit/", "status", status=500)


def too_fast(hub: HubServer) -> None:
    hub.fail("POST .*/commit/", "status", status=429, headers={"Retry-After": "60"})


def cut(hub: HubServer) -> None:
    hub.fail("PUT /lfs", "cut")


def silent(hub: HubServer) -> None:
    hub.fail(".", "hang")


@pytest.mark.parametrize(
    ("fault", "limit", "says"),
    [
        (refused, 1.5, "the time limit of 1.5 s|after 2 tries"),  # which comes first is up to the client's own tries
        (cut, 1.5, "the time limit of 1.5 s|after 2 tries"),
        (silent, 1.5, "the time limit of 1.5 s"),
        (expired, 60, "HTTP 401"),
        (commits_fail, 60, "after 2 tries: HTTP 500"),
        (too_fast, 60, "after 2 tries: HTTP 429"),
    ],
    ids=["refused", "cut", "silent", "expired token", "error 500", "error 429"],
)
def test_no_fault_changes_or_stops_training(
    hub: HubServer, tmp_path: Path, alone: Weights, caplog: pytest.LogCaptureFixture,
    fault: Callable[[HubServer], None], limit: float, says: str,
) -> None:  # fmt: skip
    patience = Patience(attempts=2, first_wait=0.05, longest_asked=0.2)
    trainer = hasty(pushing(tmp_path / "out", push_wait_seconds=limit), patience)
    fault(hub)
    trainer.train()
    assert_same(weights(trainer), alone)
    assert trainer.state.global_step == 6
    assert "not pushed: checkpoint-6" in caplog.text
    assert re.search(says, caplog.text)
    assert f"to push checkpoint-6 now: hf upload user/model {tmp_path}/out/checkpoint-6 last-checkpoint" in caplog.text
    assert hub.storage.messages("user/model") == ["initial commit"], "nothing half-way may be on the Hub"


def test_slow_uploads_do_not_slow_training(hub: HubServer, tmp_path: Path, alone: Weights) -> None:
    """No upload gets anywhere before the loop is through: had it waited for one, both would stand still."""
    held = hub.fail("PUT /lfs", "hold")
    trainer = pushing(tmp_path / "out", save_total_limit=1)
    steps: list[int] = []
    finish = trainer._finish_current_push

    def let_go() -> None:
        steps.append(trainer.state.global_step)
        hub.await_request("PUT /lfs")
        assert not held.gate.is_set()
        held.gate.set()
        finish()

    trainer._finish_current_push = let_go  # type: ignore[method-assign]
    trainer.train()
    assert steps == [6]
    assert_same(weights(trainer), alone)
    arrived = below(hub.storage.files("user/model"), "last-checkpoint")
    assert arrived == content(tmp_path / "out" / "checkpoint-6")
    first = below(hub.storage.files("user/model", hub.storage.repos["user/model"].commits[1]["oid"]), "last-checkpoint")
    assert set(first) == set(arrived), "the first checkpoint was rotated away while it was read"


@pytest.mark.parametrize(
    ("token", "stopped", "says"),
    [("hf_wrong", False, "token was refused"), (READER, False, "no right"), (GOOD, True, "cannot be reached")],
    ids=["bad token", "no permission", "no network"],
)
def test_a_bad_start_is_told_before_training(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, token: str, stopped: bool, says: str
) -> None:
    if stopped:
        hub.stop()
    with pytest.raises(HubError, match=says):
        pushing(tmp_path / "strict", hub_token=token, push_failure="raise")
    trainer = pushing(tmp_path / "out", hub_token=token, push_wait_seconds=2.0)
    assert says in caplog.text
    caplog.clear()
    trainer.train()
    assert trainer.state.global_step == 6
    assert "not pushed: checkpoint-6" in caplog.text


def test_a_hub_that_comes_back_gets_the_rest(hub: HubServer, tmp_path: Path) -> None:
    hub.stop()
    trainer = pushing(tmp_path / "out", hub_model_id=None)
    assert trainer.hub_model_id == "out"
    hub.start()
    trainer.train()
    assert below(hub.storage.files("user/out"), "last-checkpoint") == content(tmp_path / "out" / "checkpoint-6")


def test_a_failed_push_raises_at_the_end_where_asked(hub: HubServer, tmp_path: Path) -> None:
    trainer = pushing(tmp_path / "out", push_failure="raise")
    expired(hub)
    with pytest.raises(HubError, match=r"checkpoint-6 was not pushed: .*401"):
        trainer.train()
    assert trainer.state.global_step == 6
    assert (tmp_path / "out" / "checkpoint-6" / "model.safetensors").is_file()


class PowerCut(Exception):
    pass


class FailAt(TrainerCallback):
    """Ends the run by an error after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise PowerCut


def test_resuming_from_the_hub_ends_in_the_same_weights(hub: HubServer, tmp_path: Path, alone: Weights) -> None:
    """A run dies; its last checkpoint is pushed all the same, and other machines go on from what the Hub has."""
    first = pushing(tmp_path / "first", hub_always_push=True, callbacks=[FailAt(5)])
    with pytest.raises(PowerCut):
        first.train()
    assert first.push_in_progress is not None
    assert first.push_in_progress.finish(30) is None
    assert hub.storage.messages("user/model")[1:] == ["Training in progress, step 2", "Training in progress, step 4"]
    older = hub.storage.repos["user/model"].commits[1]["oid"]
    for place, source in enumerate(["last-checkpoint", "hub:user/model", f"hub:user/model@{older}"]):
        trainer = make(tmp_path / f"resumed-{place}", hub_model_id="user/model")
        steps: list[int] = []
        trainer.add_callback(Count(steps))
        trainer.train(resume_from_checkpoint=source)
        assert steps == ([3, 4, 5, 6] if "@" in source else [5, 6])
        assert_same(weights(trainer), alone)


def test_a_push_begins_at_the_next_log_line_not_at_the_next_save(hub: HubServer, tmp_path: Path) -> None:
    trainer = pushing(tmp_path / "out", save_steps=2, max_steps=5, logging_steps=1)
    seen: list[bool] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                trainer._flush_saves(collective=False)  # what takes minutes in earnest
            if state.global_step == 3:
                seen.append(trainer.push_in_progress is not None)

    trainer.add_callback(Watch())
    trainer.train()
    assert seen == [True]


class Count(TrainerCallback):
    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(state.global_step)


class Pushes(TrainerCallback):
    """Counts the event that precedes each push."""

    def __init__(self) -> None:
        self.count = 0

    def on_push_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.count += 1


class GoBack(TrainerCallback):
    """Saves step 5, and once all is pushed goes back behind step 3; the second time neither."""

    trainer: Trainer
    done = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save |= state.global_step == 5 and not self.done
        control.should_log |= state.global_step == 6

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 6 and not self.done:
            self.done = True
            assert self.trainer.push_in_progress.wait_until_done(60)
            control.roll_back_before = 3


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_what_a_rollback_deletes_goes_from_the_hub_too(hub: HubServer, tmp_path: Path, strategy: str) -> None:
    goes_back = GoBack()
    trainer = pushing(tmp_path / "out", strategy, hub_always_push=True, callbacks=[goes_back], async_save=False)
    goes_back.trainer = trainer
    trainer.train()
    assert trainer.meters.rollbacks == 1
    messages = hub.storage.messages("user/model")
    went_back = messages.index("Training in progress, step 5") + 1
    assert messages[went_back:] == [
        *(["Delete checkpoint-5: the run went back to checkpoint-2"] if strategy == "all_checkpoints" else []),
        *(["Delete checkpoint-4: the run went back to checkpoint-2"] if strategy == "all_checkpoints" else []),
        "Training in progress, step 2",
        "Training in progress, step 4",
        "Training in progress, step 6",
    ]
    files = hub.storage.files("user/model")
    local = {path.name: content(path) for path in (tmp_path / "out").glob("checkpoint-*")}
    assert local.keys() == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}
    if strategy == "all_checkpoints":
        assert {path.split("/")[0] for path in files if path.startswith("checkpoint-")} == local.keys()
        for name, wanted in local.items():
            assert below(files, name) == wanted
    else:
        assert below(files, "last-checkpoint") == local["checkpoint-6"]
    assert files["model.safetensors"] == local["checkpoint-6"]["model.safetensors"]


def test_push_to_hub_sends_model_and_card(hub: HubServer, tmp_path: Path) -> None:
    events = Pushes()
    trainer = make(tmp_path / "out", callbacks=[events])
    trainer.train()
    assert not hub.log, "a run without push_to_hub asks the Hub for nothing"
    trainer.args.hub_model_id = "user/later"
    done = trainer.push_to_hub("Done", dataset="numbers", tags="tiny", language="en")
    assert str(done).startswith(f"{hub.url}/user/later/commit/")
    files = hub.storage.files("user/later")
    assert set(files) >= {"README.md", "model.safetensors", "training_args.bin"}
    assert not [path for path in files if "checkpoint" in path]
    data = ModelCard(files["README.md"].decode()).data.to_dict()
    assert data == {"library_name": "pytorch", "tags": ["tiny", "generated_from_trainer"], "language": "en"}
    assert "trained on numbers" in files["README.md"].decode()
    assert hub.storage.messages("user/later") == ["initial commit", "Done"]
    assert events.count == 1


def test_push_to_hub_without_waiting_and_to_a_branch(hub: HubServer, tmp_path: Path) -> None:
    trainer = pushing(tmp_path / "out", "end", hub_revision="draft")
    held = hub.fail("POST .*preupload", "hold", times=1)
    future = trainer.push_to_hub(blocking=False)
    assert isinstance(future, Future)
    assert not future.done()
    held.gate.set()
    assert isinstance(future.result(30), CommitInfo | str)
    assert "model.safetensors" in hub.storage.files("user/model", "draft")
    assert "model.safetensors" not in hub.storage.files("user/model", "main")


def test_save_model_pushes_as_in_transformers_and_a_failure_is_told(
    hub: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = pushing(tmp_path / "out", "end")
    trainer.save_model()
    assert hub.storage.messages("user/model") == ["initial commit", "Model save"]
    expired(hub)
    torch.nn.init.zeros_(trainer.model.get_parameter("head.weight"))
    caplog.set_level(logging.WARNING)
    assert trainer.push_to_hub() is None
    assert "the model was not pushed: " in caplog.text
    assert "hf upload user/model" in caplog.text
    trainer.args.push_failure = "raise"
    with pytest.raises(HubError, match="401"):
        trainer.push_to_hub()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_the_card_knows_a_transformers_model_under_peft_too(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny_llama()
    model.config._name_or_path = "org/base"
    lora = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    lora.get_base_model().config._name_or_path = "org/base"
    for library, each in (("transformers", model), ("peft", lora)):
        args = TrainingArguments(output_dir=str(tmp_path / library), report_to="none", use_cpu=True)
        trainer = Trainer(each, args, train_dataset=token_data(4))
        trainer.save_model()
        trainer.create_model_card(license="mit")
        card = ModelCard.load(tmp_path / library / "README.md")
        assert "More Information Needed" not in card.text, "PEFT leaves an empty form, which nobody wants to read"
        assert card.text.lstrip().startswith(BEGIN)
        data = card.data.to_dict()
        assert data["library_name"] == library
        assert data["base_model"] == "org/base"
        assert data["pipeline_tag"] == "text-generation"
        assert data["license"] == "mit"
