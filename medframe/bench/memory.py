"""What a process holds of memory, and its peak: on a GPU what tensors take there, else resident memory.

Resident memory includes what glibc has got back and keeps for the next tensor, which may be half of it, and depends on
sizes and their order. So what is in use is looked at as well.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from contextlib import suppress
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
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


class InUse:
    """The most that is in use at a time, looked at a thousand times a second by a thread of its own.

    Of resident memory, this is what lies in tensors and other objects, without what glibc has got back and keeps.
    """

    def __init__(self) -> None:
        self.peak = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True, name="medframe_in_use")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> int:
        """The peak, in bytes."""
        self._stopped.set()
        self._thread.join()
        return self.peak

    def _look(self) -> None:
        while not self._stopped.wait(0.0005):
            self.peak = max(self.peak, in_use() or 0)


def in_use() -> int | None:
    """Bytes that are in use; None where neither a GPU nor glibc tells."""
    if _on_gpu():
        return now()
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        return None
    library.mallinfo2.restype = _Mallinfo
    found = library.mallinfo2()
    return int(found.uordblks + found.hblkhd)


class _Mallinfo(ctypes.Structure):
    """As malloc.h has it."""

    _fields_ = [  # noqa: RUF012
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


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
