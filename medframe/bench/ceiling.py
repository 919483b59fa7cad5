"""The most that a device reaches in the product of two large matrices."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_SECONDS = 1.0
"""For each size, at most."""


def ceiling(dtype: str, device: str | None = None) -> float:
    """Operations a second of the fastest of a few sizes, in the precision that the training computes in.

    On the GPU where there is one, unless another `device` is named. In float32 as torch is set to compute it.
    """
    import gc

    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device == "cuda"
    if gpu:
        gc.collect()
        torch.cuda.empty_cache()
    best = 0.0
    for size in (4096, 8192, 12288) if gpu else (512, 1024, 2048):
        one, two = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
        began, rounds = time.perf_counter(), 0
        while rounds < 3 or (rounds < 20 and time.perf_counter() - began < _SECONDS):
            best = max(best, 2 * size**3 / _seconds(one, two))
            rounds += 1
    return best


def _seconds(one: torch.Tensor, two: torch.Tensor) -> float:
    import torch

    synchronise()
    began = time.perf_counter()
    torch.matmul(one, two)
    synchronise()
    return time.perf_counter() - began


def synchronise() -> None:
    """Wait until the GPU has done what it was told, where there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
