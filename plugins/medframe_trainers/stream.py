"""The micro-batches of a whole training in one sequence, and the share of one process in them."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medframe import Batches

    MicroBatch = dict[str, Any]


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

    def __getitem__(self, number: int) -> MicroBatch:
        epoch, index = self._place(number)
        batch: MicroBatch = epoch[index]
        return batch

    def rows(self, number: int) -> str:
        """The rows that a micro-batch is made of, in words: a file's name, then its lines."""
        epoch, index = self._place(number)
        try:
            places = [str(where).rpartition(":") for where in epoch.where(index)]
        except TypeError:  # of blocks, which begin and end anywhere
            return "a block"
        said, last = "", None
        for file, _, line in places[:8]:
            said += f", {line}" if file == last else f"{', ' if said else ''}{file}:{line}"
            last = file
        return said + (f" and {len(places) - 8} more" if len(places) > 8 else "")

    def _place(self, number: int) -> tuple[Any, int]:
        epoch = bisect.bisect_right(self._starts, number) - 1
        return self._at(epoch), number - self._starts[epoch]

    def _at(self, number: int) -> Any:
        """The epoch; planning one anew for every micro-batch would be slow."""
        if number != self._number:
            self._number, self._epoch = number, self._batches.epoch(number)
        return self._epoch


class Share:
    """What one of several processes trains on: every `world`-th micro-batch, as many as each of the others.

    A step takes `per_step` micro-batches of the stream, whatever the number of processes that share them. Each comes
    with its `number` in the stream; where the stream ends within a step, an idle one stands in, of number -1.
    """

    def __init__(self, stream: Stream, per_step: int, rank: int, world: int) -> None:
        self._stream = stream
        self._rank, self._world = rank, world
        self._steps = math.ceil(len(stream) / per_step)
        self.each = per_step // world
        """Micro-batches of a step for this process."""

    def __len__(self) -> int:
        return self._steps * self.each

    def __getitem__(self, index: int) -> MicroBatch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = index * self._world + self._rank
        if number < len(self._stream):
            return {**self._stream[number], "number": number}
        return {**idle(self._stream[0]), "number": -1}


def shared(epoch: Sequence[MicroBatch], rank: int, world: int) -> Iterator[MicroBatch]:
    """The micro-batches of the epoch that fall to this process; an idle one where others have one more."""
    for number in range(rank, math.ceil(len(epoch) / world) * world, world):
        yield epoch[number] if number < len(epoch) else idle(epoch[0])


def idle(batch: MicroBatch) -> MicroBatch:
    """One token and nothing to learn, laid out as the micro-batch: it takes part, and adds nothing."""
    fill = {"labels": -100, "attention_mask": 1}
    return {name: column[:1, :1].clone().fill_(fill.get(name, 0)) for name, column in batch.items()}
