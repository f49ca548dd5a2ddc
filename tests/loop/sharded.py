"""Runs scenarios on the processes of one launch and keeps what came out, for `test_sharding.py`.

    torchrun --nproc-per-node 2 tests/loop/sharded.py FOLDER [scenario ...]

Rank 0 writes ``FOLDER/<scenario>.pt``. They run in the order below: some go on from the checkpoints of others.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from tests.loop.sharded_models import (
    RANK,
    Ages,
    CountsSaved,
    FullDisk,
    Leaves,
    Normed,
    Poisoned,
    adapted,
    language_model,
)
from tests.tiny import RegressionData, TinyRegression, pad_tokens, tiny_llama, token_data

from onward import Trainer, TrainingArguments
from onward.errors import OnwardError, Preempted
from onward.sharding import is_sharded, whole_weights

FOLDER = Path(sys.argv[1]) if __name__ == "__main__" else Path()
SHARDED = {"fsdp": True}
Scenario = Callable[[], dict[str, Any]]
SCENARIOS: dict[str, Scenario] = {}


def scenario(run: Scenario) -> Scenario:
    SCENARIOS[run.__name__] = run
    return run


def shared_out(run: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Three scenarios of `run(name, resume=None, **arguments)`: whole, in parts, and in parts from the middle on."""
    name = run.__name__
    SCENARIOS[name] = partial(run, name)
    SCENARIOS[f"{name}_parts"] = partial(run, f"{name}_parts", **SHARDED)
    SCENARIOS[f"{name}_parts_resumed"] = partial(run, f"{name}_again", f"{name}_parts/checkpoint-3", **SHARDED)
    return run


def trainer(name: str, model: Any = None, cls: type[Trainer] = Trainer, data: Any = None, **changes: Any) -> Trainer:
    """A trainer of 6 steps over tokens that saves behind the third; keywords are arguments, or the trainer's own."""
    own = ("callbacks", "optimizers", "eval_dataset", "data_collator")
    parts = {key: changes.pop(key) for key in own if key in changes}
    settings: dict[str, Any] = {
        "output_dir": str(FOLDER / name), "max_steps": 6, "save_steps": 3, "logging_steps": 1, "report_to": "none",
        "use_cpu": True, "per_device_train_batch_size": 2, "disable_tqdm": True, "learning_rate": 1e-2,
        "max_grad_norm": 0.5, "seed": 7, "ddp_find_unused_parameters": False,
    }  # fmt: skip
    if model is None:
        model, data, parts = language_model(), token_data(24), {"data_collator": pad_tokens, **parts}
    return cls(model, TrainingArguments(**settings | changes), train_dataset=data, **parts)


def outcome(made: Trainer, resume: Any = None) -> dict[str, Any]:
    """Train, and return the log and the whole weights."""
    made.train(resume_from_checkpoint=None if resume is None else str(FOLDER / resume))
    return result(made)


def result(made: Trainer) -> dict[str, Any]:
    seen = ("loss", "grad_norm", "eval_loss")
    logs = [{name: line[name] for name in seen if name in line} for line in made.state.log_history]
    weights = whole_weights(made._model_to_save(), keep=True)
    return {"logs": list(filter(None, logs)), "weights": weights, "sharded": is_sharded(made.model)}


def said(action: Callable[[], Any]) -> str:
    """The error that an action ends in."""
    try:
        action()
    except (OnwardError, Preempted) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


# -- the same as without shards ---------------------------------------------------------------------------------------


@scenario
def whole() -> dict[str, Any]:
    return outcome(trainer("whole"))


@scenario
def parts() -> dict[str, Any]:
    made = trainer("parts", **SHARDED)
    done = outcome(made)
    made.save_model(str(FOLDER / "saved"))
    return {**done, "environment": sorted(name for name in os.environ if "FSDP" in name)}


@scenario
def parts_resumed() -> dict[str, Any]:
    return outcome(trainer("parts_resumed", **SHARDED), "parts/checkpoint-3")


@scenario
def whole_from_parts() -> dict[str, Any]:
    return outcome(trainer("whole_from_parts"), "parts/checkpoint-3")


