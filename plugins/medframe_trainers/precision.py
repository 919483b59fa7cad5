"""How fp32 matrices are multiplied: by the way that is quickest here and as accurate as any."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_NAMES = ("highest", "medium")
_ACCURATE = 2e-6
"""Largest error, relative to the largest result, of products over 1024 terms in fp32."""
_GAIN = 1.3
"""By how much the other way must be quicker: far more than noise."""


@contextmanager
def quickest(world: int) -> Iterator[None]:
    """Within it fp32 matrices are multiplied the quickest way that a probe shows to be accurate to fp32.

    "medium" allows lower precision; on many CPUs it only chooses another library, whose results are as exact and come
    in half the time. All processes take the same way.
    """
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(_NAMES[_agreed(_medium_pays(), world)])
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _medium_pays() -> bool:
    if torch.accelerator.is_available():
        return False  # a GPU would compute in TF32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, right = torch.randn(512, 1024), torch.randn(512, 1024)
    exact = left.double() @ right.double().T
    times = {}
    for name in _NAMES:
        torch.set_float32_matmul_precision(name)
        error = float((torch.nn.functional.linear(left, right) - exact).abs().max() / exact.abs().max())
        if error > _ACCURATE:
            return False
        times[name] = min(_seconds(left, right) for _ in range(7))
    return times["highest"] > _GAIN * times["medium"]


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    began = time.perf_counter()
    torch.nn.functional.linear(left, right)
    return time.perf_counter() - began


def _agreed(pays: bool, world: int) -> bool:
    """Whether it does for all processes."""
    if world == 1:
        return pays
    every = torch.tensor(int(pays))
    torch.distributed.all_reduce(every, torch.distributed.ReduceOp.MIN)
    return bool(every)
