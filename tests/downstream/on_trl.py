"""TRL's trainers."""

from __future__ import annotations

from typing import Any

from tests import tiny

from .scenarios import scenario
from .stage import Stage, dataset, words

SFT = ("trl.trainer.sft_trainer", "peft")


def texts(n: int = 12) -> Any:
    return dataset([{"text": words(i, 5 + i % 7)} for i in range(n)])


def completions(n: int = 12) -> Any:
    return dataset([{"prompt": words(i, 3 + i % 3), "completion": " " + words(i + 30, 4 + i % 4)} for i in range(n)])


def preferences(n: int = 12) -> Any:
    return dataset(
        [
            {"prompt": words(i, 4), "chosen": " " + words(i + 20, 5), "rejected": " " + words(i + 40, 3 + i % 3)}
            for i in range(n)
        ]
    )


def prompts(n: int = 12) -> Any:
    return dataset([{"prompt": words(i, 4)} for i in range(n)])


def sft(stage: Stage, data: Any, model: Any = None, eval_data: Any = None, **changes: Any) -> Any:
    from trl import SFTConfig, SFTTrainer

    parts = {"peft_config": changes.pop("peft_config", None), "compute_metrics": changes.pop("compute_metrics", None)}
    args = stage.arguments(SFTConfig, **{"max_length": 16, **changes})
    return SFTTrainer(
        model=model or tiny.tiny_llama(),
        args=args,
        train_dataset=data,
        eval_dataset=eval_data,
        processing_class=stage.tokenizer(),
        **parts,
    )


@scenario(*SFT, quick=True)
def sft_plain(stage: Stage) -> dict[str, Any]:
    return stage.train(sft(stage, texts(), eval_data=texts(5), eval_strategy="steps", eval_steps=2))


@scenario(*SFT)
def sft_resumed(stage: Stage) -> dict[str, Any]:
    options: dict[str, Any] = {
        "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 6,
        "load_best_model_at_end": True, "save_total_limit": 3, "gradient_accumulation_steps": 2,
    }  # fmt: skip
    return stage.train(
        sft(stage, texts(), eval_data=texts(5), **options),
        again=lambda: sft(stage, texts(), eval_data=texts(5), **options),
    )


@scenario(*SFT)
def sft_completion_only(stage: Stage) -> dict[str, Any]:
    return stage.train(sft(stage, completions(), gradient_accumulation_steps=2))


@scenario(*SFT)
def sft_packing(stage: Stage) -> dict[str, Any]:
    return stage.train(sft(stage, texts(40), packing=True, packing_strategy="wrapped"))


@scenario(*SFT)
def sft_padding_free(stage: Stage) -> dict[str, Any]:
    return stage.train(sft(stage, texts(), padding_free=True, max_length=None))


@scenario(*SFT)
def sft_streamed(stage: Stage) -> dict[str, Any]:
    return stage.train(sft(stage, texts().to_iterable_dataset()))


@scenario(*SFT)
def sft_lora(stage: Stage) -> dict[str, Any]:
    from peft import LoraConfig

    def make() -> Any:
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        return sft(stage, texts(), peft_config=config, save_strategy="steps", save_steps=2)

    return stage.train(make(), again=make)


@scenario("trl.trainer.dpo_trainer")
def dpo(stage: Stage) -> dict[str, Any]:
    from trl import DPOConfig, DPOTrainer

    def make() -> Any:
        args = stage.arguments(
            DPOConfig, max_length=24, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
            load_best_model_at_end=True,
        )  # fmt: skip
        return DPOTrainer(
            model=tiny.tiny_llama(), ref_model=tiny.tiny_llama(), args=args, train_dataset=preferences(),
            eval_dataset=preferences(4), processing_class=stage.tokenizer(),
        )  # fmt: skip

    return stage.train(make(), again=make)


