"""The model card: metadata that the Hub can read, and what a reader wants to know of the run.

Only what is known is written: no task, data set or license is guessed, because wrong metadata is worse than none. What
stands in a README.md outside our two marks belongs to its author and is kept.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from onward.hub.results import evaluation_table, last_evaluation, metric_names, training_figures

BEGIN = "<!-- The text from here on was written by onward at the end of a run; it is replaced by the next one. -->"
END = "<!-- The text written by onward ends here. -->"
PACKAGES = ["onward", "torch", "transformers", "accelerate", "datasets", "tokenizers", "peft", "trl"]

# Endings of the names of transformers' model classes, and the Hub's word for the task.
TASKS = {
    "ForCausalLM": "text-generation",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForMultipleChoice": "multiple-choice",
    "ForImageClassification": "image-classification",
    "ForObjectDetection": "object-detection",
    "ForSemanticSegmentation": "image-segmentation",
    "ForAudioClassification": "audio-classification",
    "ForCTC": "automatic-speech-recognition",
    "LMHeadModel": "text-generation",
}
# Arguments that every reader looks for, shown even where they have their default.
MAIN_ARGUMENTS = [
    "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps",
    "optim", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "seed",
]  # fmt: skip
# Arguments that tell of the machine, of its paths or of secrets, not of the model.
PRIVATE = re.compile(
    r"token$|_dir$|path|run_name|resume_from|project|trackio|deepspeed|fsdp|accelerator_config|tqdm|report_to|use_cpu|debug"
    r"|^logging_|^log_|^dataloader_|^ddp_|^hub_|^push_|^save_"
)

FORM = "# Model Card for Model ID"
VERSION_OF_PEFT = re.compile(r"(### Framework versions\s+- PEFT \S+)?")
REPO_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


@dataclass
class Card:
    """What the author may say about a model, with the names of `create_model_card`, and what the run knows."""

    model_name: str
    language: Any = None
    license: str | None = None
    tags: Any = None
    finetuned_from: str | None = None
    tasks: Any = None
    dataset_tags: Any = None
    dataset: Any = None
    dataset_args: Any = None
    library: str = "pytorch"
    badges: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    log_history: list[dict[str, Any]] = field(default_factory=list)


def write_card(card: Card, path: Path) -> None:
    """Write `card` to a README.md, keeping the metadata and the text that others put there."""
    from huggingface_hub import ModelCard

    old = ModelCard.load(path, ignore_metadata_errors=True) if path.is_file() else None
    data = metadata(card, old.data.to_dict() if old is not None else {})
    text = merge(written_by_somebody(old.text) if old is not None else "", body(card))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"---\n{data.to_yaml()}\n---\n\n{text}", encoding="utf-8")


def written_by_somebody(text: str) -> str:
    """The text of a card, or nothing where it is the form that PEFT leaves in every folder, not filled in."""
    if FORM not in text.split("\n\n")[0]:
        return text
    from huggingface_hub import ModelCard, ModelCardData

    form = ModelCard.from_template(ModelCardData()).text.strip()
    beside = text.strip().removeprefix(form).strip()
    return "" if text.strip().startswith(form) and VERSION_OF_PEFT.fullmatch(beside) else text


def merge(old: str, ours: str) -> str:
    """Put our text in the place of the one we wrote before, or below what is there."""
    block = f"{BEGIN}\n\n{ours}\n{END}\n"
    if BEGIN in old and END in old:
        before, rest = old.split(BEGIN, 1)
        return before.lstrip("\n") + block + rest.split(END, 1)[1].lstrip("\n")
    return f"{old.strip()}\n\n{block}" if old.strip() else block


def metadata(card: Card, old: dict[str, Any]) -> Any:
    """The card's metadata as huggingface_hub's ModelCardData, which checks it. What was there before stays.

    Evaluation results are given only with a task and a data set, which the Hub requires for them.
    """
    from huggingface_hub import EvalResult, ModelCardData

    tasks, datasets, kinds = listed(card.tasks), listed(card.dataset), listed(card.dataset_tags)
    metrics = last_evaluation(card.log_history)
    arguments = listed(card.dataset_args)
    results = [
        EvalResult(task_type=task, dataset_type=kind, dataset_name=name, metric_type=metric, metric_value=value,
                   metric_name=metric.replace("_", " ").capitalize(),
                   dataset_args={"args": arguments[place]} if place < len(arguments) else None)
        for task in tasks for place, (kind, name) in enumerate(zip(kinds, datasets, strict=False))
        for metric, value in metrics.items()
    ]  # fmt: skip
    known: dict[str, Any] = {
        "library_name": old.get("library_name") or card.library,
        "language": card.language,
        "license": card.license,
        "base_model": card.finetuned_from,
        "tags": list(dict.fromkeys([*listed(card.tags), *listed(old.get("tags")), "generated_from_trainer"])),
        "datasets": kinds or None,
        "metrics": metric_names(metrics) or None,
        "pipeline_tag": tasks[0] if len(tasks) == 1 else None,
    }
    merged = {**old, **{name: value for name, value in known.items() if value is not None}}
    if not all(REPO_NAME.fullmatch(str(name)) for name in listed(merged.get("base_model"))):
        del merged["base_model"]  # PEFT writes the folder that the base model came from, which the Hub refuses
    if results:
        merged.pop("model-index", None)
        merged |= {"eval_results": results, "model_name": card.model_name}
    return ModelCardData(**merged)


def listed(value: Any) -> list[Any]:
    """One or several as a list; None as an empty one."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def body(card: Card) -> str:
    """The text below the metadata."""
    sections = [f"# {card.model_name}", *filter(None, [card.badges]), opening(card)]
    if metrics := {**last_evaluation(card.log_history), **training_figures(card.log_history)}:
        rows = [[name, shown(value)] for name, value in metrics.items()]
        sections += ["## Results", table(["metric", "value"], rows)]
    header, evaluations, left_out = evaluation_table(card.log_history)
    if evaluations:
        note = f"\n\n{left_out} evaluations between these are left out." if left_out else ""
        sections += ["## Evaluations", table(header, [[shown(cell) for cell in row] for row in evaluations]) + note]
    if card.arguments:
        rows = [[f"`{name}`", f"`{shown(value)}`"] for name, value in card.arguments.items()]
        sections += ["## Arguments", "Those of the usual interest, and all that differ from their default.",
                     table(["argument", "value"], rows)]  # fmt: skip
    sections += ["## Versions", table(["package", "version"], [list(pair) for pair in versions().items()])]
    return "\n\n".join(sections) + "\n"


