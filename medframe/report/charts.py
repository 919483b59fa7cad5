"""Charts: where on a plot every line, bar, tick and label stands. The page's template draws them as SVG.

Across the plot and down it go 0 to 1000, whatever its size on the screen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from medframe.report.metrics import Point, Series, points
from medframe.report.scales import Scale, exact, linear, logarithmic
from medframe.report.text import brief, number

SIZE = 1000
GAP = 14
"""Pixels between the labels of two lines, at least."""
DOTTED = 60
"""Up to so many points, each is drawn as a dot."""
BANDS = 3
"""Up to so many lines have bands: those of more would hide each other."""


@dataclass(frozen=True)
class Line:
    """A line as it is drawn."""

    name: str
    color: int
    path: str
    end: float
    """How far down it ends."""
    told: str
    """The line in words."""
    value: str = ""
    """Where it ends, as a number."""
    band: str = ""
    """Around it, from the lowest to the highest of what each point sums up."""
    dots: Sequence[tuple[float, float, str]] = ()
    """Where they are, and what each says."""
    label_at: float | None = None
    """Pixels from the top; None where there is no room."""


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram."""

    x: float
    y: float
    width: float
    height: float
    color: int
    told: str


@dataclass
class Chart:
    """What the template draws; nothing where it has neither lines nor bars."""

    title: str
    unit: str
    axis: Literal["step", "token"]
    """What goes across; the page moves the cursors of all charts of one axis together."""
    height: int
    """Of the plot, in pixels."""
    across: list[tuple[float, str]] = field(default_factory=list)
    """Ticks: where, and what they say."""
    down: list[tuple[float, str]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    keys: list[tuple[int, str]] = field(default_factory=list)
    """Of bars: which color is what."""
    data: str = "[]"
    """For the page's script, as JSON: each line's name and color, and for each point where it is and what it says."""
    notes: list[str] = field(default_factory=list)
    summed: int = 1
    """Most values that one point of a line sums up."""

    def scaled(self, across: Scale, down: Scale) -> None:
        """Put the ticks of these scales on it."""
        self.across = [(across.at(value) * SIZE, across.text(value)) for value in across.ticks]
        self.down = [(SIZE - down.at(value) * SIZE, down.text(value)) for value in down.ticks]

    def spread(self) -> None:
        """Place the labels beside the ends of their lines, none on another; those without room get none."""
        room = self.height // GAP + 1
        order = sorted(self.lines, key=lambda line: line.end)[:room]
        places: list[float] = []
        for line in order:
            wanted = line.end / SIZE * self.height
            places.append(max(wanted, places[-1] + GAP) if places else wanted)
        limit = float(self.height)
        for which in reversed(range(len(places))):
            places[which] = min(places[which], limit)
            limit = places[which] - GAP
        at = dict(zip(map(id, order), places, strict=True))
        if len(self.lines) > room:
            self.notes.append(f"{len(self.lines) - room} lines have no label for want of room")
        self.lines = [replace(line, label_at=at.get(id(line))) for line in self.lines]


def lines(
    title: str,
    unit: str,
    named: Sequence[tuple[str, int, Series]],
    until: int,
    height: int = 170,
    zero: bool = False,
    may_be_log: bool = False,
    most: int = 240,
) -> Chart:
    """A chart of those series (name, color, values by step) that hold anything, over the steps from 0 to `until`.

    Values go by powers of ten where `may_be_log` and they span more than two of them; else evenly, from 0 if `zero`.
    A series of more than `most` values is drawn as that many means, in a band from lowest to highest.
    """
    chart = Chart(title, unit, "step", height)
    named = [(name, color, series) for name, color, series in named if series]
    values = [value for _, _, series in named for _, value in series]
    if not values:
        return chart
    low, high = min(values), max(values)
    if may_be_log and low > 0 and high > 100 * low:
        down = logarithmic(low, high)
        chart.unit = f"{unit}, by powers of ten" if unit else "by powers of ten"
    else:
        down = linear(min(low, 0) if zero else low, high, about=max(3, height // 50))
    across = exact(0, until, about=5)
    chart.scaled(across, down)
    told = []
    for name, color, series in named:
        summed = points(series, most)
        at = [(across.at(p.step) * SIZE, SIZE - down.at(p.mean) * SIZE) for p in summed]
        said = [(round(x), _steps(p), _value(p)) for (x, _), p in zip(at, summed, strict=True)]
        told.append({"n": name, "c": color, "p": said})
        chart.summed = max(chart.summed, math.ceil(len(series) / most))
        line = Line(name, color, path(at), at[-1][1], _told(name, series), brief(series[-1][1]))
        if len(summed) < len(series) and len(named) <= BANDS:
            upper = [(x, SIZE - down.at(p.high) * SIZE) for (x, _), p in zip(at, summed, strict=True)]
            lower = [(x, SIZE - down.at(p.low) * SIZE) for (x, _), p in zip(at, summed, strict=True)]
            line = replace(line, band=f"{path([*upper, *reversed(lower)])}Z")
        elif len(summed) <= DOTTED:
            dots = [(x, y, f"{name}, step {step}: {value}") for (x, y), (_, step, value) in zip(at, said, strict=True)]
            line = replace(line, dots=dots)
        chart.lines.append(line)
    chart.data = json.dumps(told, separators=(",", ":"))
    chart.spread()
    return chart


def path(corners: Sequence[tuple[float, float]]) -> str:
    """The corners as SVG's path data."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)


def _told(name: str, series: Series) -> str:
    (first, begins), (last, ends) = series[0], series[-1]
    lowest = min(series, key=lambda entry: entry[1])
    return (
        f"{name}: {number(begins)} at step {first:,}, {number(ends)} at step {last:,}, "
        f"lowest {number(lowest[1])} at step {lowest[0]:,}"
    )


def _steps(point: Point) -> str:
    return f"{point.first:,}" if point.first == point.last else f"{point.first:,} to {point.last:,}"


def _value(point: Point) -> str:
    if point.first == point.last:
        return number(point.mean)
    return f"{number(point.mean)} ({number(point.low)} to {number(point.high)})"
