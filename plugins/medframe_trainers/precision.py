"""How fp32 matrices are multiplied: by the way that is quickest here and as accurate as any."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_NAMES = ("highest", "medium")
_ACCURATE = 2e-6
"""Largest error, relative to the largest result, of products over 1024 terms in fp32."""


@contextmanager
def quickest(world: int) -> Iterator[None]:
    """Within it fp32 matrices are multiplied by "medium" precision where a probe shows that to be exact to fp32.

    It allows lower precision; on many CPUs it only chooses another library, whose results are as exact and come in a
    third of the time. The time is not probed: a run that is resumed, on a busier machine perhaps, must take the same
    way. All processes take the same.
    """
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(_NAMES[_agreed(_medium_is_exact(), world)])
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _medium_is_exact() -> bool:
    if torch.accelerator.is_available():
        return False  # a GPU would compute in TF32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, right = torch.randn(512, 1024), torch.randn(512, 1024)
    exact = left.double() @ right.double().T
    torch.set_float32_matmul_precision(_NAMES[True])
    product = torch.nn.functional.linear(left, right)
    return float((product - exact).abs().max() / exact.abs().max()) <= _ACCURATE


def _agreed(exact: bool, world: int) -> bool:
    """Whether it is for all processes."""
    if world == 1:
        return exact
    every = torch.tensor(int(exact))
    torch.distributed.all_reduce(every, torch.distributed.ReduceOp.MIN)
    return bool(every)
