"""Overrides with several values -> the variants of a recipe that are to be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True)
class Variant:
    """One of the recipes that are compared."""

    name: str
    """What sets it apart, such as batching.kind=packed; empty for one alone."""
    overrides: tuple[str, ...]


def variants(overrides: Sequence[str]) -> list[Variant]:
    """One for each way to choose a value of every `KEY=a,b`; commas in brackets, braces or quotes part no values."""
    choices = [_choices(override) for override in overrides]
    compared = [len(choice) > 1 for choice in choices]
    return [
        Variant(" ".join(one for one, several in zip(chosen, compared, strict=True) if several), chosen)
        for chosen in product(*choices)
    ]


def _choices(override: str) -> list[str]:
    key, equals, value = override.partition("=")
    values, depth, quote = [""], 0, ""
    for character in value:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        depth += (character in "[{") - (character in "]}")
        if character == "," and not depth and not quote:
            values.append("")
        else:
            values[-1] += character
    return [f"{key}{equals}{value}" for value in values] if all(values) else [override]
