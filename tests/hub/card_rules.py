"""What the Hub asks of the metadata at the top of a model card, as far as a card of ours could break it."""

from __future__ import annotations

import re
from typing import Any

import yaml
from huggingface_hub import ModelCard

LICENSES = {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "gpl-3.0", "openrail", "other", "llama3"}
LISTS_OF_TEXT = ("tags", "datasets", "metrics", "language", "base_model")


def card_errors(text: str) -> list[str]:
    """What is wrong with a README.md, one line each; empty when the Hub would take it."""
    match = re.match(r"\s*---\r?\n([\s\S]*?)\r?\n---", text)
    if match is None:
        return []
    try:
        data = yaml.safe_load(match[1])
        ModelCard(text)
    except (yaml.YAMLError, ValueError) as error:
        return [f"not valid: {error}"]
    if not isinstance(data, dict):
        return ["the metadata is no mapping"]
    errors = [f'"{name}" must be text or a list of texts' for name in LISTS_OF_TEXT if not texts(data.get(name))]
    if data.get("license") is not None and data["license"] not in LICENSES:
        errors.append(f'"license" must be one of {sorted(LICENSES)}')
    for row in listed(data.get("base_model") or []):
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", row):
            errors.append(f'"base_model" {row!r} is no name of a repository')
    return errors + index_errors(data.get("model-index"))


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def texts(value: Any) -> bool:
    return value is None or all(isinstance(item, str) for item in listed(value))


def index_errors(index: Any) -> list[str]:
    """What is wrong with the ``model-index``: a name, and results of which each names task, data set and metrics."""
    if index is None:
        return []
    if not isinstance(index, list) or len(index) != 1 or not isinstance(index[0].get("name"), str):
        return ['"model-index" must be a list of one model with a name']
    errors = []
    for place, result in enumerate(index[0].get("results") or []):
        for path in ("task.type", "dataset.type", "dataset.name"):
            section, name = path.split(".")
            if not isinstance((result.get(section) or {}).get(name), str):
                errors.append(f'"model-index[0].results[{place}].{path}" is required')
        for metric in result.get("metrics") or [{}]:
            if not isinstance(metric.get("type"), str) or not isinstance(metric.get("value"), int | float | str):
                errors.append(f'"model-index[0].results[{place}].metrics" needs type and value')
    return errors
