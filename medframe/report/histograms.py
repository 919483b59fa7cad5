"""Histograms: how many examples are how long, of one run by source, of several runs as shares."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

from medframe.report.charts import SIZE, Bar, Chart, Line, path
from medframe.report.scales import exact, linear

MOST = 48
"""Most bars side by side."""
TITLE = "Length of the training examples"


class Bins:
    """Bins of one width; the last one takes the few examples that are much longer than all others too."""

    def __init__(self, width: int, *counted: Mapping[int, int]) -> None:
        """For counts by where a bin of at most this width begins."""
        counts: Counter[int] = Counter()
        for each in counted:
            counts.update(each)
        beyond, last = counts.total() // 200, max(counts, default=0)
        for start in sorted(counts, reverse=True):
            beyond -= counts[start]
            if beyond < 0:
                # Only where it is worth it.
                last = start if last > 1.5 * start else last
                break
        first = min(counts, default=0)
        first = first if first > 0.4 * last else 0  # short ones missing, their place would be empty
        while last // width - first // width >= MOST:
            width *= 2
        self.width = width
        self.starts = range(first // width * width, last + 1, width)
        self.end = self.starts[-1] + width
        self.longer = sum(count for start, count in counts.items() if start >= self.end)

    def of(self, counts: Mapping[int, int]) -> list[int]:
        """The examples in each bin."""
        found = [0] * len(self.starts)
        for start, count in counts.items():
            found[min((start - self.starts[0]) // self.width, len(found) - 1)] += count
        return found

    def text(self, start: int) -> str:
        """The lengths in the bin, in words."""
        if self.longer and start == self.starts[-1]:
            return f"{start:,} or more"
        return f"{start:,} to {start + self.width - 1:,}" if self.width > 1 else f"{start:,}"


def histogram(width: int, sources: Mapping[str, Mapping[int, int]], height: int) -> Chart:
    """Bars of examples by length, the sources on top of each other."""
    chart = Chart(TITLE, "examples by tokens", "token", height)
    bins = Bins(width, *sources.values())
    columns = {name: bins.of(counts) for name, counts in sources.items()}
    across, down = (
        exact(bins.starts[0], bins.end, about=5),
        linear(0, max(map(sum, zip(*columns.values(), strict=True))), about=3, whole=True),
    )
    chart.scaled(across, down)
    said = []
    for number, start in enumerate(bins.starts):
        where, below = bins.text(start), 0
        for color, (name, counts) in enumerate(columns.items()):
            if count := counts[number]:
                told = f"{where} tokens: {count:,} examples" + (f" of {name}" if len(columns) > 1 else "")
                x, y, wide = across.at(start), 1 - down.at(below + count), bins.width / (bins.end - bins.starts[0])
                bar = Bar((x + 0.06 * wide) * SIZE, y * SIZE, 0.88 * wide * SIZE, down.at(count) * SIZE, color, told)
                chart.bars.append(bar)
                below += count
        middle = round(across.at(start + bins.width / 2) * SIZE)
        said.append((middle, where, f"{below:,}"))
    chart.data = json.dumps([{"n": "examples", "c": 0, "p": said}], separators=(",", ":"))
    chart.keys = list(enumerate(columns)) if len(columns) > 1 else []
    if bins.longer:
        chart.notes.append(f"the last bar also holds {bins.longer:,} longer ones")
    return chart


def shares(named: Sequence[tuple[str, int, int, Mapping[int, int]]], height: int) -> Chart:
    """Outlines of the examples by length, each run's as a share of all it has; named: name, color, width, counts."""
    chart = Chart(TITLE, "share of examples by tokens, %", "token", height)
    if not named:
        return chart
    bins = Bins(max(width for _, _, width, _ in named), *(counts for *_, counts in named))
    columns = [
        (name, color, [100 * n / max(sum(counts.values()), 1) for n in bins.of(counts)])
        for name, color, _, counts in named
    ]
    across, down = (
        exact(bins.starts[0], bins.end, about=5),
        linear(0, max(max(column) for *_, column in columns), about=3),
    )
    chart.scaled(across, down)
    told = []
    for name, color, column in columns:
        steps = list(zip(bins.starts, column, strict=True))
        corners = [
            (across.at(at) * SIZE, SIZE - down.at(share) * SIZE)
            for start, share in steps
            for at in (start, start + bins.width)
        ]
        highest = max(steps, key=lambda step: step[1])
        words = f"{name}: most examples take {bins.text(highest[0])} tokens"
        chart.lines.append(Line(name, color, path(corners), corners[-1][1], words))
        said = [(round(across.at(s + bins.width / 2) * SIZE), bins.text(s), f"{share:.1f} %") for s, share in steps]
        told.append({"n": name, "c": color, "p": said})
    chart.data = json.dumps(told, separators=(",", ":"))
    chart.spread()
    return chart
