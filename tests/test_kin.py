"""Our classes count as those of transformers."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import trainer_callback, trainer_utils

import onward
from onward.kin import become_kin
from tests.tiny import RegressionData, TinyRegression

NAMESAKES = """
    TrainerCallback TrainerState TrainerControl CallbackHandler DefaultFlowCallback ProgressCallback PrinterCallback
    EarlyStoppingCallback ExportableState EvalPrediction
""".split()


def theirs(name: str) -> Any:
    return getattr(trainer_callback, name, None) or getattr(trainer_utils, name)


@pytest.mark.parametrize("name", NAMESAKES)
def test_a_class_derives_from_its_namesake(name: str) -> None:
    become_kin()
    assert issubclass(getattr(onward, name), theirs(name))


def test_what_a_trainer_holds_is_known_to_code_written_for_transformers(tmp_path: Path) -> None:
    seen: list[bool] = []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append(isinstance(prediction, transformers.EvalPrediction))
        return {"one": 1.0}

    args = onward.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    trainer = onward.Trainer(TinyRegression(), args, eval_dataset=RegressionData(4), compute_metrics=metrics)
    trainer.evaluate()
    assert seen == [True]
    assert isinstance(trainer.state, transformers.TrainerState)
    assert isinstance(trainer.control, transformers.TrainerControl)
    assert all(isinstance(each, transformers.TrainerCallback) for each in trainer.callback_handler.callbacks)
    assert isinstance(trainer.pop_callback(transformers.ProgressCallback), onward.ProgressCallback)


def test_our_way_to_tensorboard_is_removed_by_the_name_that_transformers_gives_it(tmp_path: Path) -> None:
    from transformers.integrations import TensorBoardCallback

    args = onward.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="tensorboard")
    trainer = onward.Trainer(TinyRegression(), args)
    assert isinstance(trainer.pop_callback(TensorBoardCallback), TensorBoardCallback)
    assert trainer.pop_callback(TensorBoardCallback) is None


def test_nothing_is_inherited_in_effect() -> None:
    become_kin()
    for name in NAMESAKES:
        ours = getattr(onward, name)
        own = {attribute for base in ours.__mro__ if base.__module__.startswith("onward.") for attribute in vars(base)}
        lacking = {attribute for attribute in vars(theirs(name)) if not attribute.startswith("__")} - own
        assert not lacking, f"{name} would take {lacking} from transformers"


def test_objects_are_still_copied_and_pickled() -> None:
    become_kin()
    state = onward.TrainerState(global_step=3)
    assert pickle.loads(pickle.dumps(state)) == copy.deepcopy(state) == state
    assert type(pickle.loads(pickle.dumps(state))) is onward.TrainerState


def test_a_class_derived_from_both_is_left_alone() -> None:
    """In a process of its own, where ours are imported before transformers and their bases have not grown yet."""
    script = (
        "from onward import TrainerCallback, TrainerState\n"
        "import transformers\n"
        "class Both(transformers.TrainerCallback, TrainerCallback): pass\n"
        "from onward.kin import become_kin\n"
        "become_kin()\n"
        "assert isinstance(TrainerState(), transformers.TrainerState)\n"
        "assert isinstance(Both(), transformers.TrainerCallback) and isinstance(Both(), TrainerCallback)\n"
        "class Late(TrainerCallback, transformers.TrainerCallback): pass\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
