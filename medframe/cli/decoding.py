"""--preset, --temperature, ...: how every verb that answers is told to decode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from medframe.decoding import Decoding

_OPTIONS = (
    click.option("--preset", metavar="NAME", help="As published: chatmed, bentsao, disc, or another shipped recipe."),
    click.option("--max-new-tokens", type=int, help="Longest answer."),
    click.option("--temperature", type=float, help="0: the likeliest token each time; above, tokens are drawn."),
    click.option("--top-k", type=int, help="Draw among so many of the likeliest."),
    click.option("--top-p", type=float, help="Draw among the likeliest that have this probability together."),
    click.option("--repetition-penalty", type=float, help="Above 1: what is there already comes less often."),
    click.option("--num-beams", type=int, help="Follow so many answers at a time, and take the likeliest."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer at this text; may be repeated."),
)


def decodes(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options, of which `chosen` makes what is to be done."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def chosen(usual: Decoding, preset: str | None, stop: tuple[str, ...], **given: Any) -> Decoding:
    """The model's usual decoding, or the preset's, with what was given on the command line in its place.

    RecipeError for a preset that is not known, click's BadParameter for a value that cannot be.
    """
    from medframe.decoding import Decoding
    from medframe.decoding import preset as published

    decoding = published(preset) if preset else usual
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if stop:
        values["stop"] = stop
    assert values.keys() <= {f.name for f in fields(Decoding)}
    if values.get("temperature") and "num_beams" not in values:
        values["num_beams"] = 1  # one of them is meant, and it is the one that was typed
    if values.get("num_beams", 1) > 1 and "temperature" not in values:
        values["temperature"] = 0.0
    try:
        return replace(decoding, **values)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
