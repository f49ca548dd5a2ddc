"""The usage examples that this project began from, as they stand in the README, run as they stand.

Each is a script for `transformers.Trainer` in which only the import was changed. The third names a model and a data
set of the Hub: it runs in a folder that holds a tiny model `gpt2` and tiny texts `wikitext`, which is where
`from_pretrained` and `load_dataset` look first.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from onward import Trainer
from onward.types import TrainOutput
from tests.conftest import ROOT
from tests.tiny import RegressionData, TinyRegression

WORDS = "the a of in to was is on as for with by that from at his it an were are".split()


def readme_examples() -> list[str]:
    """The Python blocks of the README's section of examples."""
    section = (ROOT / "README.md").read_text("utf-8").split("\n## Examples\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)


def test_the_readme_has_the_three_examples() -> None:
    assert len(readme_examples()) == 3


def test_basic_usage(capsys: pytest.CaptureFixture[str]) -> None:
    names = {"model": TinyRegression(), "train_dataset": RegressionData(32)}
    exec(readme_examples()[0], names)
    result = names["result"]
    assert isinstance(result, TrainOutput)
    assert result.global_step == 3 * 32 // 8
    printed = capsys.readouterr().out
    assert f"Training loss: {result.training_loss:.4f}" in printed
    assert "Global steps: 12" in printed


def test_resume_from_checkpoint() -> None:
    """Runs on from checkpoint-500 with the trainer of the first example, then from the last checkpoint there is."""
    names: dict[str, object] = {"model": TinyRegression(), "train_dataset": RegressionData(8 * 170)}
    exec(readme_examples()[0], names)  # 510 steps; the default saves every 500
    trainer = names["trainer"]
    assert isinstance(trainer, Trainer)
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}

    seen: list[TrainOutput] = []
    train = trainer.train

    def watched(**keywords: object) -> TrainOutput:
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.zero_()  # what comes out must come from the checkpoint
        seen.append(train(**keywords))  # type: ignore[arg-type]
        assert all(torch.equal(value, weights[name]) for name, value in trainer.model.state_dict().items())
        return seen[-1]

    trainer.train = watched  # type: ignore[assignment]
    exec(readme_examples()[1], {"trainer": trainer})
    assert [output.global_step for output in seen] == [510, 510]


def build_gpt2(folder: Path, texts: list[str]) -> None:
    """A GPT-2 of two thin layers, with a byte-level tokenizer learnt from `texts`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = GPT2TokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    fast.save_pretrained(folder)
    end = fast.eos_token_id
    sizes = {"vocab_size": len(fast), "n_positions": 512, "n_embd": 16, "n_layer": 2, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=end, eos_token_id=end)).save_pretrained(folder)


def build_wikitext(folder: Path, texts: list[str]) -> None:
    """A data set with the configuration that the example asks for."""
    folder.mkdir()
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    card = (
        "---\nconfigs:\n- config_name: wikitext-2-raw-v1\n  data_files:\n  - split: train\n    path: train.jsonl\n---\n"
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def wiki_lines(count: int) -> list[str]:
    """Lines as wikitext has them: headings, paragraphs of any length and, one in three, empty ones."""
    pick = torch.Generator().manual_seed(0)
    lines = []
    for number in range(count):
        length = int(torch.randint(2, 60, (), generator=pick))
        words = " ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=pick).tolist())
        lines.append(["", f" = Heading {number} = \n", f" {words} . \n"][number % 3])
    return lines


def test_full_training_pipeline(tmp_path: Path) -> None:
    lines = wiki_lines(60)
    build_gpt2(tmp_path / "gpt2", lines)
    build_wikitext(tmp_path / "wikitext", lines)
    script = readme_examples()[2] + "\nprint('steps', result.global_step, 'loss', result.training_loss)\n"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    printed = re.search(r"steps (\d+) loss ([\d.]+)", done.stdout)
    assert printed, done.stdout
    assert int(printed[1]) == 60 / 4
    assert 3 < float(printed[2]) < 7
    saved = {path.name for path in (tmp_path / "results" / "checkpoint-15").iterdir()}
    assert {"model.safetensors", "config.json", "optimizer.pt", "scheduler.pt", "trainer_state.json"} <= saved
