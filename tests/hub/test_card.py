from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

from onward import Trainer
from onward.arguments import TrainingArguments
from onward.hub.card import Card, base_of, task_of, told_arguments, write_card, written_by_somebody
from onward.hub.results import evaluation_table, last_evaluation
from tests.hub.server import HubServer
from tests.tiny import TinyRegression

LOGS: list[dict[str, Any]] = [
    {"loss": 2.0, "learning_rate": 0.1, "epoch": 0.5, "step": 5},
    {"eval_loss": 1.5, "eval_accuracy": 0.25, "eval_runtime": 3.0, "epoch": 0.5, "step": 5},
    {"loss": 1.0, "learning_rate": 0.1, "epoch": 1.0, "step": 10},
    {"eval_loss": 1.25, "eval_accuracy": 0.75, "eval_runtime": 3.0, "epoch": 1.0, "step": 10},
    {"train_loss": 1.5, "train_runtime": 9.0, "total_flos": 0.0, "epoch": 1.0, "step": 10},
]
FULL = Card(
    "my model", language=["en", "no"], license="mit", tags="mine", finetuned_from="org/base",
    tasks="text-classification", dataset_tags="imdb", dataset="IMDb: reviews", dataset_args="plain_text",
    library="transformers", log_history=LOGS, arguments={"learning_rate": 1e-3, "note": "a | b\n---"},
)  # fmt: skip


def validate(path: Path) -> None:
    """Ask the Hub, by huggingface_hub's own `ModelCard.validate`; raises what it finds wrong."""
    script = "import sys; from huggingface_hub import ModelCard; ModelCard.load(sys.argv[1]).validate()"
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("card", [FULL, Card("bare")], ids=["full", "bare"])
def test_the_hub_takes_the_card(hub: HubServer, tmp_path: Path, card: Card) -> None:
    write_card(card, tmp_path / "README.md")
    validate(tmp_path / "README.md")
    assert hub.asked("POST /api/validate-yaml")


def test_the_validator_can_refuse(hub: HubServer, tmp_path: Path) -> None:
    write_card(Card("bad", license="of my own making"), tmp_path / "README.md")
    with pytest.raises(AssertionError, match="license"):
        validate(tmp_path / "README.md")


def test_metadata_and_results_can_be_read_back(tmp_path: Path) -> None:
    write_card(FULL, tmp_path / "README.md")
    card = ModelCard.load(tmp_path / "README.md")
    data = card.data.to_dict()
    assert data["base_model"] == "org/base"
    assert data["tags"] == ["mine", "generated_from_trainer"]
    assert data["metrics"] == ["accuracy"]
    name, results = model_index_to_eval_results(data["model-index"])
    assert name == "my model"
    assert {result.metric_type: result.metric_value for result in results} == {"loss": 1.25, "accuracy": 0.75}
    assert "| 5 | 0.5 | 2 | 1.5 | 0.25 |" in card.text
    assert "| 10 | 1 | 1 | 1.25 | 0.75 |" in card.text
    assert "| `note` | `a \\| b ---` |" in card.text
    assert "| torch |" in card.text


