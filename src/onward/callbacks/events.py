"""The events of a run, in the loop that fires them.

    Trainer.__init__                                    on_init_end
    train:                                              on_train_begin
        for epoch in epochs:                            on_epoch_begin
            for batch in steps of the epoch:
                first micro-batch:                      on_step_begin
                each micro-batch but the last:
                    forward, backward                   on_substep_end
                last micro-batch:
                    forward, backward, clip             on_pre_optimizer_step
                    optimizer step                      on_optimizer_step
                    schedule, count the step            on_step_end
                    if control.should_log:              on_log
                    if control.should_evaluate:
                        each batch                      on_prediction_step
                        log the metrics                 on_log
                        done                            on_evaluate
                    if control.should_save:             on_save   (and on_push_begin, where the Hub is asked for)
                    if control.should_epoch_stop: leave the epoch
                    if control.should_training_stop: leave both
                                                        on_epoch_end
            log, evaluate, save as above, for what on_epoch_end asked
        log the summary                                 on_log
                                                        on_train_end
        if anything is raised instead                   on_train_error   (ours: transformers has no such event)
        where memory ran out or was probed              on_batch_size_change   (ours; gets before=, now=, reason=)
        back at an earlier checkpoint                   on_rollback   (ours; gets checkpoint=, reason=)
    predict:
        each batch                                      on_prediction_step
        done                                            on_predict

A callback may look at everything and change only the flags of ``control``. The handler sets them back: all three
``should_{log,evaluate,save}`` before on_step_begin, and each one before its own event; ``should_epoch_stop`` before
on_epoch_begin; ``should_training_stop`` before on_train_begin.
"""

from __future__ import annotations

EVENTS = (
    "on_init_end",
    "on_train_begin",
    "on_epoch_begin",
    "on_step_begin",
    "on_substep_end",
    "on_pre_optimizer_step",
    "on_optimizer_step",
    "on_step_end",
    "on_log",
    "on_evaluate",
    "on_prediction_step",
    "on_predict",
    "on_save",
    "on_push_begin",
    "on_epoch_end",
    "on_train_end",
)
"""The events of the contract."""

OUR_EVENTS = ("on_train_error", "on_batch_size_change", "on_rollback")
"""Events beyond the contract. Callbacks that do not know them are passed over."""
