"""`DefaultFlowCallback`: asks for logs, evaluations, checkpoints and the end, as the arguments say."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from onward.callbacks.base import TrainerCallback
from onward.state import TrainerControl, TrainerState
from onward.types import IntervalStrategy, SaveStrategy


class DefaultFlowCallback(TrainerCallback):
    """Turns the strategies of the arguments into requests.

    Strategies are compared by value, because the arguments may be those of transformers.
    """

    @override
    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        step = state.global_step
        last = step >= state.max_steps

        if step == 1 and args.logging_first_step:
            control.should_log = True
        if args.logging_strategy == IntervalStrategy.STEPS and step % state.logging_steps == 0:
            control.should_log = True

        # The last step is evaluated and saved also where it falls between two intervals: the end of a run is
        # the model that people want.
        if args.eval_strategy == IntervalStrategy.STEPS and step >= args.eval_delay:
            control.should_evaluate |= last or step % state.eval_steps == 0
        if args.save_strategy == SaveStrategy.STEPS:
            control.should_save |= last or (state.save_steps > 0 and step % state.save_steps == 0)

        if last:
            control.should_training_stop = True
        return control

    @override
    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        if args.logging_strategy == IntervalStrategy.EPOCH:
            control.should_log = True
        if args.eval_strategy == IntervalStrategy.EPOCH and args.eval_delay <= state.epoch:
            control.should_evaluate = True
        if args.save_strategy == SaveStrategy.EPOCH:
            control.should_save = True
        return control
