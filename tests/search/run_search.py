"""A search in a process of its own: ``python -m tests.search.run_search OUT STORAGE [--trials N] [--kill NAME:STEP]``.

Prints what this rank's `BestRun` says as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import optuna

from onward import TrainerCallback
from tests.search.trainers import make_trainer, space


class Kill(TrainerCallback):
    """Kills its process (or sends another signal) at a step of a trial."""

    def __init__(self, where: str, number: int) -> None:
        self.name, step = where.split(":")
        self.step, self.number = int(step), number

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.trial_name == self.name and state.global_step == self.step:
            os.kill(os.getpid(), self.number)


class Meet(TrainerCallback):
    """Waits in the first trial until as many processes are in theirs: then none of them can be late for its share."""

    def __init__(self, folder: str, processes: int) -> None:
        self.folder, self.processes = Path(folder), processes

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        (self.folder / f"here-{os.getpid()}").touch()
        deadline = time.monotonic() + 150
        while len(list(self.folder.glob("here-*"))) < self.processes:
            assert time.monotonic() < deadline, "nobody else came"
            time.sleep(0.05)


class PruneOdd(optuna.pruners.BasePruner):
    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.number % 2 == 1 and trial.last_step == 4


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("storage")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--kill")
    parser.add_argument("--signal", type=int, default=signal.SIGKILL)
    parser.add_argument("--prune", action="store_true")
    parser.add_argument("--meet", type=int)
    given = parser.parse_args()
    callbacks: list[TrainerCallback] = [Kill(given.kill, given.signal)] if given.kill else []
    if given.meet:
        callbacks.append(Meet(given.out, given.meet))
    trainer = make_trainer(given.out, callbacks=callbacks)
    seen: list[Any] = []
    report = trainer._report_to_hp_search

    def note(trial: Any, step: int, metrics: dict[str, float]) -> None:
        seen.append([trial.number, step, trainer.args.learning_rate])
        report(trial, step, metrics)

    trainer._report_to_hp_search = note  # type: ignore[method-assign]
    best = trainer.hyperparameter_search(
        space,
        n_trials=given.trials,
        storage=given.storage,
        study_name="study",
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=PruneOdd() if given.prune else None,
    )
    rank, lr = trainer.args.process_index, trainer.args.learning_rate
    with open(os.path.join(given.out, f"rank-{rank}.json"), "w") as file:
        json.dump({"run": best.run_id, "objective": best.objective, "lr": lr, "seen": seen}, file)


if __name__ == "__main__":
    main()
