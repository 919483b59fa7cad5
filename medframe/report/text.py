"""Text from anywhere, made fit to be shown on a page; numbers as a reader wants them."""

from __future__ import annotations

import math
import re
from typing import Any
from unicodedata import east_asian_width

_CONTROL = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
# What would reorder the line that it stands in, and what no file can hold in UTF-8.
_CONTROL |= dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)
_CONTROL |= dict.fromkeys([*range(0xD800, 0xE000), 0xFFFE, 0xFFFF], 0xFFFD)


def plain(text: str) -> str:
    """The text with a visible sign in place of each control character but tab and newline."""
    return text.replace("\r\n", "\n").translate(_CONTROL)


def cut(text: str, longest: int) -> str:
    """The text, or its beginning and how many characters follow."""
    return text if len(text) <= longest else f"{text[:longest]} … and {len(text) - longest:,} more characters"


def short(name: str, columns: int) -> str:
    """The name, in at most so many columns of a terminal: a Chinese character takes two."""
    width = 0
    for position, character in enumerate(name):
        width += 2 if east_asian_width(character) in "WF" else 1
        if width > columns:
            return f"{name[: max(position - 1, 1)]}…"
    return name


def number(value: float) -> str:
    """Four significant digits, thousands grouped; very small and very large ones with an exponent."""
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3 or size >= 1e7:
        return _exponent(f"{value:.3e}")
    if size >= 1000:
        return f"{value:,.0f}"
    text = f"{value:.4g}"
    return f"{value:.3f}" if 1 <= size < 10 and value != round(value) else text


def brief(value: float) -> str:
    """As `number`, for where there is little room."""
    return number(float(f"{value:.3g}") if abs(value) < 0.1 else value)


def count(value: int) -> str:
    """A whole number; of a large one, millions."""
    return f"{value:,}" if value < 10_000_000 else f"{value / 1e6:,.1f} M"


def tick(value: float, step: float, largest: float) -> str:
    """A number on an axis whose ticks are `step` apart and go up to `largest`, or as far below zero."""
    if value == 0:
        return "0"
    digits = math.floor(math.log10(step) + 1e-9)
    if largest >= 1e7 or largest < 0.01:
        return _exponent(f"{value:.{max(0, math.floor(math.log10(abs(value)) + 1e-9) - digits)}e}")
    if abs(value) >= 10_000 and step >= 100:
        return f"{value / 1000:,.10g}k"
    return f"{value:,.{max(0, -digits)}f}"


def _exponent(text: str) -> str:
    """1.500e-04 -> 1.5e-4."""
    digits, _, power = text.partition("e")
    return f"{digits.rstrip('0').rstrip('.') if '.' in digits else digits}e{int(power)}"


def shown(value: Any) -> str:
    """A value of a recipe as YAML has it, on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return number(value) if math.isfinite(value) else str(value)
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown(part)}" for key, part in value.items()) + "}"
    return str(value)


_QUOTED = re.compile(r"""(?<!\w)(?:'[^']*'|"[^"]*")(?!\w)""")
_FIELDS = re.compile(r"fields?:? '[^']*'(?:, '[^']*')*")


def reason(text: str) -> str:
    """What a row's fate has in common with others of its kind: numbers out, and quotations that may be a patient's.

    A plugin may quote a row where it says what is wrong with it. Names of fields stay.
    """
    parts, end = [], 0
    for names in _FIELDS.finditer(text):
        parts += [_QUOTED.sub("'…'", text[end : names.start()]), names[0]]
        end = names.end()
    parts.append(_QUOTED.sub("'…'", text[end:]))
    return cut(re.sub(r"\d[\d,.]*\d|\d", "…", "".join(parts)), 160)
