"""One side: TRL and sentence-transformers over transformers' trainer as it is, or over ours.

    python -m tests.downstream.worker transformers|onward FOLDER SCENARIO …

Each scenario runs in a fork that starts with everything imported and nothing used. `FOLDER/SCENARIO.json` appears,
whole, when it is done: its record, or `{"error": traceback}`.
"""

from __future__ import annotations

import importlib
import multiprocessing
import random
import sys
import traceback
import warnings
from pathlib import Path

from tests.parity.worker import publish

TIMEOUT = 200  # seconds for one scenario, on a busy machine


def main(library: str, folder: Path, names: list[str]) -> None:
    """Run `names` over `library`'s trainer."""
    warnings.filterwarnings("ignore")  # theirs; what onward warns of is an error in its own tests
    import torch  # noqa: F401

    if library == "onward":
        from .swap import put_onward_below

        put_onward_below()
    from .scenarios import SCENARIOS

    for module in dict.fromkeys(module for name in names for module in SCENARIOS[name].imports):
        importlib.import_module(module)
    processes = multiprocessing.get_context("fork")
    for name in names:
        process = processes.Process(target=run, args=(library, name, folder))
        process.start()
        process.join(TIMEOUT)
        if process.is_alive():
            process.kill()
        process.join()
        if not (result := folder / f"{name}.json").exists():
            publish(result, {"error": f"{name} left no record; exit code {process.exitcode}"})


def run(library: str, name: str, folder: Path) -> None:
    """Run one scenario here and publish its record."""
    import numpy as np
    import torch

    from .scenarios import SCENARIOS
    from .stage import Stage

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    try:
        record = SCENARIOS[name].script(Stage(library, folder / name))
    except BaseException:
        record = {"error": traceback.format_exc()}
    publish(folder / f"{name}.json", record)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
