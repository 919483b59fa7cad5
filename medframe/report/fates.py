"""What became of rows that were not simply kept, counted by reason."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from medframe.ledger import Entry
from medframe.report.text import reason

PLACES = 4
"""Rows named of each reason."""
REASONS = 12
"""Reasons told of each source."""


@dataclass
class Fate:
    """Rows with one fate for one reason."""

    fate: str
    why: str
    count: int = 0
    lost: int = 0
    """Supervised tokens."""
    places: list[str] = field(default_factory=list)
    """The first of them: file and line."""


def fates(entries: Sequence[Entry]) -> tuple[list[Fate], int]:
    """The most frequent reasons, and the rows that have another."""
    found: dict[tuple[str, str], Fate] = {}
    folder = _folder(entries)
    for entry in entries:
        why = reason(entry.why)
        fate = found.setdefault((entry.fate, why), Fate(entry.fate, why))
        fate.count += 1
        fate.lost += entry.lost
        if len(fate.places) < PLACES:
            fate.places.append(str(entry.where).removeprefix(folder))
    ordered = sorted(found.values(), key=lambda fate: -fate.count)
    return ordered[:REASONS], sum(fate.count for fate in ordered[REASONS:])


def _folder(entries: Sequence[Entry]) -> str:
    """The folder that all files lie in, which need not be said each time."""
    files = {entry.file for entry in entries}
    try:
        folder = os.path.commonpath([os.path.dirname(file) for file in files]) if files else ""
    except ValueError:  # some absolute, some not
        return ""
    return folder and f"{folder.rstrip(os.sep)}{os.sep}"
