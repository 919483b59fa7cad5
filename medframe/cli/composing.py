"""RECIPE and KEY=VALUE arguments -> a composed recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from medframe.compose import Composed


def composed(recipe: str, overrides: Sequence[str]) -> Composed:
    """The recipe, from here or, said on standard error, from among the shipped ones."""
    from medframe import shipped
    from medframe.compose import compose

    file, is_shipped = shipped.find(recipe)
    if is_shipped:
        click.echo(f"{recipe} is not here; using the shipped recipe {file}", err=True)
    return compose(file, overrides)
