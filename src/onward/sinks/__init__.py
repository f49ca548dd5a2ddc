"""Where logs go beyond the screen: what ``report_to`` names, made into callbacks.

TensorBoard is written by ourselves. Every other tool is spoken to by the callback that the installed transformers
brings: those work with our arguments, state and control, and keep up with their tools.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterable
from typing import Any

from onward.errors import MissingDependency, UsageError, did_you_mean

_PACKAGES = {
    "azure_ml": ("azureml.core", "azureml-core"),
    "clearml": ("clearml", "clearml"),
    "codecarbon": ("codecarbon", "codecarbon"),
    "comet_ml": ("comet_ml", "comet-ml"),
    "dagshub": ("dagshub", "dagshub"),
    "dvclive": ("dvclive", "dvclive"),
    "flyte": ("flytekit", "flytekit"),
    "kubeflow": (None, None),
    "mlflow": ("mlflow", "onward[mlflow]"),
    "neptune": ("neptune", "neptune"),
    "swanlab": ("swanlab", "swanlab"),
    "tensorboard": (None, "onward[tensorboard]"),
    "trackio": ("trackio", "onward[trackio]"),
    "wandb": ("wandb", "onward[wandb]"),
}
"""For each name that ``report_to`` takes: the module that must be there, and what to install for it."""


def resolve_reports(report_to: str | Iterable[str] | None) -> list[str]:
    """Turn ``report_to`` into a list of names: None, ``"none"`` and ``[]`` are nothing, ``"all"`` is what is installed.

    Raises:
        UsageError: a name that no one knows.
    """
    names = [report_to] if isinstance(report_to, str) else list(report_to or [])
    if names in (["none"], ["None"]):
        return []
    if names == ["all"]:
        return installed_reports()
    for name in names:
        if name not in _PACKAGES and name not in (known := _known()):
            raise UsageError(
                f"report_to got {name!r}, expected 'all', 'none' or names among {', '.join(sorted(known))}."
                f"{did_you_mean(name, [*known, 'all', 'none'])}"
            )
    return list(dict.fromkeys(names))


def installed_reports() -> list[str]:
    """Names of the tools that are installed here and that onward can report to."""
    if _has("transformers"):
        return list(_theirs().get_available_reporting_integrations())
    return ["tensorboard"] if _has("tensorboard") or _has("tensorboardX") else []


def report_callbacks(report_to: str | Iterable[str] | None) -> list[Any]:
    """The callbacks that report to what `report_to` names.

    Raises:
        UsageError: a name that no one knows.
        MissingDependency: the tool, or transformers that speaks to it, is not installed.
    """
    return [_callback(name) for name in resolve_reports(report_to)]


def _callback(name: str) -> Any:
    if name == "tensorboard":
        from onward.sinks.tensorboard import TensorBoardCallback

        return TensorBoardCallback()
    module, package = _PACKAGES.get(name, (None, None))
    if module is not None and not _has(module):
        raise MissingDependency(
            f"report_to={name!r} needs the package {module}, which is not installed: pip install '{package}', "
            f"or leave {name!r} out of report_to."
        )
    if not _has("transformers"):
        raise MissingDependency(
            f"report_to={name!r} goes through the callback that transformers brings, which is not installed: "
            "pip install 'onward[hf]'. TensorBoard works without."
        )
    if name == "mlflow" and os.environ.get("DISABLE_MLFLOW_INTEGRATION", "").upper() == "TRUE":
        raise UsageError("report_to='mlflow', but DISABLE_MLFLOW_INTEGRATION=TRUE forbids it: drop one of the two.")
    (callback_class,) = _theirs().get_reporting_integration_callbacks([name])
    return callback_class()


def _known() -> set[str]:
    """Every name that could work here. Asks transformers, whose import takes seconds: only where ours do not do."""
    theirs = _theirs("integration_utils").INTEGRATION_TO_CALLBACK if _has("transformers") else ()
    return {*_PACKAGES, *theirs}


def _theirs(module: str = "") -> Any:
    """The integrations of transformers, which is imported here and nowhere above."""
    return importlib.import_module(f"transformers.integrations.{module}".rstrip("."))


def _has(module: str) -> bool:
    """Whether `module` could be imported, without importing it (but for the packages that it lies in)."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
