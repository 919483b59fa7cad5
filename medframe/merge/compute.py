"""What adapters make of one tensor, number by number as peft computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medframe.merge.adapter import Change, LowRank, Shift, Whole
from medframe.merge.plan import Output

if TYPE_CHECKING:
    import torch

_BLOCK = 1 << 15
"""Numbers that are added together: torch takes no more threads for so few, and they stay in a processor's cache."""


class Workspace:
    """Memory that is used again for the next tensor: new pages take longer to be given than to be filled."""

    def __init__(self) -> None:
        self._product: torch.Tensor | None = None
        self._weights: list[torch.Tensor | None] = [None, None]

    def product(self, rows: int, columns: int) -> torch.Tensor:
        """A float32 matrix of this size, its content undefined; it is the same memory each time."""
        import torch

        count = rows * columns
        self._product = flat = _enough(self._product, count, torch.float32)
        return flat[:count].view(rows, columns)

    def weight(self, size: int) -> torch.Tensor:
        """So many bytes, their content undefined; the same memory each second time: what came before is in use."""
        import torch

        self._weights.reverse()
        self._weights[0] = flat = _enough(self._weights[0], size, torch.uint8)
        return flat[:size]


def _enough(flat: torch.Tensor | None, count: int, dtype: torch.dtype) -> torch.Tensor:
    import torch

    return flat if flat is not None and len(flat) >= count else torch.empty(count, dtype=dtype)


def merged(output: Output, dtype: torch.dtype, once: bool, space: Workspace) -> tuple[torch.Tensor, bool]:
    """The tensor with all changes applied, in `dtype`; and whether any number of it is another than before.

    It is rounded after every adapter, as peft's `merge_and_unload` in turn does; with `once`, all is summed in float32
    and rounded at the end.
    """
    weight = output.source.read(space).to(dtype)
    before = weight if once else None
    if once:
        weight = weight.float().clone()
    differs = False
    for change in output.changes:
        weight, other = _changed(weight, change, space)
        differs = differs or other
    weight = weight.to(dtype)
    return weight, differs if before is None else _differ(before, weight)


def _changed(weight: torch.Tensor, change: Change, space: Workspace) -> tuple[torch.Tensor, bool]:
    if isinstance(change, Whole):
        whole = change.tensor.read().to(weight.dtype)
        return whole, _differ(weight, whole)
    if isinstance(change, Shift):
        return _added(weight, change.tensor.read().float() * change.scaling)
    delta = _delta(change, space)
    if change.magnitude is not None:
        rescaled = _rescaled(weight, delta, change, change.magnitude.read().float())
        return rescaled, _differ(weight, rescaled)
    return _added(weight, delta.to(weight.dtype) if change.embedding else delta)


def _added(weight: torch.Tensor, delta: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """The weight with the delta added in place, in float32 and then rounded, some rows at a time.

    That is what `weight += delta` comes to, several times as fast.
    """
    differs = False
    rows = max(1, _BLOCK // max(1, weight[0].numel()))
    for start in range(0, len(weight), rows):
        block = weight[start : start + rows]
        total = (block.float() + delta[start : start + rows]).to(block.dtype)
        differs = differs or _differ(block, total)
        block.copy_(total)
    return weight, differs


def _delta(change: LowRank, space: Workspace) -> torch.Tensor:
    """What LoRA adds, in float32: B A alpha / r (arXiv:2106.09685), or with the square root of r (arXiv:2312.03732)."""
    import torch

    a, b = change.a.read().float(), change.b.read().float()
    product = torch.mm(b, a, out=space.product(len(b), a.shape[1]))
    if change.embedding or change.transposed:
        product = product.T
    return product.mul_(change.scaling)


def _rescaled(weight: torch.Tensor, delta: torch.Tensor, change: LowRank, magnitude: torch.Tensor) -> torch.Tensor:
    """DoRA (arXiv:2402.09353): the sum, each of its directions made as long as was learnt."""
    import torch

    columns = change.embedding or change.transposed
    total = weight + delta
    length = torch.linalg.norm(total.T if columns else total, dim=1)
    factor: torch.Tensor = magnitude / length
    return (factor.view(1, -1) if columns else factor.view(-1, 1)).mul(total).to(weight.dtype)


def _differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    import torch

    return not torch.equal(one, other)
