"""Ways in which people use and override a trainer, run on both libraries: what comes out is the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tests.parity.compare import measured
from tests.tiny import RegressionData, TinyRegression
from torch.utils.data import DataLoader, RandomSampler

import onward
from onward.loop.checks import WITHOUT_COUNTERPART


def stock(folder: Path, **changes: Any) -> transformers.TrainingArguments:
    """A stock `transformers.TrainingArguments`, for both libraries."""
    common: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 3, "per_device_train_batch_size": 4, "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip
    return transformers.TrainingArguments(**{**common, **changes})


def history(trainer: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if not measured(key)} for line in trainer.state.log_history]


def make(base: Any, folder: Path, kind: Any = None, **changes: Any) -> Any:
    """A trainer (of the class `kind` over it) of the library `base` on the tiny regression."""
    return (kind or base.Trainer)(
        model=TinyRegression(), args=stock(folder, **changes), train_dataset=RegressionData(16),
        eval_dataset=RegressionData(6),
    )  # fmt: skip


def trained_again(base: Any, folder: Path) -> Any:
    """Arguments, optimizer and model changed between calls of `train`."""
    trainer = make(base, folder)
    trainer.evaluate()
    trainer.train()
    seen = [history(trainer)]
    trainer.args.max_steps, trainer.args.learning_rate, trainer.args.per_device_train_batch_size = 5, 1e-2, 2
    trainer.train()
    seen.append(history(trainer))
    trainer.optimizer = None
    trainer.train()
    seen.append(history(trainer))
    trainer.model = trainer.model_wrapped = TinyRegression(seed=3)
    trainer.train()
    return [*seen, history(trainer)]


def assigned(base: Any, folder: Path) -> Any:
    """Hooks and `call_event` assigned to the instance; `log` called unbound."""
    trainer = make(base, folder)
    seen: list[Any] = []
    step, call = trainer.training_step, trainer.callback_handler.call_event

    def training_step(model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        seen.append("step")
        return step(model, inputs, num_items_in_batch)

    def call_event(event: str, *given: Any, **more: Any) -> Any:
        seen.append(event)
        return call(event, *given, **more)

    trainer.training_step, trainer.callback_handler.call_event = training_step, call_event
    trainer.train()
    base.Trainer.log(trainer, {"extra": 1.0})
    return seen, history(trainer)


def narrow(base: Any, folder: Path) -> Any:
    """Overrides with no more parameters than they need, saving and loading in their own way."""

    class Narrow(base.Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            outputs = model(**inputs)
            return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

        def create_optimizer(self) -> Any:
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
            return self.optimizer

        def get_train_dataloader(self) -> Any:
            return DataLoader(self.train_dataset, batch_size=4, shuffle=True)

        def _save(self, output_dir: Any = None, state_dict: Any = None) -> None:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            torch.save(self.model.state_dict(), Path(output_dir, "own.pt"))

        def _load_from_checkpoint(self, path: Any) -> None:
            self.model.load_state_dict(torch.load(Path(path, "own.pt")))

    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": 2}
    first, second = (make(base, folder, Narrow, **options) for _ in range(2))
    first.train()
    second.train(resume_from_checkpoint=str(folder / "checkpoint-1"))
    # What follows the resume is another order in transformers, and that of the first run in onward.
    return history(first), len(history(second)), (folder / "checkpoint-1" / "own.pt").exists()


def without_init(base: Any, folder: Path) -> Any:
    """A subclass that never calls `Trainer.__init__`."""

    class Bare(base.Trainer):
        def __init__(self) -> None:
            self.model, self.args = TinyRegression(), stock(folder)
            self.create_accelerator_and_postprocess()
            self.train_dataset, self.data_collator = RegressionData(8), transformers.default_data_collator
            self.label_names, self._signature_columns = ["labels"], None
            self.state, self._train_batch_size, self.current_gradient_accumulation_steps = None, 4, 1
            self.optimizer = self.lr_scheduler = self.optimizer_cls_and_kwargs = self.compute_loss_func = None
            self.model_accepts_loss_kwargs, self.label_smoother = False, None

    trainer = Bare()
    trainer.create_optimizer_and_scheduler(3)
    batch = next(iter(trainer.get_train_dataloader()))
    return trainer.training_step(trainer.model, batch).item(), trainer._get_learning_rate()


def accelerated(base: Any, folder: Path) -> Any:
    """What people do with `trainer.accelerator`."""
    trainer = make(base, folder)
    trainer.train()
    accelerator = trainer.accelerator
    prepared = accelerator.prepare(trainer.get_train_dataloader())
    gathered = [accelerator.gather_for_metrics(batch["labels"]) for batch in trainer.get_eval_dataloader()]
    return (
        type(accelerator.unwrap_model(trainer.model_wrapped)).__name__,
        [len(batch["labels"]) for batch in prepared],
        [labels.tolist() for labels in gathered],
        type(trainer.optimizer).__name__,
        trainer.get_train_dataloader().total_batch_size,
    )


def counted(base: Any, folder: Path) -> Any:
    """Counts of a run, asked for and overridden."""

    class Shorter(base.Trainer):
        def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
            *counts, max_steps = super().set_initial_training_values(args, dataloader)
            return (*counts, max_steps - 1)

        def get_total_train_batch_size(self, args: Any) -> int:
            return 7

    trainer, shorter = make(base, folder, max_steps=-1, num_train_epochs=1.5), make(base, folder, Shorter)
    counts = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    sizes = [trainer.get_tp_size(), trainer.get_cp_size(), trainer.get_sp_size()]
    shorter.train()
    return counts, sizes, history(shorter), shorter.state.max_steps


def nested(base: Any, folder: Path) -> Any:
    """`_prepare_input` sees every tensor, `compute_loss_context_manager` can be added to, autocast be overridden."""
    seen: list[Any] = []

    class Nested(base.Trainer):
        def _prepare_input(self, data: Any) -> Any:
            seen.append(type(data).__name__)
            return super()._prepare_input(data)

        def compute_loss_context_manager(self) -> Any:
            stack = super().compute_loss_context_manager()
            stack.callback(seen.append, "left")
            return stack

        def autocast_smart_context_manager(self, cache_enabled: Any = True) -> Any:
            return torch.autograd.profiler.record_function("mine")

        def _track_num_input_tokens(self, inputs: Any) -> None:
            seen.append(sorted(inputs))

        def _build_accelerator_args(self, **kwargs: Any) -> Any:
            seen.append(sorted(key for key in kwargs if key != "fsdp_plugin"))
            return super()._build_accelerator_args(**kwargs) | {"step_scheduler_with_optimizer": False}

    trainer = make(base, folder, Nested)
    trainer.train()
    return seen, history(trainer), trainer.accelerator.step_scheduler_with_optimizer


def sampled(base: Any, folder: Path) -> Any:
    """A sampler with a generator of its own."""

    class Sampled(base.Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return RandomSampler(self.train_dataset, generator=torch.Generator().manual_seed(5))

    trainer = make(base, folder, Sampled, max_steps=6)
    trainer.train()
    return history(trainer)


def another_handler(base: Any, folder: Path) -> Any:
    """transformers' own handler in place of the trainer's."""
    trainer = make(base, folder)
    callbacks = [transformers.trainer_callback.DefaultFlowCallback()]
    trainer.callback_handler = transformers.trainer_callback.CallbackHandler(callbacks, trainer.model, None, None, None)
    trainer.train()
    return history(trainer)


def scored(base: Any, folder: Path) -> Any:
    """The order of metrics, and a metric added by an override of `evaluate`, watched for the best checkpoint."""

    class Scored(base.Trainer):
        def evaluate(self, *given: Any, **more: Any) -> Any:
            return super().evaluate(*given, **more) | {"eval_extra": float(self.state.global_step == 2)}

    trainer = make(
        base, folder, Scored, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        load_best_model_at_end=True, metric_for_best_model="extra", greater_is_better=True,
    )  # fmt: skip
    trainer.compute_metrics = lambda prediction: {"b": 1.0, "eval_a": 2.0, "c": 3.0}
    trainer.train()
    return [list(line) for line in history(trainer)], trainer.state.best_metric, trainer.state.best_global_step


@pytest.mark.parametrize(
    "use",
    [trained_again, assigned, narrow, without_init, accelerated, counted, nested, sampled, another_handler, scored],
    ids=lambda use: use.__name__,
)
def test_both_do_the_same(use: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    outcomes = []
    for base in (transformers, onward):
        torch.manual_seed(0)
        outcomes.append(use(base, tmp_path / base.__name__))
    assert outcomes[0] == outcomes[1]


def test_ray_gets_a_checkpoint_that_can_be_read(tmp_path: Path) -> None:
    trainer = make(onward, tmp_path / "run")
    trainer.train()
    trainer._tune_save_checkpoint(str(tmp_path))
    names = {path.name for path in (tmp_path / "checkpoint-3").iterdir()}
    assert {"model.safetensors", "trainer_state.json", "optimizer.pt", "scheduler.pt"} <= names
    state = transformers.TrainerState.load_from_json(str(tmp_path / "checkpoint-3" / "trainer_state.json"))
    assert state.global_step == 3
    assert "TrainerControl" in state.stateful_callbacks


def test_other_ways_to_shard_are_refused_whoever_asks_for_them(tmp_path: Path) -> None:
    class Sharded:
        tp_enabled = True

    args = stock(tmp_path)
    args.fsdp_plugin_args = {"fsdp_version": 1}  # what transformers makes of fsdp_config={"version": 1}
    with pytest.raises(onward.errors.NotSupported, match="FSDP2"):
        onward.Trainer(TinyRegression(), args)
    args = stock(tmp_path)
    args.parallelism_config = Sharded()
    with pytest.raises(onward.errors.NotSupported, match="parallelism_config"):
        onward.Trainer(TinyRegression(), args)


NOT_HERE = {
    "_defer_fsdp_gradient_reduction",
    "_has_mixed_mesh_grads",
    "_mixed_mesh_grad_norm",
    "_sync_replicated_trainable_parameters",
}
"""Of sharded training, which is refused."""


def test_an_override_that_is_never_called_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lacking = {name for name in dir(transformers.Trainer) if not hasattr(onward.Trainer, name)}
    assert {name for name in lacking if not name.startswith("__")} == WITHOUT_COUNTERPART | NOT_HERE

    class ByEpoch(onward.Trainer):
        def _run_epoch(self, **kwargs: Any) -> None:
            raise AssertionError

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            return super().training_step(*args, **kwargs)

    args = stock(tmp_path)
    ByEpoch(TinyRegression(), args, train_dataset=RegressionData(8))
    assert "ByEpoch defines _run_epoch, which this loop does not have and never calls." in caplog.text
    caplog.clear()
    onward.Trainer(TinyRegression(), args, train_dataset=RegressionData(8))
    assert "never calls" not in caplog.text


def compiled(model: torch.nn.Module) -> Any:
    """As a script does before it hands the model over."""
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize("wrap", [compiled, torch.nn.DataParallel])
def test_a_model_that_the_user_wrapped_takes_the_columns_that_it_takes_plain(wrap: Any, tmp_path: Path) -> None:
    rows = [{**RegressionData(8)[at], "note": at} for at in range(8)]
    found = []
    for name, model in (("plain", TinyRegression()), ("wrapped", wrap(TinyRegression()))):
        args = stock(tmp_path / name, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=3)
        trainer = onward.Trainer(model, args, train_dataset=rows, eval_dataset=rows)
        trainer.train()
        weights = load_file(tmp_path / name / "checkpoint-3" / "model.safetensors")
        found.append((history(trainer), {name: value.tolist() for name, value in weights.items()}))
    assert found[0] == found[1]
