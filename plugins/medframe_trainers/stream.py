"""The micro-batches of a whole training in one sequence."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from medframe import Batches

    MicroBatch = dict[str, torch.Tensor]


class Stream:
    """Epoch after epoch, by number: any micro-batch can be the first, so a resumed run reads none before it."""

    def __init__(self, batches: Batches, epochs: float, length: int | None) -> None:
        """`length` micro-batches where it is given, else as many as `epochs` passes hold."""
        self._batches = batches
        self._starts = [0]
        self._number, self._epoch = 0, batches.epoch(0)
        while len(self._starts) <= epochs if length is None else self._starts[-1] < length:
            self._starts.append(self._starts[-1] + len(self._at(len(self._starts) - 1)))
        rest = epochs - (len(self._starts) - 1)
        if length is None and rest > 0:
            length = self._starts[-1] + math.ceil(len(self._at(len(self._starts) - 1)) * rest)
        self._length = self._starts[-1] if length is None else length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> MicroBatch:
        number = bisect.bisect_right(self._starts, index) - 1
        return self._at(number)[index - self._starts[number]]

    def _at(self, number: int) -> Sequence[MicroBatch]:
        """The epoch; planning one anew for every micro-batch would be slow."""
        if number != self._number:
            self._number, self._epoch = number, self._batches.epoch(number)
        return self._epoch
