"""Scales: the numbers along one side of a plot, and the round ones that are written there."""

from __future__ import annotations

import math
from dataclasses import dataclass

from medframe.report.text import tick


@dataclass(frozen=True)
class Scale:
    """Numbers from `low` to `high`."""

    low: float
    high: float
    ticks: list[float]
    step: float
    """Between two ticks, for their digits."""
    log: bool = False

    def at(self, value: float) -> float:
        """Where the value stands, 0 to 1; one that rounding has put beyond an end stands there."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def text(self, value: float) -> str:
        """What a tick says."""
        if self.log:
            return tick(value, 10.0 ** math.floor(math.log10(value) + 1e-9), value)
        return tick(value, self.step, max(abs(self.low), abs(self.high)))


def linear(low: float, high: float, about: int, whole: bool = False) -> Scale:
    """From a round number below `low` to one above `high`; `whole` has no ticks between whole numbers."""
    if high - low <= abs(high) * 1e-9:
        low, high = (0.0, high) if high > 0 else (low, 0.0) if low < 0 else (0.0, 1.0)
    step = _round((high - low) / about)
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Scale(first * step, last * step, [n * step for n in range(first, last + 1)], step)


def exact(low: int, high: int, about: int) -> Scale:
    """Whole numbers from `low` to `high` and no further, ticks at round ones and, where there is room, at the end."""
    high = max(high, low + 1)
    inner = linear(low, high, about, whole=True)
    ticks = [value for value in inner.ticks if low <= value <= high]
    if high - ticks[-1] > 0.4 * inner.step:
        ticks.append(high)
    return Scale(low, high, ticks, inner.step)


def logarithmic(low: float, high: float) -> Scale:
    """By powers of ten; the ticks lie at 1, 2 and 5 times them, or at fewer where there are many."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    marks = (1, 2, 5) if last - first <= 2 else (1,)
    every = math.ceil((last - first) / 6)
    ticks = [mark * 10.0**power for power in range(first, last + every, every) for mark in marks]
    below = max(value for value in ticks if value <= low * (1 + 1e-9))
    above = min(value for value in ticks if value >= high * (1 - 1e-9))
    return Scale(below, above, [value for value in ticks if below <= value <= above], 0.0, log=True)


def _round(size: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not below the size."""
    power = 10.0 ** math.floor(math.log10(size))
    return next(mark * power for mark in (1, 2, 5, 10) if mark * power >= size * (1 - 1e-9))
