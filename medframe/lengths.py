"""How long the training examples of a run are: a few numbers, and counts in bins by source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medframe.batch import Batches

BINS = 256
"""Most bins of a source; their width is a power of two, so that those of two runs can be laid over each other."""


def totals(train: Batches) -> dict[str, Any]:
    """Examples, tokens, supervised tokens, median and longest length, each example counted once whatever its weight."""
    import numpy as np

    together = np.concatenate([s.examples.lengths[s.indices] for s in train.selections])
    return {
        "examples": len(together),
        "tokens": int(together.sum()),
        "supervised": sum(int(s.examples.supervised[s.indices].sum()) for s in train.selections),
        "median": float(np.median(together)),
        "longest": int(together.max()),
    }


def lengths(names: Sequence[str], train: Batches) -> dict[str, Any]:
    """`totals` and the lengths of the training examples, as written to ledger.json under `training`.

    `names` are those of the sources, in the order of the selections. `sources` holds, by name, the examples of each
    bin by the length in tokens at which the bin begins; it ends `width` tokens later.
    """
    import numpy as np

    tokens = [selection.examples.lengths[selection.indices] for selection in train.selections]
    told, width = totals(train), 1
    while told["longest"] // width >= BINS:
        width *= 2
    return {
        **told,
        "width": width,
        "sources": {
            name: {str(int(b) * width): int(n) for b, n in enumerate(np.bincount(each // width)) if n}
            for name, each in zip(names, tokens, strict=True)
        },
    }
