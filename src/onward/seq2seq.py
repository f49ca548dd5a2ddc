"""`Seq2SeqTrainer`: a trainer whose evaluation lets the model generate."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from onward.errors import UsageError
from onward.loop import evaluate as flow
from onward.trainer import Trainer
from onward.types import PredictionOutput

if TYPE_CHECKING:
    from torch import nn
    from transformers import GenerationConfig

    from onward.arguments import Seq2SeqTrainingArguments


class Seq2SeqTrainer(Trainer):
    """A `Trainer` for models with ``generate``.

    With ``predict_with_generate`` the predictions of evaluation are generated tokens, padded to the length that the
    generation is limited to. What a call of `evaluate` or `predict` sets wins over ``generation_max_length`` and
    ``generation_num_beams``, these over the model's own generation configuration.

    Takes the arguments of `Trainer`; ``args.generation_config`` replaces the model's.
    """

    _gen_kwargs: dict[str, Any] | None = None

    def _take_model(self, model: nn.Module | None) -> None:
        super()._take_model(None if model is None else self._with_generation(model))

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Make a new model with `model_init`; it generates as ``args.generation_config`` says, if that is given."""
        return self._with_generation(super().call_model_init(trial))

    def _with_generation(self, model: nn.Module) -> nn.Module:
        given = getattr(self.args, "generation_config", None)
        if given is not None:
            model.generation_config = self.load_generation_config(given)  # type: ignore[assignment]
        return model

    @staticmethod
    def load_generation_config(gen_config_arg: Any) -> GenerationConfig:
        """Make a generation configuration out of what ``args.generation_config`` may be.

        Args:
            gen_config_arg: a `GenerationConfig`, a JSON file, a folder that holds one, or a model on the Hub.

        Raises:
            UsageError: it contradicts itself, and could not be saved at the end of training.
        """
        from transformers import GenerationConfig

        if isinstance(gen_config_arg, GenerationConfig):
            config = copy.deepcopy(gen_config_arg)
        elif Path(gen_config_arg).is_file():
            path = Path(gen_config_arg)
            config = GenerationConfig.from_pretrained(path.parent, path.name)
        else:
            config = GenerationConfig.from_pretrained(gen_config_arg)
        try:
            config.validate(strict=True)
        except ValueError as error:
            raise UsageError(f"{error}\nRepair generation_config before training: it could not be saved.") from error
        return config

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **gen_kwargs: Any,
    ) -> dict[str, float]:
        """`Trainer.evaluate`, with keyword arguments for ``generate`` (``max_length``, ``num_beams`` …)."""
        datasets = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(datasets, dict):
            evaluate_one = partial(self.evaluate, ignore_keys=ignore_keys, **gen_kwargs)
            return flow.evaluate_each(evaluate_one, datasets, metric_key_prefix, by_name=eval_dataset is None)
        self._open_generation(gen_kwargs)
        return super().evaluate(datasets, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix)

    def predict(
        self,
        test_dataset: Any,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
        **gen_kwargs: Any,
    ) -> PredictionOutput:
        """`Trainer.predict`, with keyword arguments for ``generate`` (``max_length``, ``num_beams`` …)."""
        self._open_generation(gen_kwargs)
        return super().predict(test_dataset, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix)

    def _open_generation(self, gen_kwargs: dict[str, Any]) -> None:
        """Settle how the next evaluation generates and gathers."""
        args, wanted = cast("Seq2SeqTrainingArguments", self.args), dict(gen_kwargs)
        unlimited = wanted.get("max_length") is None and wanted.get("max_new_tokens") is None
        if unlimited and args.generation_max_length is not None:
            wanted["max_length"] = args.generation_max_length
        if wanted.get("num_beams") is None and args.generation_num_beams is not None:
            wanted["num_beams"] = args.generation_num_beams
        self._gen_kwargs = wanted
        if self.accelerator.num_processes == 1:
            # As transformers, whose loss weighs a short last batch like a full one. It gathers like this over several
            # processes too, and there it returns the duplicates that fill up the last batch: those are dropped here.
            self.gather_function = self.accelerator.gather

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[Any, Any, Any]:
        """Loss, generated tokens and labels of one batch; without ``predict_with_generate`` as `Trainer` does it."""
        if not cast("Seq2SeqTrainingArguments", self.args).predict_with_generate or prediction_loss_only:
            return super().prediction_step(
                model, inputs, prediction_loss_only=prediction_loss_only, ignore_keys=ignore_keys
            )
        inputs = self._prepare_inputs(inputs)
        tokens = self._generate(inputs, gen_kwargs or dict(self._gen_kwargs or {}))
        loss = self._loss_beside_generation(model, inputs) if "labels" in inputs else None
        if self.args.prediction_loss_only:
            return loss, None, None
        labels = self._pad_to_limit(inputs["labels"]) if "labels" in inputs else None
        return loss, self._pad_to_limit(tokens), labels

    def _generate(self, inputs: dict[str, Any], gen_kwargs: dict[str, Any]) -> torch.Tensor:
        """Tokens generated from the inputs, of shape (samples, length)."""
        options = {
            key: value
            for key, value in gen_kwargs.items()
            if value is not None or key not in ("num_beams", "max_length")
        }
        # Each forward of a sharded model takes all processes, also those whose sequences have ended.
        options.setdefault("synced_gpus", self.is_fsdp_enabled)
        prompt = dict(inputs)
        labels, decoder_ids = prompt.get("labels"), prompt.get("decoder_input_ids")
        if labels is not None and decoder_ids is not None and labels.shape == decoder_ids.shape:
            # Made from the labels by the collator: the model would continue the answer instead of finding it.
            prompt = {k: v for k, v in prompt.items() if k not in ("decoder_input_ids", "decoder_attention_mask")}
        generated: torch.Tensor = self.model.generate(**prompt, **options)  # type: ignore[operator]
        config = self.model.generation_config
        if config._from_model_config:  # type: ignore[union-attr]
            # Else generate() would make it anew from the model's configuration at each batch.
            config._from_model_config = False  # type: ignore[union-attr]
        config.update(**config._get_default_generation_params(), defaults_only=True)  # type: ignore[union-attr, operator]
        return generated

    def _loss_beside_generation(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        with torch.no_grad():
            with self.compute_loss_context_manager():
                outputs = model(**inputs)
            if self.label_smoother is not None:
                loss = self.label_smoother(outputs, inputs["labels"])
            else:
                loss = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
        mean: torch.Tensor = loss.detach().mean()
        return mean

    def _pad_to_limit(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pad to the length that generation is limited to, so that batches can be joined."""
        config: Any = self.model.generation_config
        if tokens.shape[-1] < config.max_length:
            return self._pad_tensors_to_max_len(tokens, config.max_length)
        if config.max_new_tokens is not None and tokens.shape[-1] < config.max_new_tokens + 1:
            return self._pad_tensors_to_max_len(tokens, config.max_new_tokens + 1)
        return tokens

    def _pad_tensors_to_max_len(self, tensor: torch.Tensor, max_length: int) -> torch.Tensor:
        """Pad on the right with the padding token.

        Raises:
            UsageError: nobody knows the padding token.
        """
        padded = tensor.new_full((tensor.shape[0], max_length), self._padding_token())
        padded[:, : tensor.shape[-1]] = tensor
        return padded

    def _padding_token(self) -> int:
        source = self.processing_class
        if source is not None and hasattr(source, "pad_token_id"):
            token = source.eos_token_id if source.pad_token_id is None else source.pad_token_id
        else:
            token = getattr(self.model.config, "pad_token_id", None)
        if token is None:
            raise UsageError(
                "Generated tokens must be padded to one length, and the padding token is unknown: got a "
                f"{type(source).__name__} as processing_class and no pad_token_id in the model's config. Set "
                "model.config.pad_token_id, or pass the tokenizer as processing_class."
            )
        return int(token)
