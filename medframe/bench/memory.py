"""The peak of a process's memory: on a GPU of what tensors take there, else of resident memory.

Resident memory includes the libraries, what they keep for the next product of the same shape, and what glibc has got
back and keeps for the next tensor, which may be half of it.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak() -> int:
    """The most bytes that were held since this process, or the last `restart`, began."""
    # Not getrusage: a process begins with the peak of the one that started it.
    return _cuda("max_memory_allocated") if on_gpu() else _status("VmHWM")


def restart() -> None:
    """Look for the peak anew from here on; where Linux does not let us, it stays that of the whole process."""
    if on_gpu():
        import torch

        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def on_gpu() -> bool:
    """Whether tensors of the training lie on one."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_available()


def _cuda(name: str) -> int:
    import torch

    return int(getattr(torch.cuda, name)())


def _status(name: str) -> int:
    """A line of /proc/self/status; 0 on a system that has none."""
    if not _STATUS.exists():
        return 0
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
