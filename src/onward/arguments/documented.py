"""One text per argument: the docstring under a field is also its ``--help`` line.

`HfArgumentParser` (and any other parser that follows its convention) reads the help of a field from
``field.metadata["help"]``. Writing every text twice would let the two drift apart, so the metadata looks the docstring
up in the source of the class, the first time that somebody asks.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from types import MappingProxyType
from typing import Any, TypeVar

T = TypeVar("T")


@cache
def field_docstrings(cls: type) -> dict[str, str]:
    """Return the docstring under each field of `cls` itself, on one line; nothing where sources are missing."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return {}
    definition = tree.body[0]
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for node, following in zip(definition.body, definition.body[1:], strict=False):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            found[node.target.id] = " ".join(str(following.value.value).split())
    return found


class _Metadata(Mapping[str, Any]):
    """Metadata of one field, whose ``help`` is looked up on first use: parsing sources at import would cost time."""

    def __init__(self, cls: type, name: str, given: Mapping[str, Any]) -> None:
        self._cls, self._name, self._given = cls, name, given

    def __getitem__(self, key: str) -> Any:
        if key == "help":
            # argparse formats help texts with %, so a bare percent sign would be an error there.
            return field_docstrings(self._cls).get(self._name, "").replace("%", "%%")
        return self._given[key]

    def __iter__(self) -> Iterator[str]:
        yield from ("help", *self._given)

    def __len__(self) -> int:
        return 1 + len(self._given)

    def copy(self) -> dict[str, Any]:
        """Return a plain dict, as `dict.copy` does: the read-only view around metadata forwards this call."""
        return dict(self)


def documented(cls: type[T]) -> type[T]:
    """Give every field that the dataclass `cls` itself declares a ``help`` made of the docstring under it."""
    own = inspect.get_annotations(cls)
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name in own:
            field.metadata = MappingProxyType(_Metadata(cls, field.name, field.metadata))
    return cls
