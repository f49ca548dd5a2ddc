"""What a downstream scenario gets: a folder, quiet arguments, tiny models, and the record of what a trainer did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests import tiny
from tests.parity.record import recorder, run_record


class Stage:
    """Trains other libraries' trainers over `library`'s base class, below `folder`."""

    def __init__(self, library: str, folder: Path) -> None:
        import transformers

        self.library = library
        self.folder = folder
        self.recorder = recorder(transformers.TrainerCallback)

    def arguments(self, kind: Any, **changes: Any) -> Any:
        """`kind` with few steps, a log line at each of them, and no noise; `changes` win."""
        common: dict[str, Any] = {
            "output_dir": str(self.folder / "run"),
            "per_device_train_batch_size": 2,
            "max_steps": 4,
            "logging_steps": 1,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "disable_tqdm": True,
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "seed": 7,
        }
        return kind(**{**common, **changes})

    def train(self, trainer: Any, again: Any = None, **options: Any) -> dict[str, Any]:
        """Train and record; the trainer must stand on the base that this side is about.

        With `again`, a function that makes a second trainer, that one goes on from the first checkpoint, and its run
        is part of the record.
        """
        self.check_base(trainer)
        trainer.add_callback(self.recorder)
        output = trainer.train(**options)
        record = run_record(trainer, output, self.recorder.trace)
        record["random"] = torch.rand(1).item().hex()
        if again is not None:
            second = again()
            self.check_base(second)
            first = min(Path(second.args.output_dir).glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
            resumed = run_record(second, second.train(resume_from_checkpoint=str(first)), [])
            for key in ("training_loss", "metrics"):
                del resumed["train_output"][key]  # ours cover the whole run
            resumed["log_history"] = [line for line in resumed["log_history"] if "train_loss" not in line]
            record["resumed"] = resumed
        return record

    def check_base(self, trainer: Any) -> None:
        """Assert that `trainer` derives from the base class that this side is about."""
        bases = {f"{base.__module__}.{base.__name__}" for base in type(trainer).__mro__}
        expected, other = "transformers.trainer.Trainer", "onward.trainer.Trainer"
        if self.library == "onward":
            expected, other = other, expected
        assert expected in bases, bases
        assert other not in bases, bases

    def tokenizer(self, chat: bool = False) -> Any:
        """The tiny tokenizer, with a chat template where asked for."""
        tokenizer = tiny.tiny_tokenizer()
        if chat:
            tokenizer.chat_template = (
                "{% for message in messages %}{% if message['role'] == 'user' %}w4 {{ message['content'] }} w5"
                "{% else %}{% generation %}{{ message['content'] }} </s>{% endgeneration %}{% endif %} {% endfor %}"
                "{% if add_generation_prompt %}w6 {% endif %}"
            )
        return tokenizer


def words(start: int, count: int) -> str:
    """`count` words of the tiny tokenizer, always the same for the same `start`."""
    return " ".join(f"w{4 + (start * 7 + i * (start + 3)) % 60}" for i in range(count))


def dataset(rows: list[dict[str, Any]]) -> Any:
    """`rows` as a `datasets.Dataset`."""
    from datasets import Dataset

    return Dataset.from_list(rows)
