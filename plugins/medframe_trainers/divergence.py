"""Ends a training that has gone wrong, and says at which rows."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable

from medframe import ProofError

_STEPS = 3
"""Steps running that a gradient must be out of proportion: one strange micro-batch is clipped and forgotten."""


class Divergence:
    """The gradient norms of the last steps, and what a step may not do."""

    def __init__(self, growth: float | None, scaled: bool) -> None:
        """`growth`: how many times the usual gradient norm is too much; None: any is allowed.

        `scaled`: the loss is scaled for float16, where a gradient may overflow now and then, and the step is left out.
        """
        self._growth, self._scaled = growth, scaled
        self._norms: deque[float] = deque(maxlen=100)
        self._strange = 0

    def step(self, step: int, loss: float, norm: float | None, rows: Callable[[bool], str]) -> None:
        """ProofError when the loss or the gradient is not finite, or the gradient has exploded.

        `rows(broken)` names the rows of the step, or only those of micro-batches whose loss is not finite.
        """
        if not math.isfinite(loss):
            raise ProofError(f"the loss is not finite at step {step}, {rows(True)}: {_ADVICE}")
        if norm is None or (self._scaled and not math.isfinite(norm)):
            return
        if not math.isfinite(norm):
            raise ProofError(f"the gradient is not finite at step {step}, {rows(False)}: {_ADVICE}")
        usual = statistics.median(self._norms) if len(self._norms) >= 10 else math.inf
        if self._growth is not None and norm > self._growth * usual:
            self._strange += 1
        else:
            self._strange = 0
            self._norms.append(norm)
        if self._strange == _STEPS:
            raise ProofError(
                f"the gradient has exploded: its norm is {norm:.3g} at step {step}, {norm / usual:,.0f} times the "
                f"usual {usual:.3g}, for {_STEPS} steps running, {rows(False)}: {_ADVICE}"
            )


_ADVICE = "the training has diverged; the last checkpoint is kept. A lower learning_rate or more warm-up may help"
