"""ALiBi: attention scores that fall with distance, as Bloom and Baichuan-13B have it (Press et al., 2022)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def slopes(heads: int) -> list[float]:
    """The slope of each head. Beyond a power of two, every other slope of the next power of two follows."""
    power = 2 ** math.floor(math.log2(heads))
    first = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    return first + [2 ** (-8 * (head + 0.5) / power) for head in range(heads - power)]


def biased(allowed: torch.Tensor, slopes: torch.Tensor, offset: int, dtype: torch.dtype) -> torch.Tensor:
    """The additive mask: slope x (key - query) where `allowed`, else the lowest number of `dtype`.

    allowed: bool [batch or 1, 1, queries, keys]; slopes: fp32 [heads]; offset: keys before the first query.
    Returns [batch or 1, heads, queries, keys]. The distance is taken before anything is rounded: slope x key alone,
    as the published code has it, loses the differences between near keys in bfloat16.
    """
    import torch

    queries, keys = allowed.shape[-2:]
    at = offset + torch.arange(queries, device=allowed.device)
    distance = torch.arange(keys, device=allowed.device) - at[:, None]
    # Head by head: all in fp32 at once would take several times the memory of the result, gigabytes at 8192 tokens.
    mask = torch.empty(len(allowed), len(slopes), queries, keys, dtype=dtype, device=allowed.device)
    for head, slope in enumerate(slopes.tolist()):
        mask[:, head] = slope * distance
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)


def dtype_of(hidden: torch.Tensor) -> torch.dtype:
    """The precision that attention computes in; under autocast it is not that of the hidden states.

    A mask in another one would be cast anew in every layer, and each copy kept for the backward pass.
    """
    import torch

    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
