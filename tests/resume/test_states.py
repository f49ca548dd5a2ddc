"""States that hold more than tensors and numbers come back exactly, or are refused where the run begins."""

from __future__ import annotations

import datetime
import enum
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset

from onward import ExportableState, Trainer, TrainerCallback, TrainingArguments
from onward.errors import CheckpointMismatch, UnreadableState, UsageError
from tests.resume.test_exact import assert_equal, what_happened
from tests.tiny import RegressionData, TinyRegression


class Mood(enum.Enum):
    """What an optimizer is up to."""

    CALM = 1
    WILD = 2


class Step(NamedTuple):
    """What it did last."""

    size: float
    sign: int


class Own:
    """A class of the user's that nobody allowed."""


class Odd(torch.optim.SGD):
    """Steps by what it remembers, in types that optimizers seldom use."""

    holds_own = False

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["when"] = datetime.datetime(2024, 1, 1) + datetime.timedelta(group.setdefault("days", 0))
            group["days"] += 1
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state |= {"window": deque(maxlen=3), "mood": Mood.CALM, "last": Step(0.0, 1), "name": "calm"}
                    state["rates"] = np.ones(2)
                    state["path"] = Path("log")
                if self.holds_own:
                    state["own"] = Own()
                state["window"].append(np.float64(parameter.grad.abs().mean().item()))
                state["mood"] = Mood.WILD if len(state["window"]) == state["window"].maxlen else Mood.CALM
                state["last"] = Step(float(np.mean(state["window"])), -state["last"].sign)
                state["rates"] = state["rates"] * 0.9
                rate = state["last"].size * (2 if state["name"] == "calm" and state["mood"] is Mood.WILD else 1)
                parameter.data.add_(parameter.grad, alpha=-0.01 * rate * state["rates"].sum())


class OddStream(IterableDataset[Any]):
    """Remembers where it stands in a deque and a numpy number."""

    extra: Any = None

    def __init__(self) -> None:
        self.data = RegressionData(64)
        self.recent: deque[int] = deque(maxlen=2)
        self.place = np.int64(0)

    def __iter__(self) -> Iterator[Any]:
        while self.place < len(self.data):
            self.place += 1
            self.recent.append(int(self.place))
            yield self.data[int(self.place) - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place, "recent": deque(self.recent, maxlen=2), "extra": self.extra}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state["recent"].maxlen == 2
        assert state["recent"][-1] == state["place"]
        self.place, self.recent = state["place"], state["recent"]


class Extra(TinyRegression):
    """A model that keeps something beside tensors."""

    kept: Any = np.float32(2.5)

    def get_extra_state(self) -> Any:
        return {"kept": self.kept, "seen": deque([1], maxlen=4)}

    def set_extra_state(self, state: Any) -> None:
        assert isinstance(state["seen"], deque)
        self.kept = state["kept"]


def make(folder: Path, optimizer_cls: type = Odd, stream: Any = None, **given: Any) -> Trainer:
    options = {"logging_steps": 1, "max_steps": 8, "save_steps": 3, "async_save": True} | given.pop("options", {})
    args = TrainingArguments(
        output_dir=str(folder), report_to=[], disable_tqdm=True, use_cpu=True, per_device_train_batch_size=4, **options
    )
    return Trainer(
        model=given.pop("model", None) or TinyRegression(),
        args=args,
        train_dataset=RegressionData() if stream is None else stream,
        optimizer_cls_and_kwargs=(optimizer_cls, {"lr": 0.1}),
        **given,
    )


@pytest.mark.parametrize("beside", [True, False])
def test_odd_types_resume_exactly(beside: bool, tmp_path: Path) -> None:
    options = {"async_save": beside}
    whole = make(tmp_path, stream=OddStream(), model=Extra(), options=options)
    wanted = weights_and_losses(whole, whole.train().training_loss)
    for step in (3, 6):
        again = make(tmp_path, stream=OddStream(), model=Extra(seed=1), options=options)
        again.model.kept = None
        loss = again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}")).training_loss
        assert_equal(weights_and_losses(again, loss), wanted, f"from step {step}")
        assert again.model.kept == np.float32(2.5)
        (mine, *_), (theirs, *_) = ([*each.optimizer.state.values()] for each in (again, whole))
        np.testing.assert_array_equal(mine.pop("rates"), theirs["rates"])
        assert mine == {name: value for name, value in theirs.items() if name != "rates"}
        assert mine["window"].maxlen == 3


def weights_and_losses(trainer: Trainer, loss: float) -> dict[str, Any]:
    weights = {name: value for name, value in trainer.model.state_dict().items() if torch.is_tensor(value)}
    history = [(line["step"], line.get("loss"), line.get("grad_norm")) for line in trainer.state.log_history]
    return {"weights": weights, "history": history, "loss": loss, "step": trainer.state.global_step}


class OwnScheduler(torch.optim.lr_scheduler.ConstantLR):
    """With a state that holds an object."""

    def __init__(self, optimizer: Any) -> None:
        self.plan = Own()
        super().__init__(optimizer)


class OwnOptimizer(Odd):
    """With an object in its state from the first step on."""

    holds_own = True


class Patience(TrainerCallback, ExportableState):
    """Whose state is no JSON."""

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"window": deque([1])}}


def with_scheduler(folder: Path) -> Trainer:
    model = TinyRegression()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    args = TrainingArguments(output_dir=str(folder), report_to=[], disable_tqdm=True, use_cpu=True, max_steps=8)
    return Trainer(model, args, train_dataset=RegressionData(), optimizers=(optimizer, OwnScheduler(optimizer)))


def with_own_extra() -> Extra:
    model = Extra()
    model.kept = Own()
    return model


