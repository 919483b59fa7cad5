"""The loss of a model on examples, one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from medframe.batch import Batches

_LOGITS = 1 << 28
"""Numbers that the logits of a micro-batch may have at most, should every one of its tokens be supervised: 1 GB."""
_ROWS = 256
"""Rows of logits that are taken together, in float32."""


@dataclass(frozen=True)
class Losses:
    """What a model loses, row of the data by row: examples of one row, such as its windows, are one."""

    sums: NDArray[np.float64]
    """The negative log-likelihood of the row's supervised tokens, in nats."""
    tokens: NDArray[np.int64]
    """How many these are."""

    @property
    def mean(self) -> float:
        """The loss per supervised token."""
        return float(self.sums.sum() / self.tokens.sum())


def tokens_at_a_time(vocabulary: int, longest: int) -> int:
    """How many tokens a micro-batch may have, so that their logits fit."""
    return max(longest, min(8192, _LOGITS // vocabulary))


def losses(model: Any, batches: Batches, done: Callable[[int], None]) -> Losses:
    """The losses of the model, on its device, on every example of the batches.

    `done` is told of the examples of every micro-batch. Packed samples are kept apart as in training, and where that
    cannot be proven of this model they are padded.
    """
    import numpy as np
    import torch

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    batches.suit(inner)
    epoch = batches.epoch(0)
    rows: dict[str, int] = {}
    number, sums, tokens = [], [], []
    device = next(inner.parameters()).device
    with torch.inference_mode():
        for index in range(len(epoch)):
            places = epoch.where(index)
            batch = {name: tensor.to(device) for name, tensor in epoch[index].items()}
            of_sample, counts = _of_samples(inner.eval(), batch, len(places))
            number += [rows.setdefault(str(place), len(rows)) for place in places]
            sums.append(of_sample)
            tokens.append(counts)
            done(len(places))
    total: NDArray[np.float64] = np.bincount(number, np.concatenate(sums), len(rows)).astype(np.float64)
    counts_: NDArray[np.float64] = np.bincount(number, np.concatenate(tokens), len(rows)).astype(np.float64)
    return Losses(total, counts_.astype(np.int64))


def _of_samples(model: Any, batch: dict[str, torch.Tensor], count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The summed loss, float64, and the supervised tokens of each sample of a micro-batch, packed or padded."""
    import torch

    labels = batch.pop("labels")
    wanted = labels[:, 1:] != -100
    keep = torch.zeros_like(labels, dtype=torch.bool)
    keep[:, :-1] = wanted
    # With a cache, transformers does not look at the positions of a packed row for borders.
    logits = model(**batch, logits_to_keep=keep, use_cache=False).logits
    if logits.shape[:2] == keep.shape:  # a model without logits_to_keep computes them all
        logits = logits[keep]
    targets = labels[:, 1:][wanted]
    each = [
        torch.nn.functional.cross_entropy(part.float(), target, reduction="none")
        for part, target in zip(logits.view(-1, logits.shape[-1]).split(_ROWS), targets.split(_ROWS), strict=True)
    ]
    if "position_ids" in batch:  # a sample begins where positions do
        sample = (batch["position_ids"] == 0).cumsum(-1) - 1
    else:
        sample = torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)
    of = sample[:, 1:][wanted].cpu()
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, of, torch.cat(each).cpu().double())
    return sums.numpy(), torch.bincount(of, minlength=count).numpy()
