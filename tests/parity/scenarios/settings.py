"""Arguments that change the arithmetic of a step: schedule, optimizer, clipping, precision, accumulation."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..models import Regression, gpt2, llama, pad, points, ragged, tokens
from .registry import add, scenario


@scenario
def defaults(stage: Any) -> Any:
    """Nothing but an output folder."""
    args = stage.lib.TrainingArguments(output_dir=str(stage.folder / "run"), report_to="none", disable_tqdm=True)
    return stage.finish(stage.trainer(llama(), args, train_dataset=tokens()))


@scenario
def another_seed(stage: Any) -> Any:
    """`defaults` except for the seed: the harness must tell the two apart."""
    args = stage.lib.TrainingArguments(
        output_dir=str(stage.folder / "run"), report_to="none", disable_tqdm=True, seed=43
    )
    return stage.finish(stage.trainer(llama(), args, train_dataset=tokens()))


@scenario
def accumulation_with_remainder(stage: Any) -> Any:
    """7 batches an epoch, the last one short, in steps of 4 and 3."""
    return stage.train(llama(), tokens(26), per_device_train_batch_size=4, gradient_accumulation_steps=4)


@scenario
def accumulation_plain_module(stage: Any) -> Any:
    """A model that cannot take the number of items: the loss is divided by the number of micro-batches."""
    return stage.train(Regression(), points(26), per_device_train_batch_size=4, gradient_accumulation_steps=4)


@scenario
def accumulation_of_ragged_lengths(stage: Any) -> Any:
    """The loss of a step is the mean over all its tokens, not the mean of the means of its micro-batches."""
    parts = {"data_collator": pad}
    return stage.train(llama(), ragged(26), parts, per_device_train_batch_size=3, gradient_accumulation_steps=3)


@scenario
def accumulation_longer_than_an_epoch(stage: Any) -> Any:
    """Fewer batches in an epoch than in a step."""
    return stage.train(llama(), tokens(6), per_device_train_batch_size=4, gradient_accumulation_steps=4)


@scenario
def several_epochs_with_short_last_batch(stage: Any) -> Any:
    """26 samples in batches of 4, four times."""
    return stage.train(gpt2(), tokens(26), per_device_train_batch_size=4, num_train_epochs=4)


@scenario
def fractional_epochs(stage: Any) -> Any:
    """One and a half times the data."""
    return stage.train(llama(), tokens(26), per_device_train_batch_size=4, num_train_epochs=1.5)


@scenario
def values_that_switch_off(stage: Any) -> Any:
    """What configurations write for "not this one"."""
    changes = {"num_train_epochs": -1, "max_steps": 10, "save_steps": None, "data_seed": -1, "logging_steps": -1}
    parts = {"eval_dataset": tokens(8, seed=1)}
    return stage.train(llama(), tokens(26), parts, eval_strategy="steps", eval_steps=-1, max_grad_norm=0.0, **changes)


@scenario
def max_steps(stage: Any) -> Any:
    """Ends within the second epoch."""
    return stage.train(llama(), tokens(26), per_device_train_batch_size=4, max_steps=10, warmup_steps=3)


SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {"warmup_steps": 3},
    "cosine": {"warmup_steps": 0.25},
    "cosine_with_restarts": {"warmup_steps": 2, "lr_scheduler_kwargs": {"num_cycles": 2}},
    "polynomial": {"warmup_steps": 2, "lr_scheduler_kwargs": {"power": 2.0, "lr_end": 1e-4}},
    "constant": {},
    "constant_with_warmup": {"warmup_steps": 3},
    "inverse_sqrt": {"warmup_steps": 3},
    "cosine_with_min_lr": {"warmup_steps": 2, "lr_scheduler_kwargs": {"min_lr": 1e-4}},
    "cosine_warmup_with_min_lr": {"warmup_steps": 2, "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
    "warmup_stable_decay": {"warmup_steps": 2, "lr_scheduler_kwargs": {"num_decay_steps": 4}},
    "reduce_lr_on_plateau": {"eval_strategy": "steps", "eval_steps": 2, "lr_scheduler_kwargs": {"patience": 0}},
}


def schedule(stage: Any, kind: str) -> Any:
    """One scheduler family over 12 steps."""
    parts = {"eval_dataset": points(8, seed=1)}
    changes = {"lr_scheduler_type": kind, "learning_rate": 0.1, "max_steps": 12, **SCHEDULES[kind]}
    return stage.train(Regression(), points(), parts, **changes)


for _kind in SCHEDULES:
    add(f"schedule_{_kind}", partial(schedule, kind=_kind))


@scenario
def schedule_greedy(stage: Any) -> Any:
    """A schedule driven by the evaluation, as reduce_lr_on_plateau is."""
    parts = {"eval_dataset": points(8, seed=1)}
    changes = {"eval_strategy": "steps", "eval_steps": 2, "lr_scheduler_kwargs": {"patience": 1, "min_lr": 1e-5}}
    return stage.train(Regression(), points(), parts, lr_scheduler_type="greedy", max_steps=12, **changes)


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw_torch": {"adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-6},
    "adamw_torch_fused": {},
    "sgd": {"optim_args": "momentum=0.9,nesterov=True"},
    "adagrad": {},
    "rmsprop": {"optim_args": "alpha=0.9"},
    "adafactor": {},
}


def optimizer(stage: Any, name: str) -> Any:
    """One optimizer, weight decay on."""
    return stage.train(llama(), tokens(), optim=name, weight_decay=0.1, num_train_epochs=2, **OPTIMIZERS[name])


for _name in OPTIMIZERS:
    add(f"optimizer_{_name}", partial(optimizer, name=_name))


@scenario
def weight_decay(stage: Any) -> Any:
    """Decay spares biases and norms; the plain module has both."""
    return stage.train(Regression(), points(), weight_decay=0.5)


@scenario
def clipping_off(stage: Any) -> Any:
    """The norm is still logged."""
    return stage.train(llama(), tokens(), max_grad_norm=0.0, num_train_epochs=2)


@scenario
def clipping_tight(stage: Any) -> Any:
    """Every step is clipped."""
    return stage.train(llama(), tokens(), max_grad_norm=1e-3, num_train_epochs=2)


@scenario
def label_smoothing(stage: Any) -> Any:
    """On a causal language model: labels are shifted by the smoother."""
    parts = {"data_collator": pad, "eval_dataset": ragged(6, seed=1)}
    return stage.train(llama(), ragged(), parts, label_smoothing_factor=0.1, eval_strategy="epoch")


@scenario
def label_smoothing_accumulated(stage: Any) -> Any:
    """The smoother divides by the items of the whole step."""
    parts = {"data_collator": pad}
    changes = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    return stage.train(llama(), ragged(), parts, label_smoothing_factor=0.1, num_train_epochs=1, **changes)


@scenario
def bf16(stage: Any) -> Any:
    """Autocast in training and evaluation."""
    parts = {"eval_dataset": tokens(8, seed=1)}
    return stage.train(gpt2(), tokens(), parts, bf16=True, eval_strategy="epoch", num_train_epochs=2)


@scenario
def fp16_on_a_cpu(stage: Any) -> Any:
    """Neither autocast nor a scaler, and what is saved says so."""
    parts = {"eval_dataset": tokens(8, seed=1)}
    changes = {"save_strategy": "steps", "save_steps": 4, "max_grad_norm": 0.1, "gradient_accumulation_steps": 2}
    record = stage.train(gpt2(), tokens(), parts, fp16=True, eval_strategy="epoch", num_train_epochs=2, **changes)
    scalers = [path.name for path in (stage.folder / "run").rglob("scaler.pt")]
    resumed = stage.train(gpt2(), tokens(), parts, fp16=True, num_train_epochs=2, max_steps=6, **changes)
    return {"first": record, "scalers": scalers, **resumed}


@scenario
def bf16_accumulated(stage: Any) -> Any:
    """The autocast cache must not outlive a step."""
    return stage.train(llama(), tokens(), bf16=True, per_device_train_batch_size=4, gradient_accumulation_steps=2)


@scenario
def bf16_full_eval(stage: Any) -> Any:
    """A model cast for evaluation alone."""
    trainer = stage.trainer(llama(), stage.arguments(bf16_full_eval=True), eval_dataset=tokens(8, seed=1))
    return {"metrics": stage_exact(trainer.evaluate()), "events": stage.recorder.trace}


def stage_exact(metrics: dict[str, Any]) -> Any:
    """Metrics with exact floats."""
    from ..record import exact

    return exact(metrics)


@scenario
def dropout(stage: Any) -> Any:
    """Random numbers of the model come from the same stream as transformers'."""
    return stage.train(gpt2(), tokens(), seed=7)


