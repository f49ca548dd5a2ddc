"""Compiling a model: as a whole, or block by block, and what the compiler did."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys

BLOCKS = "blocks"
"""The `torch_compile_mode` that compiles each repeated block once, so that start-up does not grow with depth."""

_COMPILERS = ("c++", "g++", "clang++", "cl")


def missing_compiler(backend: str | None, device_type: str) -> str | None:
    """Say what the inductor backend lacks to compile for this type of device, or return None."""
    if backend not in (None, "inductor"):
        return None
    if device_type == "cpu":
        named = os.environ.get("CXX")
        found = shutil.which(named) if named else next(filter(None, map(shutil.which, _COMPILERS)), None)
        return None if found else f"no C++ compiler was found ({named or ', '.join(_COMPILERS)})"
    return None if importlib.util.find_spec("triton") else "the package triton is missing"


def compiler_account() -> str | None:
    """What was compiled in this process: graphs, and where Python interrupted them; None if nothing was."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo is None or not dynamo.counters["stats"]["unique_graphs"]:
        return None
    graphs = dynamo.counters["stats"]["unique_graphs"]
    breaks = dynamo.counters["graph_break"]
    text = f"{graphs} graphs were compiled, interrupted at {sum(breaks.values())} places"
    if breaks:
        reason, count = max(breaks.items(), key=lambda item: item[1])
        text += f"; most often ({count}) by: {str(reason).strip().splitlines()[0]}"
    return text
