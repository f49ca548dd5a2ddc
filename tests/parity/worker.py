"""One library's side: import it once, then run every scenario in a fork of this process.

    python -m tests.parity.worker LIBRARY FOLDER [SCENARIO …]

A fork starts with everything imported and nothing used, so no scenario can see what another one left behind, and
one that crashes or hangs takes only itself down. `FOLDER/SCENARIO.json` appears, whole, when a scenario is done:
what `Stage` recorded, or `{"error": traceback}`.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

TIMEOUT = 100  # seconds for one scenario, on a busy machine

# What the libraries import on first use. A fork would import it again each time.
PRELOAD = (
    "accelerate",
    "datasets",
    "torch._dynamo",
    "torch.distributed.tensor",
    "torch.distributed.fsdp",
    "torch.nn.parallel.distributed",
    "torch.utils.checkpoint",
    "safetensors.torch",
    "transformers.modelcard",
    "transformers.data.data_collator",
    "transformers.generation.utils",
    "transformers.integrations.integration_utils",
    "transformers.models.bert.modeling_bert",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
    "transformers.models.t5.modeling_t5",
    "transformers.optimization",
    "transformers.tokenization_utils_tokenizers",
    "transformers.trainer",
    "transformers.trainer_seq2seq",
)


def main(library: str, folder: Path, names: list[str]) -> None:
    """Run the scenarios `names`, or all, with `library`."""
    from .library import Library
    from .scenarios import SCENARIOS

    lib = Library(library)
    for module in PRELOAD:
        try:
            importlib.import_module(module)
        except ImportError as error:  # a name that another version lacks only costs time
            print(f"not preloaded: {module}: {error}", file=sys.stderr)
    gc.freeze()  # or the first collection in a fork would touch, and so copy, every page that it shares
    for name in names or list(SCENARIOS):
        start = time.perf_counter()
        result = folder / f"{name}.json"
        ranks = SCENARIOS[name].ranks
        failures = (run_alone if ranks == 1 else run_ranks)(lib, name, folder, ranks)
        if failures or not result.exists():
            publish(result, {"error": failures or "the process ended without a result"})
        print(f"{name}: {time.perf_counter() - start:.2f} s", flush=True)


def publish(path: Path, content: dict[str, Any]) -> None:
    """Write `content` so that `path` is either absent or whole."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content))
    part.replace(path)


def run_alone(lib: Any, name: str, folder: Path, ranks: int) -> str:
    """Run one scenario in one fork; returns what went wrong, or an empty text."""
    return wait({fork(lib, name, folder, {}): 0}, folder / name)


def run_ranks(lib: Any, name: str, folder: Path, ranks: int) -> str:
    """Run one scenario in `ranks` forks with the environment that torchrun gives."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    children = {fork(lib, name, folder, {**common, "RANK": rank, "LOCAL_RANK": rank}): rank for rank in range(ranks)}
    return wait(children, folder / name)


def fork(lib: Any, name: str, folder: Path, environment: dict[str, Any]) -> int:
    """Start one process of a scenario; returns its process id."""
    process = os.fork()
    if process:
        return process
    rank = int(environment.get("RANK", 0))
    status = 1
    try:
        signal.alarm(TIMEOUT)
        os.environ.update({key: str(value) for key, value in environment.items()})
        run(lib, name, folder, rank)
        status = 0
    except BaseException:
        (folder / f"{name}.rank{rank}.error").write_text(traceback.format_exc())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # without the parent's exit handlers


def run(lib: Any, name: str, folder: Path, rank: int) -> None:
    """Run one scenario here and publish its record."""
    from .scenarios import SCENARIOS
    from .stage import Stage

    faulthandler.enable()
    warnings.filterwarnings("ignore")  # transformers' own; ours are errors in the tests that own them
    record = SCENARIOS[name].script(Stage(lib, folder / name))
    if rank == 0:
        publish(folder / f"{name}.json", record)


def wait(children: dict[int, int], folder: Path) -> str:
    """Wait for all processes of a scenario; returns what went wrong, or an empty text."""
    failures = ""
    for process, rank in children.items():
        _, status = os.waitpid(process, 0)
        if status:
            report = folder.with_name(f"{folder.name}.rank{rank}.error")
            failures += report.read_text() if report.exists() else f"rank {rank} ended with wait status {status}\n"
    return failures


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
