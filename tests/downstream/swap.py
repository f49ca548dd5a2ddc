"""Make `transformers.Trainer` be onward's, for libraries that are imported afterwards and derive from it."""

from __future__ import annotations

import importlib

# Every module of transformers that the libraries take the two classes from.
HOMES = {
    "Trainer": ("transformers", "transformers.trainer", "transformers.trainer_seq2seq"),
    "Seq2SeqTrainer": ("transformers", "transformers.trainer_seq2seq"),
}


def put_onward_below() -> None:
    """Replace both classes wherever transformers shows them; call this before TRL or the like is imported."""
    import onward

    for name, modules in HOMES.items():
        for module in modules:
            setattr(importlib.import_module(module), name, getattr(onward, name))
