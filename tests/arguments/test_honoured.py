"""No argument is accepted and then ignored: each is read where something depends on it, or refused, or says why not."""

import ast
import inspect
from dataclasses import fields
from pathlib import Path

import pytest

import onward
from onward.arguments import TrainingArguments
from onward.arguments.documented import field_docstrings
from onward.arguments.training_arguments import Seq2SeqTrainingArguments
from onward.errors import NotSupported

ROOT = Path(onward.__file__).parent
# They look at every argument, or set it, whether or not anything comes of it.
NO_READERS = (
    "arguments/checks.py",
    "arguments/setters.py",
    "arguments/kinds.py",
    "arguments/serialised.py",
    "hub/card.py",
)

REFUSED = {"deepspeed": "zero.json", "fsdp": "full_shard", "parallelism_config": object()}
FOR_THE_SCRIPT = {"do_train", "do_eval", "do_predict", "resume_from_checkpoint", "local_rank"}
FOR_TRACKERS = {"run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"}
OTHER_NAMES = {"gradient_checkpointing", "gradient_checkpointing_kwargs"}
# What they ask for is done anyway, or by another argument; their descriptions say so.
NOTHING_LEFT = {
    "eval_accumulation_steps": "Nothing to tune",
    "enable_jit_checkpoint": "Done anyway",
    "fsdp_config": "Read by nothing here",
    "sortish_sampler": "Read by nothing",
}


def names_read(path: Path) -> set[str]:
    """Names of the arguments that a module reads: ``args.x``, ``getattr(args, "x")``, ``option(args, "x")`` …"""
    is_own = path.parent.name == "arguments"
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            whose = node.value
            if isinstance(whose, ast.Call) and getattr(whose.func, "id", "") == "cast":
                whose = whose.args[1]
            name = whose.attr if isinstance(whose, ast.Attribute) else getattr(whose, "id", "")
            if name in ("args", "arguments") or (name == "self" and is_own):
                found.add(node.attr)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("option", "getattr"):
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
        elif isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple):  # and then getattr(args, name)
            found |= {item.value for item in node.iter.elts if isinstance(item, ast.Constant)}
    return found


READ = {
    name
    for path in ROOT.rglob("*.py")
    if str(path.relative_to(ROOT)) not in NO_READERS
    for name in names_read(path)
}  # fmt: skip


@pytest.mark.parametrize("name", [entry.name for entry in fields(Seq2SeqTrainingArguments)])
def test_every_argument_is_read_refused_or_explained(name):
    elsewhere = [FOR_THE_SCRIPT, FOR_TRACKERS, OTHER_NAMES, REFUSED, NOTHING_LEFT]
    assert name in READ or any(name in group for group in elsewhere), f"nothing reads {name}"


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_the_alternative(name):
    with pytest.raises(NotSupported, match="leave"):
        TrainingArguments(**{name: REFUSED[name]})


@pytest.mark.parametrize("name", sorted(FOR_TRACKERS))
def test_what_trackers_are_said_to_read_they_read(name):
    from transformers.integrations import integration_utils

    assert f"args.{name}" in inspect.getsource(integration_utils)


@pytest.mark.parametrize("name", NOTHING_LEFT)
def test_what_has_nothing_left_to_do_says_so(name):
    texts = {key: text for cls in Seq2SeqTrainingArguments.__mro__ for key, text in field_docstrings(cls).items()}
    assert NOTHING_LEFT[name] in texts[name]


def test_what_the_script_reads_says_so():
    texts = {key: text for cls in TrainingArguments.__mro__ for key, text in field_docstrings(cls).items()}
    for name in FOR_THE_SCRIPT:
        assert "your script" in texts[name] or "launchers" in texts[name]
