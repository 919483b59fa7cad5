"""One data section of a recipe: a data set, how much of it is read and how often it is seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from medframe.dataset import BadRow, DatasetSource, Sample


@dataclass(kw_only=True)
class Mix:
    """The frame's own keys in a data section."""

    weight: float = 1.0
    """How often an epoch holds each example; a fraction takes a seeded choice, new each epoch."""
    limit: int | None = None
    """Read no more rows than this."""

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1000:
            raise ValueError(f"weight must be above 0 and at most 1000, not {self.weight}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, not {self.limit}")


@dataclass(frozen=True)
class Source:
    """One data section: a data set, how much of it is read and how often it is seen."""

    name: str
    dataset: DatasetSource
    mix: Mix

    def rows(self) -> Iterable[Sample | BadRow]:
        """The samples and bad rows, no more than the limit."""
        return islice(iter(self.dataset), self.mix.limit)
