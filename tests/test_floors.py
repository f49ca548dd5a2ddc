"""The house rules that a machine can hold: floors, sizes, the public names, and what an import pulls in."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import onward
from tests.conftest import ROOT

SOURCE = ROOT / "src" / "onward"
MODULES = sorted(SOURCE.rglob("*.py"))
ALL_CODE = [p for room in ("src", "tests", "examples", "benchmarks") for p in sorted((ROOT / room).rglob("*.py"))]

# Room -> floor. A room is the first name below `onward`; a new room must choose its floor here.
FLOORS = {
    **dict.fromkeys(["errors", "kin", "types"], 0),
    **dict.fromkeys(["arguments", "cursor", "plan", "seeding", "state"], 1),
    **dict.fromkeys(
        [
            "agreement", "callbacks", "checkpoint", "data", "engine", "engine_sharding", "gather", "gauge", "hub",
            "leaving", "loss", "memory", "memory_errors", "meters", "model_setup", "onhost", "optim", "sharding",
            "speed",
        ],
        2,
    ),
    "loop": 3,
    **dict.fromkeys(["hooks", "trainer", "seq2seq", "__init__"], 4),
}  # fmt: skip
LEAVES = {"cli", "search", "sinks", "__main__"}

# The flows name their host, the face's base class, in annotations. They never import it when they run.
HOST_BY_NAME = ("loop", "hooks", False)

# `args.device` and `args.world_size` are transformers' names for what accelerate's PartialState holds.
KNOW_ACCELERATE = {"engine", "engine_sharding", "arguments"}

# Where transformers fixed the shape: the methods of the face and of the arguments keep its parameters, however many.
# Optimizers and schedules take the options that users pass by name in `optim_args` and `lr_scheduler_kwargs`.
FIXED_PARAMETERS_IN = ("hooks/", "trainer.py", "seq2seq.py", "arguments/")
FIXED_PARAMETERS_OF = {
    "src/onward/optim/adafactor.py:__init__",
    "src/onward/optim/greedy.py:__init__",
    "src/onward/optim/schedulers.py:_warmup_stable_decay",
}
MAX_LINES, MAX_FUNCTION, MAX_PARAMETERS = 400, 60, 6

PUBLIC = """
    Trainer Seq2SeqTrainer TrainingArguments Seq2SeqTrainingArguments TrainerCallback TrainerState TrainerControl
    CallbackHandler DefaultFlowCallback ProgressCallback PrinterCallback EarlyStoppingCallback ExportableState
    TrainOutput EvalPrediction EvalLoopOutput PredictionOutput BestRun IntervalStrategy SaveStrategy HubStrategy
    HPSearchBackend SchedulerType set_seed enable_full_determinism get_last_checkpoint default_data_collator
    LossSpikeCallback
""".split()


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(path: Path, node: ast.AST) -> list[str]:
    """The dotted modules that an import statement names (for ``from a import b``: ``a.b``), or nothing."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        package = path.relative_to(SOURCE.parent).parts[: -node.level]
        base = ".".join([*package, *filter(None, [base])])
    return [f"{base}.{alias.name}" for alias in node.names]


def eager_imports(path: Path) -> set[ast.AST]:
    """The import statements that run when the module is imported: those outside functions and TYPE_CHECKING."""
    found: set[ast.AST] = set()

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.add(node)
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(parse(path))
    return found


def our_rooms(path: Path) -> list[tuple[int, str, bool]]:
    """(line, room, runs at import) for each import of ours in a module."""
    tree = parse(path)
    eager = {(node.lineno, node.col_offset) for node in eager_imports(path)}  # type: ignore[attr-defined]
    rows = []
    for node in ast.walk(tree):
        for target in imported(path, node):
            parts = target.split(".")
            if parts[0] == "onward" and len(parts) > 1:
                room = parts[1] if parts[1] in FLOORS.keys() | LEAVES else "__init__"
                rows.append((node.lineno, room, (node.lineno, node.col_offset) in eager))  # type: ignore[attr-defined]
    return rows


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_room_has_a_floor(path: Path) -> None:
    assert room_of(path) in FLOORS.keys() | LEAVES, "give the new room a floor in tests/test_floors.py"


