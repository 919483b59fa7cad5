"""A process that another one of medframe's has started: it ends with its parent, and tells it how it ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "MEDFRAME_WORKER"
"""The environment variable by which the supervisor tells a worker of its `Orders`."""


@dataclass(frozen=True)
class Orders:
    """What the supervisor tells a worker."""

    parent: int
    """The supervisor's process id."""
    folder: str
    """Temporary folder of the run, for the reports too; nobody needs it after the run."""
    listener: int | None
    """Rank 0's: descriptor of the socket at MASTER_PORT."""


@dataclass(frozen=True)
class Report:
    """How a worker ends, as it tells the supervisor."""

    code: int
    """The exit code."""
    said: str
    """Why, for the user."""
    follows: bool
    """Whether it only ends because another has failed, which says what really happened."""
    at: float
    """By time.monotonic, which is the same for all processes of a machine."""


_orders: Orders | None = None


def start() -> None:
    """Follow the supervisor's orders, if one has started this process: from now on it ends with it."""
    global _orders
    if given := os.environ.pop(VARIABLE, None):  # what this process starts is no worker
        _orders = Orders(**json.loads(given))
        end_with(_orders.parent, _orders.folder)
        # Held back while this process started: nothing could have caught them.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})


def is_supervised() -> bool:
    """Whether a supervisor of medframe has started this process."""
    return _orders is not None


def listener() -> int | None:
    """The descriptor of the socket that rank 0 listens on, where a supervisor has opened it."""
    return _orders.listener if _orders else None


def report_file(folder: str, rank: str) -> Path:
    """Where a worker leaves its Report, as JSON."""
    return Path(folder) / f"report-{rank}.json"


def tell(code: int, said: str, follows: bool = False) -> None:
    """Say why this process ends with `code`: to the supervisor, else on standard error.

    `follows`: another process failed first, and says what really happened.
    """
    if not said:
        return
    rank = os.environ.get("RANK", "0")
    if _orders:
        if os.getppid() != _orders.parent:
            return  # the supervisor was killed, and this process only ends with it
        file = report_file(_orders.folder, rank)
        with suppress(OSError):
            text = json.dumps(asdict(Report(code, said, follows, time.monotonic())))
            file.with_suffix(".writing").write_text(text, "utf-8")
            os.replace(file.with_suffix(".writing"), file)
            return
    where = f"rank {rank}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    said = "ends because another process has ended" if follows else said
    with suppress(OSError):
        sys.stderr.write("".join(f"{where}{line}\n" for line in said.splitlines()))
        sys.stderr.flush()


def end_with(parent: int, folder: str | None = None) -> None:
    """Have this process end when its parent has gone, killed perhaps; `folder` goes with it."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(0.3)
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=look, daemon=True, name="medframe_end_with").start()
