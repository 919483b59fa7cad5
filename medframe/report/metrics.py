"""What a run logged: metrics.jsonl as one series of values by name."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

LARGEST = 1e100
"""Beyond it a value is shown as little as one that is not finite; one as small is shown as 0."""

Series = list[tuple[int, float]]


class Point(NamedTuple):
    """One logged value, or several that follow each other."""

    first: int
    last: int
    """Steps, the same where it is one value."""
    mean: float
    low: float
    high: float
    """Lowest and highest of the values."""

    @property
    def step(self) -> float:
        """Where the point stands: amid its steps."""
        return (self.first + self.last) / 2


@dataclass
class Metrics:
    """The values that can be shown, and what could not be read."""

    series: dict[str, Series] = field(default_factory=dict)
    """By name; steps ascend, and each occurs once: of two values of a step the later counts."""
    lines: int = 0
    damaged: int = 0
    """Lines that are not a JSON object with a step, such as the last one of a run that was killed."""
    not_finite: Counter[str] = field(default_factory=Counter)
    """Values left out, by name."""

    @property
    def last_step(self) -> int:
        """The highest step that was logged; 0 where none was."""
        return max((series[-1][0] for series in self.series.values()), default=0)

    def get(self, name: str) -> Series:
        """The series of this name, empty where nothing was logged under it."""
        return self.series.get(name, [])


def read(file: Path) -> Metrics:
    """What the file holds; nothing where it is missing."""
    found = Metrics()
    if not file.is_file():
        return found
    values: dict[str, dict[int, float]] = {}
    with file.open(encoding="utf-8", errors="replace") as stream:
        for line in filter(str.strip, stream):
            found.lines += 1
            entry = _entry(line)
            if entry is None:
                found.damaged += 1
                continue
            step = entry.pop("step")
            for name, value in entry.items():
                if isinstance(value, bool) or not isinstance(value, int | float):
                    continue
                if not abs(value) < LARGEST:
                    found.not_finite[name] += 1
                else:
                    values.setdefault(name, {})[step] = float(value) if abs(value) * LARGEST > 1 else 0.0
    found.series = {name: sorted(by_step.items()) for name, by_step in values.items()}
    return found


def _entry(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = entry.get("step") if isinstance(entry, dict) else None
    # Beyond 2**53 two steps may be one floating-point number.
    is_step = isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**53
    return dict(entry) if is_step else None


def points(series: Series, most: int) -> list[Point]:
    """At most so many points: where there are more values, each point sums up some that follow each other."""
    per_point = math.ceil(len(series) / most)
    found = []
    for at in range(0, len(series), max(per_point, 1)):
        part = series[at : at + per_point]
        values = [value for _, value in part]
        found.append(Point(part[0][0], part[-1][0], math.fsum(values) / len(values), min(values), max(values)))
    return found
