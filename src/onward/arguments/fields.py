"""All fields of `TrainingArguments`, in transformers' order, with onward's own at the end."""

from __future__ import annotations

from dataclasses import dataclass

from onward.arguments.data import DataArguments
from onward.arguments.distributed import DistributedArguments
from onward.arguments.extras import OnwardArguments
from onward.arguments.optimization import ComputeArguments, OptimizationArguments
from onward.arguments.reporting import EvaluationArguments, ReportingArguments
from onward.arguments.saving import SavingArguments


@dataclass(init=False, repr=False, eq=False)
class ArgumentFields(
    OnwardArguments,
    DistributedArguments,
    DataArguments,
    SavingArguments,
    EvaluationArguments,
    ReportingArguments,
    ComputeArguments,
    OptimizationArguments,
):
    """The fields and nothing else. Dataclasses collect fields from the last base to the first, hence this order."""
