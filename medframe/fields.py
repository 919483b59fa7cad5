"""What a recipe section may hold: each field's name, type, default and meaning."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Field:
    """One field of a component, as a reader of recipes sees it."""

    name: str
    type: str
    default: Any
    meaning: str


def fields_of(cls: type) -> list[Field]:
    """The fields of a dataclass in recipe order; the meaning is the string below the field in the source."""
    meanings = {name: text for base in reversed(cls.__mro__) for name, text in _docstrings(base).items()}
    return [Field(f.name, _type_name(f.type), _default(f), meanings.get(f.name, "")) for f in dataclasses.fields(cls)]


def _default(f: dataclasses.Field[Any]) -> Any:
    if f.default_factory is not dataclasses.MISSING:
        return f.default_factory()
    return "???" if f.default is dataclasses.MISSING else f.default


def _type_name(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _docstrings(cls: type) -> dict[str, str]:
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return {}
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    found = {}
    for statement, following in itertools.pairwise(body):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            found[statement.target.id] = inspect.cleandoc(following.value.value)
    return found
