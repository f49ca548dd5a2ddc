"""What a run can be told: `TrainingArguments`, and `option` to read onward's own options from any arguments object."""

from onward.arguments.accelerator_config import AcceleratorConfig
from onward.arguments.extras import option
from onward.arguments.training_arguments import Seq2SeqTrainingArguments, TrainingArguments

__all__ = ["AcceleratorConfig", "Seq2SeqTrainingArguments", "TrainingArguments", "option"]