def opening(card: Card) -> str:
    """One sentence on where the model comes from."""
    base = card.finetuned_from
    origin = f"a fine-tuned version of [{base}](https://huggingface.co/{base})" if base else "a newly trained model"
    data = ", ".join(str(name) for name in listed(card.dataset) or listed(card.dataset_tags))
    return f"This is {origin}{f', trained on {data}' if data else ''}."


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first row is its header."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(in_cell, line)) + " |" for line in lines)


def in_cell(text: str) -> str:
    """A text that does not end the cell of a table that it stands in."""
    return text.replace("|", "\\|").replace("\n", " ")


def shown(value: Any) -> str:
    """A value as a reader wants it: four significant digits, words without quotes, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.0f}"
    return str(getattr(value, "value", value))


def told_arguments(args: Any) -> dict[str, Any]:
    """The arguments for the card: the main ones, and those that were changed, without secrets and paths."""
    values = args.to_sanitized_dict() if hasattr(args, "to_sanitized_dict") else vars(args)
    changed = [entry.name for entry in fields(args) if differs(args, entry)] if is_dataclass(args) else []
    names = [name for name in dict.fromkeys([*MAIN_ARGUMENTS, *changed]) if name in values and not PRIVATE.search(name)]
    return {name: values[name] for name in names}


def differs(args: Any, entry: Any) -> bool:
    """Whether a field of a dataclass has another value than its default; a default of None may stand for False."""
    default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
    value = getattr(args, entry.name)
    return bool(value != default and not (default is None and value is False))


def badges() -> str:
    """Links to where trackers show the run, in Markdown.

    transformers' callbacks for W&B, Trackio and SwanLab hang them on the comment that opens its own cards.
    """
    module = sys.modules.get("transformers.modelcard")  # imported by the callbacks
    hung_on: str = getattr(module, "AUTOGENERATED_TRAINER_COMMENT", "")
    return re.sub(r"<!--.*?-->", "", hung_on, flags=re.DOTALL).strip()


def task_of(model: Any) -> str | None:
    """The Hub's word for what a transformers model does, from the end of its class name; None when unclear."""
    name = type(model).__name__
    return next((task for ending, task in TASKS.items() if name.endswith(ending)), None)


def base_of(model: Any) -> str | None:
    """The name on the Hub that a model was loaded from; None for a folder, or for a model made from scratch."""
    name = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    return name if REPO_NAME.fullmatch(name) and not Path(name).exists() else None


def versions() -> dict[str, str]:
    """The versions of what made the model, of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