@scenario("trl.trainer.reward_trainer")
def reward(stage: Stage) -> dict[str, Any]:
    import torch
    from transformers import LlamaForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    torch.manual_seed(0)
    config = tiny.tiny_llama(num_labels=1).config
    args = stage.arguments(RewardConfig, max_length=24, eval_strategy="steps", eval_steps=2)
    trainer = RewardTrainer(
        model=LlamaForSequenceClassification(config), args=args, train_dataset=preferences(),
        eval_dataset=preferences(4), processing_class=stage.tokenizer(),
    )  # fmt: skip
    return stage.train(trainer)


@scenario("trl.trainer.kto_trainer")
def kto(stage: Stage) -> dict[str, Any]:
    from trl import KTOConfig, KTOTrainer

    rows = [{"prompt": words(i, 4), "completion": " " + words(i + 9, 4), "label": i % 2 == 0} for i in range(12)]
    args = stage.arguments(KTOConfig, max_length=24, eval_strategy="steps", eval_steps=2)
    trainer = KTOTrainer(
        model=tiny.tiny_llama(), ref_model=tiny.tiny_llama(), args=args, train_dataset=dataset(rows),
        eval_dataset=dataset(rows[:4]), processing_class=stage.tokenizer(),
    )  # fmt: skip
    return stage.train(trainer)


def length_reward(completions: list[Any], **kwargs: Any) -> list[float]:
    return [float(len(set(text.split()))) for text in completions]


def online(stage: Stage, kind: str, **changes: Any) -> Any:
    import trl

    args = stage.arguments(
        getattr(trl, f"{kind}Config"), max_completion_length=6, num_generations=2, per_device_train_batch_size=4,
        beta=0.0, **changes,
    )  # fmt: skip
    return getattr(trl, f"{kind}Trainer")(
        model=tiny.tiny_llama(), reward_funcs=length_reward, args=args, train_dataset=prompts(),
        eval_dataset=prompts(2), processing_class=stage.tokenizer(),
    )  # fmt: skip


@scenario("trl.trainer.grpo_trainer")
def grpo(stage: Stage) -> dict[str, Any]:
    changes: dict[str, Any] = {"num_iterations": 2, "eval_strategy": "steps", "eval_steps": 2}
    return stage.train(online(stage, "GRPO", per_device_eval_batch_size=4, **changes))


@scenario("trl.trainer.grpo_trainer")
def grpo_accumulated(stage: Stage) -> dict[str, Any]:
    def make() -> Any:
        return online(stage, "GRPO", gradient_accumulation_steps=2, save_strategy="steps", save_steps=2)

    return stage.train(make(), again=make)


@scenario("trl.trainer.rloo_trainer")
def rloo(stage: Stage) -> dict[str, Any]:
    return stage.train(online(stage, "RLOO", gradient_accumulation_steps=2))


@scenario("trl.experimental.orpo")
def orpo(stage: Stage) -> dict[str, Any]:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    args = stage.arguments(ORPOConfig, max_length=24, eval_strategy="steps", eval_steps=2)
    trainer = ORPOTrainer(
        model=tiny.tiny_llama(), args=args, train_dataset=preferences(), eval_dataset=preferences(4),
        processing_class=stage.tokenizer(),
    )  # fmt: skip
    return stage.train(trainer)


@scenario("trl.experimental.cpo")
def cpo(stage: Stage) -> dict[str, Any]:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    args = stage.arguments(CPOConfig, max_length=24, gradient_accumulation_steps=2)
    trainer = CPOTrainer(
        model=tiny.tiny_llama(), args=args, train_dataset=preferences(), processing_class=stage.tokenizer()
    )
    return stage.train(trainer)


@scenario("trl.experimental.gkd")
def gkd(stage: Stage) -> dict[str, Any]:
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    rows = [
        {"messages": [{"role": "user", "content": words(i, 4)}, {"role": "assistant", "content": words(i + 9, 4)}]}
        for i in range(12)
    ]
    args = stage.arguments(GKDConfig, max_length=32, max_new_tokens=4, lmbda=0.5)
    trainer = GKDTrainer(
        model=tiny.tiny_llama(), teacher_model=tiny.tiny_llama(seed=1), args=args, train_dataset=dataset(rows),
        processing_class=stage.tokenizer(chat=True),
    )  # fmt: skip
    return stage.train(trainer)