# A leaf and the public list may import every room.
@pytest.mark.parametrize("path", [p for p in MODULES if room_of(p) not in LEAVES | {"__init__"}], ids=name_of)
def test_imports_point_down(path: Path) -> None:
    """No import of a higher floor anywhere; of a leaf only inside a function (it may need an optional package)."""
    room = room_of(path)
    for line, target, eager in our_rooms(path):
        if target in LEAVES:
            assert not eager, f"{name_of(path)}:{line} imports the leaf {target!r} when it is itself imported"
        elif (room, target, eager) != HOST_BY_NAME:
            assert FLOORS[target] <= FLOORS[room], (
                f"{name_of(path)}:{line} is on floor {FLOORS[room]} and imports {target!r} of floor {FLOORS[target]}"
            )


def test_rooms_do_not_import_each_other_in_circles() -> None:
    needs: dict[str, set[str]] = {}
    for path in MODULES:
        room = room_of(path)
        if room != "__init__":
            needs.setdefault(room, set()).update(t for _, t, eager in our_rooms(path) if eager and t != room)
    while free := [room for room, below in needs.items() if not below & needs.keys()]:
        for room in free:
            del needs[room]
    assert not needs, f"circle among {sorted(needs)}"


@pytest.mark.parametrize("path", [p for p in MODULES if room_of(p) not in KNOW_ACCELERATE], ids=name_of)
def test_only_the_engine_knows_accelerate(path: Path) -> None:
    tree = parse(path)
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in set(ast.walk(tree)) - typing_only:
        assert "accelerate" not in {target.split(".")[0] for target in imported(path, node)}, (
            f"{name_of(path)}:{node.lineno} imports accelerate: ask the engine instead"  # type: ignore[attr-defined]
        )


def test_the_story_of_fit_needs_no_torch() -> None:
    path = SOURCE / "loop" / "fit.py"
    packages = {target.split(".")[0] for node in eager_imports(path) for target in imported(path, node)}
    assert "torch" not in packages, "loop/fit.py must run on a fake host of thirty lines"


@pytest.mark.parametrize("path", ALL_CODE, ids=name_of)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_LINES, f"{name_of(path)} has {text.count(chr(10))} lines, more than {MAX_LINES}"
    free_shape = not name_of(path).removeprefix("src/onward/").startswith(FIXED_PARAMETERS_IN)
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        where = f"{name_of(path)}:{node.lineno} {node.name}"
        assert function_lines(node) <= MAX_FUNCTION, f"{where} has {function_lines(node)} lines"
        if free_shape and path.is_relative_to(SOURCE) and f"{name_of(path)}:{node.name}" not in FIXED_PARAMETERS_OF:
            assert len(parameters(node)) <= MAX_PARAMETERS, f"{where} takes {parameters(node)}"


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    first = node.body[0]
    has_docstring = ast.get_docstring(node) is not None
    docstring = (first.end_lineno or first.lineno) - first.lineno + 1 if has_docstring else 0
    return (node.end_lineno or node.lineno) - node.lineno + 1 - docstring


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Names of a function's parameters without self and cls."""
    every = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return [name for name in every if name not in ("self", "cls")]


def test_the_public_list_is_the_contract() -> None:
    assert set(PUBLIC) <= set(onward.__all__)
    assert set(onward.__all__) <= set(dir(onward))


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_resolve(name: str) -> None:
    value = getattr(onward, name)
    home = importlib.import_module(value.__module__)
    assert getattr(home, value.__name__) is value


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="Trainr"):
        _ = onward.Trainr


HEAVY = ["transformers", "datasets", "accelerate", "huggingface_hub", "rich", "typer", "pandas", "pyarrow", "sklearn"]


@pytest.mark.parametrize("statement", ["import onward", "from onward import Trainer, TrainingArguments"])
def test_importing_pulls_in_no_heavy_package(statement: str) -> None:
    """What is imported is asserted, not how long it takes: the module list is the same on every machine."""
    script = f"import sys, torch\nbefore = set(sys.modules)\n{statement}\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    new = done.stdout.split()
    assert not [name for name in new if name.split(".")[0] in HEAVY]
    assert not [name for name in new if name.startswith(("torch.distributed.fsdp", "torch._dynamo", "torch._inductor"))]


@pytest.mark.parametrize("before", ["enable", "disable"])
def test_importing_leaves_the_garbage_collector_as_it_was_and_sets_off_no_full_pass(before: str) -> None:
    script = f"""
import gc, torch
gc.{before}()
full = gc.get_stats()[2]["collections"]
from onward import Trainer
assert gc.get_stats()[2]["collections"] == full
assert gc.isenabled() == ({before!r} == "enable")
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_importing_the_package_alone_does_not_import_torch() -> None:
    script = "import sys, onward\nassert 'torch' not in sys.modules and 'numpy' not in sys.modules, 'eager import'"
    subprocess.run([sys.executable, "-c", script], check=True)
