"""What a process holds of memory, and its peak: on a GPU what tensors take there, else resident memory."""

from __future__ import annotations

import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def now() -> int:
    """Bytes held now."""
    return _cuda("memory_allocated") if _on_gpu() else _status("VmRSS")


def peak() -> int:
    """The most bytes that were held since this process, or the last `restart`, began."""
    # Not getrusage: a process begins with the peak of the one that started it.
    return _cuda("max_memory_allocated") if _on_gpu() else _status("VmHWM")


def restart() -> None:
    """Look for the peak anew from here on; where Linux does not let us, it stays that of the whole process."""
    if _on_gpu():
        import torch

        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def _on_gpu() -> bool:
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