def test_what_is_not_known_is_not_claimed(tmp_path: Path) -> None:
    write_card(Card("bare", log_history=LOGS), tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert data == {"library_name": "pytorch", "tags": ["generated_from_trainer"], "metrics": ["accuracy"]}


def test_a_second_card_replaces_ours_and_keeps_what_others_wrote(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(
        "---\nlibrary_name: peft\ntags: [lora]\nlicense: mit\nbase_model: /a/folder\n---\n\n"
        "# By hand\n\nUse with care.\n"
    )
    for name in ("first", "second"):
        write_card(Card(name, tags=[name]), path)
    text = path.read_text()
    assert text.count("# By hand\n\nUse with care.") == 1
    assert "# second" in text
    assert "# first" not in text
    data = ModelCard.load(path).data.to_dict()
    assert data["library_name"] == "peft"
    assert data["license"] == "mit"
    assert "base_model" not in data, "the Hub refuses a folder"
    assert data["tags"] == ["second", "first", "lora", "generated_from_trainer"]


def test_a_form_that_somebody_began_to_fill_in_is_kept() -> None:
    form = ModelCard.from_template(ModelCardData()).text
    assert written_by_somebody(f"{form}\n### Framework versions\n\n- PEFT 0.21.2") == ""
    filled = form.replace("- **Developed by:** [More Information Needed]", "- **Developed by:** me")
    assert filled != form
    assert written_by_somebody(filled) == filled


def test_arguments_tell_the_interesting_ones_and_no_secrets(tmp_path: Path) -> None:
    args = TrainingArguments(
        output_dir=str(tmp_path / "here"), hub_token="hf_secret", adam_beta2=0.95, seed=7, report_to="none"
    )
    told = told_arguments(args)
    assert told["adam_beta2"] == 0.95
    assert told["seed"] == 7
    assert "learning_rate" in told
    assert not [name for name in told if "token" in name or "dir" in name]
    assert "hf_secret" not in str(told)
    assert str(tmp_path) not in str(told)


def test_a_long_table_is_thinned_between_its_ends() -> None:
    logs = [{"eval_loss": float(step), "step": step, "epoch": step / 100} for step in range(500)]
    _, rows, left_out = evaluation_table(logs)
    assert rows[0][0] == 0
    assert rows[-1][0] == 499
    assert len(rows) + left_out == 500
    assert len(rows) == 60


def test_several_evaluation_sets_share_a_row() -> None:
    logs = [{"eval_a_loss": 1.0, "step": 5, "epoch": 1.0}, {"eval_b_loss": 2.0, "step": 5, "epoch": 1.0}]
    header, rows, _ = evaluation_table(logs)
    assert header == ["step", "epoch", "training loss", "a_loss", "b_loss"]
    assert rows == [[5, 1.0, None, 1.0, 2.0]]
    assert last_evaluation(logs) == {"a_loss": 1.0, "b_loss": 2.0}


@dataclass
class Config:
    _name_or_path: str


class FakeForCausalLM:
    def __init__(self, name: str) -> None:
        self.config = Config(name)


def test_base_model_and_task_come_from_the_model_where_they_are_sure(tmp_path: Path) -> None:
    assert task_of(FakeForCausalLM("x")) == "text-generation"
    assert task_of(Config("x")) is None
    assert base_of(FakeForCausalLM("org/base")) == "org/base"
    assert base_of(FakeForCausalLM("")) is None
    (tmp_path / "local").mkdir()
    assert base_of(FakeForCausalLM("local")) is None
    assert base_of(FakeForCausalLM(str(tmp_path / "local"))) is None


def test_badges_of_trackers_are_in_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import modelcard
    from transformers.integrations import TrackioCallback

    # `+=` and assignment, by which trackers hang their badges on it, last as long as the process.
    monkeypatch.setattr(modelcard, "AUTOGENERATED_TRAINER_COMMENT", modelcard.AUTOGENERATED_TRAINER_COMMENT)
    model = TinyRegression()
    trainer = Trainer(model, TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True))
    trainer.create_model_card()
    before = (tmp_path / "README.md").read_text()
    assert "<img" not in before
    tracker: Any = object.__new__(TrackioCallback)  # without the package
    tracker._space_id, tracker._static_space_id = "me/runs", None
    tracker._point_model_card_at_space(model)
    modelcard.AUTOGENERATED_TRAINER_COMMENT += "\n[<img alt='Visualize in W&B'/>](https://wandb.ai/me/runs/1)"
    trainer.create_model_card()
    text = (tmp_path / "README.md").read_text()
    assert text.count("https://huggingface.co/spaces/me/runs") == 1
    assert "](https://wandb.ai/me/runs/1)" in text
    assert "generated automatically" not in text, "that comment is transformers'"
    assert text.index("# ") < text.index("<img") < text.index("This is a newly trained model")
    trainer.create_model_card()
    assert (tmp_path / "README.md").read_text() == text
