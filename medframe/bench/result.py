"""What was measured of a variant, in the numbers that one compares."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medframe.flops import Load, Work


@dataclass(frozen=True, kw_only=True)
class Result:
    """A variant, measured; memory in bytes, of the process that took most."""

    name: str
    kind: str
    """How it was batched, which `auto` decides."""
    reason: str | None
    """Why `auto` pads, where it does."""
    device: str
    dtype: str
    processes: int
    warm_up: int
    """Steps before those that count."""
    steps: int
    step_seconds: float
    """The median."""
    fastest: float
    slowest: float
    tokens_per_step: float
    tokens_per_second: float
    """Real ones, without padding."""
    supervised_tokens_per_second: float
    padding: float
    """Share of the slots that holds nothing."""
    loading: int
    """The most that was held until the model was loaded and proven to keep samples apart."""
    peak: int
    """The most that the process held in training: on a GPU as `tensors`, else resident memory, with the libraries."""
    tensors: int | None
    """The most that they took in one further step; None where the training ended too soon to count them."""
    needed: float | None
    """Operations that a step needs; None where the trainer or the model does not tell."""
    ceiling: float
    """Operations a second of a large matrix product, in the same run."""
    whole: int | None
    """Optimizer steps of the whole training."""

    @staticmethod
    def of(name: str, ranks: Sequence[dict[str, Any]], warm_up: int) -> Result:
        """Of what all ranks of a variant found; the first `warm_up` steps do not count, where there are more."""
        first = ranks[0]
        turns = first["steps"]
        count = len(turns) - 1 if len(turns) <= warm_up else warm_up
        loads = [Load(**turn["load"]) for rank in ranks for turn in rank["steps"][count:]]
        load = sum(loads, Load())
        seconds = [turn["seconds"] / turn["steps"] for turn in turns[count:]]
        steps = sum(turn["steps"] for turn in turns[count:])
        total = sum(turn["seconds"] for turn in turns[count:])
        return Result(
            name=name,
            kind=first["kind"],
            reason=first["reason"],
            device=first["device"],
            dtype=first["dtype"],
            processes=len(ranks),
            warm_up=sum(turn["steps"] for turn in turns[:count]),
            steps=steps,
            step_seconds=statistics.median(seconds),
            fastest=min(seconds),
            slowest=max(seconds),
            tokens_per_step=load.tokens / steps,
            tokens_per_second=load.tokens / total,
            supervised_tokens_per_second=load.supervised / total,
            padding=load.padding,
            loading=max(rank["loading"] for rank in ranks),
            peak=max(rank["peak"] for rank in ranks),
            tensors=max((rank["tensors"] for rank in ranks if rank["tensors"]), default=None),
            needed=sum(Work(**work).of(load) for work in first["work"]) / steps if first["work"] else None,
            ceiling=first["ceiling"],
            whole=first["whole"],
        )

    @property
    def reached(self) -> float:
        """Needed operations a second, of all processes together."""
        return (self.needed or 0) * self.tokens_per_second / self.tokens_per_step

    @property
    def share(self) -> float:
        """The share that the needed operations reach of what the matrix products of all processes would."""
        return self.reached / (self.ceiling * self.processes)

    @property
    def hours(self) -> float:
        """Of the whole training, without held-out losses and checkpoints."""
        return (self.whole or 0) * self.tokens_per_step / self.tokens_per_second / 3600

    def ratio(self, other: Result) -> float:
        """How many times as many tokens as another variant in the same time."""
        return self.tokens_per_second / other.tokens_per_second