@scenario
def full_determinism(stage: Any) -> Any:
    """Deterministic algorithms asked for."""
    return stage.train(gpt2(), tokens(), full_determinism=True, num_train_epochs=1)


@scenario
def neftune(stage: Any) -> Any:
    """Noise on the embeddings in training, none in evaluation, none left behind."""
    parts = {"eval_dataset": tokens(8, seed=1)}
    return stage.train(llama(), tokens(), parts, neftune_noise_alpha=5.0, eval_strategy="epoch", num_train_epochs=2)


def checkpointing(stage: Any, argument: str, options: dict[str, Any] | None) -> Any:
    """Activations recomputed, dropout included."""
    changes = {argument: True, f"{argument}_kwargs": options}
    return stage.train(gpt2(), tokens(), num_train_epochs=1, **changes)


for _argument in ("gradient_checkpointing", "activation_checkpointing"):
    add(_argument, partial(checkpointing, argument=_argument, options=None))
add(
    "gradient_checkpointing_reentrant",
    partial(checkpointing, argument="gradient_checkpointing", options={"use_reentrant": True}),
)


@scenario
def torch_empty_cache_steps(stage: Any) -> Any:
    """Runs on a CPU as well."""
    return stage.train(llama(), tokens(), torch_empty_cache_steps=2, num_train_epochs=1)


@scenario
def two_trainings_in_a_row(stage: Any) -> Any:
    """`train()` twice on one trainer: the second goes on with weights and starts a new schedule."""
    args = stage.arguments(num_train_epochs=1)
    trainer = stage.trainer(llama(), args, train_dataset=tokens())
    first = stage.finish(trainer)
    return {"first": first, **stage.finish(trainer)}
