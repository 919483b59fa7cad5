"""What runs are called where several are side by side: no two alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medframe.report.text import short


def labels(folders: Sequence[Path]) -> list[str]:
    """The name of each directory; of those that share it, as much of the path as tells them apart."""
    parts = [folder.resolve().parts for folder in folders]
    found = []
    for mine in parts:
        length = 1
        while length < len(mine) and sum(other[-length:] == mine[-length:] for other in parts) > 1:
            length += 1
        found.append("/".join(mine[-length:]))
    return found


def shorter(names: Sequence[str], columns: int = 10) -> list[str]:
    """For beside a line: the names cut short, less what all begin with where that leaves them alike, else numbered."""
    cut = [short(name, columns) for name in names]
    if len(set(cut)) < len(cut):
        common = next((at for at, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1), 0)
        cut = [f"…{short(name[common:], columns - 1)}" for name in names]
    if len(set(cut)) < len(cut):
        cut = [f"{number} {short(name, columns - 2)}" for number, name in enumerate(names, 1)]
    return cut
