"""RUN, --base, --prompt, --weights-dtype: how every verb that uses a trained model names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def opens(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the parameters `run`, `base`, `prompt`, as `open_run` takes them, and that of `rounds`."""
    prompt = click.option(
        "--prompt",
        metavar="NAME",
        help="How to speak to a model that is bound to no format: a prompt format, or '{use: NAME, FIELD: VALUE}'.",
    )
    base = click.option(
        "--base",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Where a run's base model lies now, should it have moved.",
    )
    return click.argument("run", type=click.Path(path_type=Path))(base(prompt(rounds(command))))


def rounds(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the parameter `weights_dtype`, as `medframe.trained.Opened.rounded` takes it."""
    option = click.option(
        "--weights-dtype", type=click.Choice(["int8", "int4"]), help="Round linear layers to so many bits in memory."
    )
    return option(command)
