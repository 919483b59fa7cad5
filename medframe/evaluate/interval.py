"""How sure a mean loss is: resampling of the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medframe.evaluate.loss import Losses

METHOD = "95 %, percentile bootstrap over rows, 10,000 resamples, seed 0"
_RESAMPLES = 10_000
_AT_A_TIME = 1 << 22
"""Row numbers that are drawn together."""


def interval(losses: Losses, minus: Losses | None = None) -> tuple[float, float]:
    """The 95 % interval of the loss per supervised token, or of how much it is less than that of `minus`.

    The rows are drawn with replacement, each with all its tokens: tokens of one answer are not independent (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993). A difference is taken within each draw, so that what is hard
    for both models does not count. It covers which rows were chosen, not how the training went.
    """
    import numpy as np

    means: list[NDArray[np.float64]] = []
    rows = len(losses.tokens)
    random = np.random.RandomState(0)
    left = _RESAMPLES
    while left:
        draws = min(left, max(1, _AT_A_TIME // rows))
        drawn = random.randint(0, rows, (draws, rows))
        mean = losses.sums[drawn].sum(1) / losses.tokens[drawn].sum(1)
        if minus is not None:
            mean = minus.sums[drawn].sum(1) / minus.tokens[drawn].sum(1) - mean
        means.append(mean)
        left -= draws
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)
