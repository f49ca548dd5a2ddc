"""Train a small language model on the sources of the Python standard library.

    python examples/train_language_model.py --steps 600 --output-dir demo-run/whole

Nothing is downloaded: the tokenizer is trained on the spot, the model starts from random weights, and the text is the
library of the Python that runs this script. Kill it whenever you like and start it again with the same command: it goes
on from the last checkpoint and ends with the same weights, to the bit, as if nothing had happened.
"""

from __future__ import annotations

import argparse
import sysconfig
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import DataCollatorForLanguageModeling, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from onward import Trainer, TrainingArguments, set_seed

VOCABULARY = 2048
BLOCK = 64  # tokens per sample
PROMPTS = ("def __init__(self, ", "import os\n", "    if not isinstance(", "class Error(")


def read_sources() -> list[str]:
    """The text of every module at the top of the standard library, in alphabetical order."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return [path.read_text(encoding="utf-8", errors="ignore") for path in sorted(folder.glob("*.py"))]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: every byte is a token, so no text is unknown to it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def make_blocks(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> DatasetDict:
    """All files, one after the other, cut into blocks of equal length; one in a hundred is kept for evaluation."""

    def tokenize(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        ids = [token for text in batch["text"] for token in [*tokenizer.encode(text), tokenizer.eos_token_id]]
        return {"input_ids": [ids[i : i + BLOCK] for i in range(0, len(ids) - BLOCK + 1, BLOCK)]}

    blocks = Dataset.from_dict({"text": texts}).map(tokenize, batched=True, batch_size=40, remove_columns=["text"])
    return blocks.train_test_split(test_size=0.01, seed=0)


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of two layers and 0.6 million weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=320,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=BLOCK,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def has_fast_bf16(device: str) -> bool:
    """Whether the chip multiplies bf16 in hardware; elsewhere it would be slower than float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def write_code(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """What the model makes of a few beginnings of Python code."""
    model.eval()
    texts = []
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
        tokens = model.generate(**inputs, max_new_tokens=32, do_sample=True, temperature=0.7)
        texts.append(tokenizer.decode(tokens[0], skip_special_tokens=True))
    return texts


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a small language model on the Python standard library.")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output-dir", default="demo-run/whole", help="where checkpoints and metrics go")
    return parser.parse_args()


def main() -> None:
    """Train, or go on training, and print what the model writes."""
    options = parse_options()
    set_seed(0)

    texts = read_sources()
    tokenizer = train_tokenizer(texts)
    blocks = make_blocks(texts, tokenizer)
    model = build_model(tokenizer)

    args = TrainingArguments(
        output_dir=options.output_dir,
        max_steps=options.steps,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=32,
        learning_rate=5e-3,
        lr_scheduler_type="cosine",
        warmup_steps=options.steps // 10,
        logging_steps=10,
        eval_strategy="steps",
        eval_steps=max(1, options.steps // 4),
        save_steps=max(1, options.steps // 8),
        save_total_limit=2,
        bf16=has_fast_bf16(options.device),
        use_cpu=options.device == "cpu",
        report_to="none",
        seed=0,
    )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=blocks["train"],
        eval_dataset=blocks["test"],
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    started_before = any(Path(args.output_dir).glob("checkpoint-*"))
    result = trainer.train(resume_from_checkpoint=started_before)
    trainer.save_model()

    print(f"trained to step {result.global_step}, mean loss {result.training_loss:.4f}")
    Path(args.output_dir, "samples.txt").write_text("\n---\n".join(write_code(model, tokenizer)), encoding="utf-8")


if __name__ == "__main__":
    main()
