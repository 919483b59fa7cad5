"""RECIPE and KEY=VALUE arguments -> a composed recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from medframe.compose import Composed


def composed(recipe: str | Path, overrides: Sequence[str]) -> Composed:
    """The recipe, a file or a name, composed with the overrides."""
    from medframe.compose import compose

    return compose(recipe if isinstance(recipe, Path) else found(recipe), overrides)


def found(recipe: str) -> Path:
    """The recipe's file here or, said on standard error, among the shipped ones."""
    from medframe import shipped

    file, is_shipped = shipped.find(recipe)
    if is_shipped:
        click.echo(f"{recipe} is not here; using the shipped recipe {file}", err=True)
    return file