@scenario
def parts_from_whole() -> dict[str, Any]:
    return outcome(trainer("parts_from_whole", **SHARDED), "whole/checkpoint-3")


@scenario
def launched() -> dict[str, Any]:
    """accelerate launch --use_fsdp --fsdp_version 2 says so in the environment."""
    settings = {
        "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    }  # fmt: skip
    with mock.patch.dict(os.environ, settings):
        return outcome(trainer("launched"))


@scenario
def one_after_the_other() -> dict[str, Any]:
    """Arguments that know their place already when another trainer of the process is sharded."""
    later = trainer("later").args
    done = outcome(trainer("before", max_steps=1, **SHARDED))
    made = Trainer(language_model(), later, train_dataset=token_data(24), data_collator=pad_tokens)
    return {"sharded": done["sharded"], "later": outcome(made)}


@scenario
def evaluated_first() -> dict[str, Any]:
    came_out = {}
    for way, changes in (("whole", {}), ("parts", SHARDED)):
        made = trainer(f"evaluated_{way}", eval_dataset=token_data(10, seed=1), save_strategy="no", **changes)
        before = made.evaluate()["eval_loss"]
        came_out[way] = {**outcome(made), "before": before}
    return came_out


@scenario
def twice() -> dict[str, Any]:
    made = trainer("twice", max_steps=3, lr_scheduler_type="constant", **SHARDED)
    made.train()
    made.args.max_steps = 6
    return outcome(made, "twice/checkpoint-3")


@scenario
def at_once() -> dict[str, Any]:
    return outcome(trainer("at_once", lr_scheduler_type="constant", **SHARDED))


def accumulating(name: str, **changes: Any) -> Trainer:
    """Without dropout, whose masks belong to processes: any number of them comes to the same."""
    options = {"gradient_accumulation_steps": 3, "max_steps": 3, "save_steps": 2, "data_collator": pad_tokens}
    return trainer(name, tiny_llama(), data=token_data(36), **options | changes)


@scenario
def accumulated() -> dict[str, Any]:
    return outcome(accumulating("accumulated"))


@scenario
def accumulated_parts() -> dict[str, Any]:
    return outcome(accumulating("accumulated_parts", **SHARDED))


@shared_out
def normed(name: str, resume: str | None = None, **changes: Any) -> dict[str, Any]:
    made = trainer(name, Normed(), data=RegressionData(24), **changes)
    came_out = outcome(made, resume)
    statistics = made.model.norm.running_mean.clone()
    dist.all_reduce(statistics)
    return {**came_out, "statistics": statistics}


# -- accidents --------------------------------------------------------------------------------------------------------


@scenario
def skipped() -> dict[str, Any]:
    return outcome(trainer("skipped", cls=Poisoned))


@scenario
def skipped_parts() -> dict[str, Any]:
    return outcome(trainer("skipped_parts", cls=Poisoned, **SHARDED))


@scenario
def rolled_back() -> dict[str, Any]:
    return outcome(trainer("rolled_back", cls=Poisoned, on_nonfinite="rollback"))


@scenario
def rolled_back_parts() -> dict[str, Any]:
    return outcome(trainer("rolled_back_parts", cls=Poisoned, on_nonfinite="rollback", **SHARDED))


@scenario
def full_disk() -> dict[str, Any]:
    made = trainer("full_disk", cls=FullDisk, save_steps=2, **SHARDED)
    return {**outcome(made), "saved": sorted(each.name for each in (FOLDER / "full_disk").glob("checkpoint-*"))}


@scenario
def left() -> dict[str, Any]:
    """Leaves, and goes on in the very same process: nothing of the step that was taken back may be left over."""
    made = accumulating("left", callbacks=[Leaves()], save_strategy="no", **SHARDED)
    message, step = said(made.train), made.state.global_step
    made.remove_callback(Leaves)
    return {**outcome(made, "left/checkpoint-2"), "said": message, "step": step}


@scenario
def refused() -> dict[str, Any]:
    return {
        "optimizer": said(trainer("refused", optim="adafactor", **SHARDED).train),
        "shortcut": said(lambda: trainer("refused", chunked_loss=True, **SHARDED)),
    }


# -- models, optimizers, precision ------------------------------------------------------------------------------------


@scenario
def best() -> dict[str, Any]:
    made = trainer(
        "best", cls=Ages, eval_dataset=token_data(6, seed=1), eval_strategy="steps", eval_steps=1, save_steps=1,
        load_best_model_at_end=True, save_total_limit=2, metric_for_best_model="age", **SHARDED,
    )  # fmt: skip
    done = outcome(made)
    return {**done, "again": made.evaluate()["eval_loss"], "at": made.state.best_global_step}


@shared_out
def adapters(name: str, resume: str | None = None, **changes: Any) -> dict[str, Any]:
    evaluated = {"eval_dataset": token_data(6, seed=1), "eval_strategy": "steps", "eval_steps": 3}
    made = trainer(
        name, adapted(), cls=CountsSaved, data=token_data(24), data_collator=pad_tokens, load_best_model_at_end=True,
        **evaluated, **changes,
    )  # fmt: skip
    done = outcome(made, resume)
    files = sorted(each.name for each in (FOLDER / name / "checkpoint-6").iterdir())
    return {**done, "files": files, "saved": made.saved}


def _pairs(dtype: torch.dtype = torch.float32, **changes: Any) -> dict[str, Any]:
    """A run, one that goes on from its middle, and the same without shards."""
    options: dict[str, Any] = {"data": token_data(24), "data_collator": pad_tokens, **changes}
    sharded = {**options, **SHARDED}
    return {
        "whole": outcome(trainer("pair_whole", language_model(dtype), **options)),
        "parts": outcome(trainer("pair", language_model(dtype), **sharded)),
        "resumed": outcome(trainer("pair_again", language_model(dtype), **sharded), "pair/checkpoint-3"),
    }


PAIRS: dict[str, dict[str, Any]] = {
    "sgd": {"optim": "sgd", "optim_args": "momentum=0.9"},
    "adagrad": {"optim": "adagrad"},
    "rmsprop": {"optim": "rmsprop"},
    "adamw_torch": {"optim": "adamw_torch"},
    "recomputed": {"gradient_checkpointing": True},
}
SCENARIOS |= {name: partial(_pairs, **changes) for name, changes in PAIRS.items()}


@scenario
def bf16() -> dict[str, Any]:
    made = trainer("bf16_predicted", bf16=True, **SHARDED)
    predicted = made.predict(token_data(4, seed=1)).predictions.dtype.name
    return {**_pairs(torch.bfloat16, bf16=True), "predicted": predicted}


@scenario
def recomputed_by_config() -> dict[str, Any]:
    return outcome(trainer("by_config", fsdp_config={"activation_checkpointing": True}, **SHARDED))


def _handed_in(name: str, **changes: Any) -> dict[str, Any]:
    model = TinyRegression()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)  # which makes its state at once
    return outcome(trainer(name, model, data=RegressionData(24), optimizers=(optimizer, None), **changes))


@scenario
def handed_in() -> dict[str, Any]:
    config = {"auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 20}
    return {"whole": _handed_in("handed_in"), "parts": _handed_in("handed_in_parts", fsdp_config=config, **SHARDED)}


@scenario
def generated() -> dict[str, Any]:
    made = trainer("generated", max_steps=1, save_strategy="no", **SHARDED)
    made.train()
    prompt = torch.tensor([[5, 6, 7 + RANK]])
    tokens = made.model.generate(prompt, max_new_tokens=4, do_sample=False, synced_gpus=True, pad_token_id=0)
    alone = language_model().eval()
    alone.load_state_dict(whole_weights(made.model, keep=True))
    wanted = alone.generate(prompt, max_new_tokens=4, do_sample=False, pad_token_id=0, synced_gpus=False)
    return {"tokens": tokens.tolist(), "wanted": wanted.tolist()}


def main() -> None:
    warnings.simplefilter("ignore")
    for name, run in SCENARIOS.items():
        if not sys.argv[2:] or name in sys.argv[2:]:
            came_out = run()
            dist.barrier()
            if RANK == 0:
                torch.save(came_out, FOLDER / f"{name}.pt")


if __name__ == "__main__":
    main()
