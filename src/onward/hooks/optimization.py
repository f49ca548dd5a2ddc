"""The trainer's verbs about optimizer, schedule and gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onward.errors import UsageError
from onward.hooks.base import TrainerBase
from onward.optim.schedulers import current_rate
from onward.sharding import check_optimizer

if TYPE_CHECKING:
    import torch
    from torch import nn

    from onward.optim.clip import Gradients


class OptimizationHooks(TrainerBase):
    """Verbs: create the optimizer and the schedule, say what they are at, measure and clip the gradient."""

    def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
        """Make both; override this, or one of the two, to bring your own."""
        self.create_optimizer()
        self.create_scheduler(num_training_steps=num_training_steps)

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """Make the optimizer over ``model`` (the trainer's own where None), unless there is one; return it."""
        if self.optimizer is None:
            from onward.optim.groups import parameter_groups
            from onward.optim.optimizers import build_optimizer

            model = self.model if model is None else model
            if self.is_fsdp_enabled and self.optimizer_cls_and_kwargs is None:
                check_optimizer(self.args.optim)
            groups = parameter_groups(model, self.get_decay_parameter_names(model), self.args.weight_decay)
            chosen = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = build_optimizer(model, groups, *chosen)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Make the schedule for a run of ``num_training_steps`` optimizer steps, unless there is one; return it."""
        if self.lr_scheduler is None:
            from onward.optim.schedulers import make_scheduler

            args, over = self.args, self.optimizer if optimizer is None else optimizer
            warmup = args.get_warmup_steps(num_training_steps)
            self.lr_scheduler = make_scheduler(
                args.lr_scheduler_type, over, warmup, num_training_steps, args.lr_scheduler_kwargs
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters that weight decay applies to: all but biases and gains of normalisation layers."""
        from onward.optim.groups import decay_parameter_names

        return decay_parameter_names(model)

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any, model: nn.Module | None = None) -> tuple[Any, dict[str, Any]]:
        """The class that ``args.optim`` names, and its keyword arguments."""
        from onward.optim.optimizers import optimizer_class_and_kwargs

        return optimizer_class_and_kwargs(args, model)

    def _get_learning_rate(self) -> float:
        return current_rate(self.lr_scheduler, self.optimizer, self.is_deepspeed_enabled)

    def get_learning_rates(self) -> list[float]:
        """The learning rate of each parameter group."""
        return [group["lr"] for group in self._made_optimizer().param_groups]

    def get_num_trainable_parameters(self) -> int:
        """How many numbers the optimizer may change."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def get_optimizer_group(self, param: Any = None) -> Any:
        """The group that holds ``param``; the parameters of every group where None, or where no group holds it."""
        groups = self._made_optimizer().param_groups
        if param is not None:
            for group in groups:
                if any(param is member for member in group["params"]):
                    return group
        return [group["params"] for group in groups]

    def _made_optimizer(self) -> Any:
        if self.optimizer is None:
            raise UsageError("the trainer has no optimizer yet: call create_optimizer() or train() first")
        return self.optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip gradients to ``max_grad_norm``; returns the norm they had, a tensor on the device."""
        return self._gradients_of(model).clip(self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm as `_clip_grad_norm` found it, or measured now; a tensor on the device, so that nothing waits."""
        return self._gradients_of(model).norm() if grad_norm is None else grad_norm

    def _clear_gradients(self, model: nn.Module) -> None:
        """Set the gradients to None, without the walk through the modules that ``model.zero_grad()`` is."""
        self._gradients_of(model).clear()

    def _gradients_of(self, model: nn.Module) -> Gradients:
        """The gradients of ``model``, whose parameters are listed anew only when another model comes."""
        if self._gradients is None or self._gradients.model is not model:
            from onward.optim.clip import Gradients

            self._gradients = Gradients(model, self.accelerator)
        return self._gradients
