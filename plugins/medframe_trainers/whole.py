"""Parameters with all their elements, also where ZeRO-3 spreads them over processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@contextmanager
def whole(*parameters: torch.Tensor) -> Iterator[None]:
    """Within it, the parameters are whole, for reading; every process must enter it with the same ones."""
    spread = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not spread:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(spread):
        yield


def copied(tensors: Mapping[str, torch.Tensor]) -> Iterable[tuple[str, torch.Tensor]]:
    """(name, whole copy on the CPU) of every tensor, one at a time: all at once, a large model would not fit."""
    for name, tensor in tensors.items():
        with whole(tensor):
            yield name, tensor.detach().to("cpu", copy=True)