def with_own_stream() -> OddStream:
    stream = OddStream()
    stream.extra = Own()
    return stream


BAD: dict[str, tuple[Callable[[Path], Trainer], str]] = {
    "optimizer": (lambda f: make(f, OwnOptimizer), r"the state of the optimizer\['state'\]\[0\]\['own'\] is a "),
    "schedule": (with_scheduler, r"the state of the lr_scheduler\['plan'\] is a "),
    "model": (lambda f: make(f, model=with_own_extra()), r"of Extra\['_extra_state'\]\['kept'\] is a "),
    "stream": (lambda f: make(f, stream=with_own_stream()), r"train_dataset\['states'\]\[0\]\['extra'\] is a "),
    "callback": (lambda f: make(f, callbacks=[Patience()]), r"Patience\.state\(\) .* under 'window' a deque"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_could_not_be_resumed_is_refused_behind_the_first_step(name: str, tmp_path: Path) -> None:
    build, message = BAD[name]
    trainer = build(tmp_path)
    with pytest.raises(UnreadableState, match=message):
        trainer.train()
    assert trainer.state.global_step == 0
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_run_that_saves_nothing_may_keep_what_it_likes(tmp_path: Path) -> None:
    trainer = make(tmp_path, OwnOptimizer, callbacks=[Patience()], options={"save_strategy": "no"})
    assert trainer.train().global_step == 8


@pytest.mark.parametrize("beside", [True, False])
def test_what_comes_up_later_never_passes_as_a_whole_checkpoint(beside: bool, tmp_path: Path) -> None:
    class Late(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
            if state.global_step == 5:
                optimizer.param_groups[0]["own"] = Own()

    trainer = make(tmp_path, callbacks=[Late()], options={"async_save": beside})
    with pytest.raises(UnreadableState, match=r"optimizer\.pt\['param_groups'\]\[0\]\['own'\]"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]


def test_who_writes_the_model_in_another_way_is_not_asked(tmp_path: Path) -> None:
    class Saves(Trainer):
        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            super()._save(output_dir, {"weight": torch.ones(1)})

    args = TrainingArguments(output_dir=str(tmp_path), report_to=[], disable_tqdm=True, use_cpu=True, max_steps=2)
    assert Saves(with_own_extra(), args, train_dataset=RegressionData()).train().global_step == 2


def test_a_callback_may_shape_its_state_as_it_likes(tmp_path: Path) -> None:
    class Shapeless(TrainerCallback, ExportableState):
        def state(self) -> Any:
            return {"args": {}, "attributes": {}, "more": [1, np.float32(2)]}

    assert make(tmp_path, torch.optim.SGD, callbacks=[Shapeless()]).train().global_step == 8


def test_an_allowed_class_is_saved_and_resumed(tmp_path: Path) -> None:
    with torch.serialization.safe_globals([Own]):
        assert make(tmp_path, OwnOptimizer).train().global_step == 8
        assert make(tmp_path, OwnOptimizer).train(resume_from_checkpoint=True).global_step == 8
    with pytest.raises(UnreadableState, match=r"checkpoint-8: optimizer\.pt holds .*Own.*add_safe_globals"):
        make(tmp_path, OwnOptimizer).train(resume_from_checkpoint=True)


class Thaw(TrainerCallback):
    """Trains the first layer, too, from step 4 on."""

    def __init__(self, schedule_too: bool = True) -> None:
        self.schedule_too = schedule_too

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == 4 and not model.body.weight.requires_grad:
            kwargs["optimizer"].add_param_group(thaw(model))
            if self.schedule_too:
                schedule = kwargs["lr_scheduler"]
                schedule.base_lrs.append(0.01)
                schedule.lr_lambdas.append(schedule.lr_lambdas[0])


def thaw(model: Any) -> dict[str, Any]:
    model.body.requires_grad_(True)
    return {"params": list(model.body.parameters()), "lr": 0.01, "initial_lr": 0.01}


def half_frozen(folder: Path, cls: type[Trainer] = Trainer, schedule_too: bool = True) -> Trainer:
    model = TinyRegression()
    model.body.requires_grad_(False)
    options: dict[str, Any] = {"max_steps": 8, "save_steps": 3, "logging_steps": 1}
    args = TrainingArguments(output_dir=str(folder), report_to=[], disable_tqdm=True, use_cpu=True, **options)
    return cls(model, args, train_dataset=RegressionData(64), callbacks=[Thaw(schedule_too)])


class Thawed(Trainer):
    """Makes the groups that a run has behind step 4."""

    def create_optimizer(self, model: Any = None) -> Any:
        optimizer = super().create_optimizer()
        if not self.model.body.weight.requires_grad:
            optimizer.add_param_group(thaw(self.model))
        return optimizer


def test_a_group_that_was_added_is_told_and_resumes_where_it_is_made_before(tmp_path: Path) -> None:
    whole = half_frozen(tmp_path)
    wanted = what_happened(whole, whole.train().training_loss)
    again = half_frozen(tmp_path)
    assert_equal(what_happened(again, again.train(str(tmp_path / "checkpoint-3")).training_loss), wanted, "before it")
    with pytest.raises(
        CheckpointMismatch, match=r"with 3 .* \(of 1 \+ 3 \+ 2 tensors\), and there are 2 .*create_optimizer"
    ):
        half_frozen(tmp_path).train(str(tmp_path / "checkpoint-6"))
    again = half_frozen(tmp_path, Thawed)
    assert_equal(what_happened(again, again.train(str(tmp_path / "checkpoint-6")).training_loss), wanted, "behind it")


def test_a_group_that_the_schedule_does_not_know_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"3 parameter groups, but the schedule was made for 2\. .*base_lrs\.append"):
        half_frozen(tmp_path, schedule_too=False).train()
