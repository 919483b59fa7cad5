"""The devices that a training may run on: what they hold, and what they compute at most."""

from __future__ import annotations

import os
from dataclasses import dataclass

REACHED = 0.4
"""The assumed share of the peak that needed operations reach: what a well-run training of some billion parameters

does (Chowdhery et al. 2022, table 3: 46 % at best); `medframe bench` measures it.
"""
FREE = 0.92
"""The share of a device's memory that a training can fill: the rest goes to the driver, and to gaps between tensors."""


@dataclass(frozen=True)
class Device:
    """One device; operations a second of dense matrix products, as the maker publishes them."""

    name: str
    memory: float
    """Bytes."""
    bfloat16: float
    float32: float

    def operations(self, dtype: str) -> float:
        """A second, at the most, in this precision."""
        return self.float32 if dtype == "float32" else self.bfloat16


# From NVIDIA's data sheets and whitepapers (A100, A800, H100 SXM, H200, GA102, Ada); bfloat16 with sums in float32,
# float32 without TF32, which PyTorch does not use unless told.
_GPUS = (
    Device("3090", 24e9, 71e12, 35.6e12),
    Device("4090", 24e9, 165.2e12, 82.6e12),
    Device("a100-40", 40e9, 312e12, 19.5e12),
    Device("a100-80", 80e9, 312e12, 19.5e12),
    Device("a800", 80e9, 312e12, 19.5e12),
    Device("h100", 80e9, 989e12, 67e12),
    Device("h200", 141e9, 989e12, 67e12),
)
NAMES = (*(device.name for device in _GPUS), "cpu")


def gpus() -> tuple[Device, ...]:
    """The GPUs that are known by name, those with least memory first."""
    return _GPUS


def device(name: str) -> Device:
    """The device of this name; `cpu` is this machine's, whose matrix products are measured in some seconds."""
    if name != "cpu":
        return next(device for device in _GPUS if device.name == name)
    from medframe.bench.ceiling import ceiling

    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Device("cpu", memory, ceiling("bfloat16", "cpu"), ceiling("float32", "cpu"))
