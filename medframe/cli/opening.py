"""RUN, --base and --prompt: how every verb that uses a trained model names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def opens(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the parameters `run`, `base` and `prompt`, as `medframe.trained.open_run` takes them."""
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
    return click.argument("run", type=click.Path(path_type=Path))(base(prompt(command)))
