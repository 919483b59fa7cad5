"""Finds the process that keeps the others waiting, and ends the run."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from medframe import worker
from medframe.checkpoints import kept

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

_WAITING = ("torch.distributed", "deepspeed.comm", "medframe.world")
"""Modules that the main thread is in while it waits for other processes."""


class Watch:
    """Two threads of each process: one tells that it lives and how far it is, one judges what the others told.

    Two, because what asks a store that does not answer never comes back. Rank 0 watches all, the others rank 0.
    """

    def __init__(self, rank: int, size: int, store: Store, patience: float, out: Path) -> None:
        """`patience` in seconds; `store` is used by nobody else."""
        self._rank, self._store, self._patience, self._out = rank, store, patience, out
        self._every = min(10.0, max(0.1, patience / 20))
        self._step: int | None = None
        self._progress = 0
        self._parent = os.getppid()
        self._others = {other: _Seen() for other in (range(size) if rank == 0 else (0,))}
        self._news, self._stopped = threading.Event(), threading.Event()
        for work in (self._tell, self._judge):
            threading.Thread(target=work, daemon=True, name=f"medframe{work.__name__}").start()

    def progress(self, step: int) -> None:
        """Note that this process gets on; `step` optimizer steps are done."""
        self._step = step
        self._progress += 1
        self._news.set()

    def stop(self) -> None:
        """Watch no more: each process goes on alone."""
        self._stopped.set()

    def _tell(self) -> None:
        count = 0
        main = threading.main_thread().ident
        while not self._stopped.is_set():
            self._news.wait(self._every)
            self._news.clear()
            count += 1
            frame, waits = sys._current_frames().get(main or 0), False
            while frame and not waits:
                waits = frame.f_globals.get("__name__", "").startswith(_WAITING)
                frame = frame.f_back
            try:
                self._store.set(str(self._rank), json.dumps([count, self._progress, self._step, waits]))
                for other, seen in self._others.items():
                    if self._store.check([str(other)]):
                        seen.update(*json.loads(self._store.get(str(other))))
            except RuntimeError:
                return  # the store is gone with the process that held it, and the judge will say so

    def _judge(self) -> None:
        last = time.monotonic()
        while not self._stopped.wait(self._every):
            if os.getppid() != self._parent:
                os._exit(1)  # the launcher was killed, and nobody would end this process
            if time.monotonic() - last > self._patience / 2:
                for seen in self._others.values():  # it is this process that was stopped
                    seen.answered = seen.moved = time.monotonic()
            last = time.monotonic()
            if said := self._stalled(last):
                worker.tell(1, f"Error: {said} (patience); {kept(self._out)}")
                os._exit(1)

    def _stalled(self, now: float) -> str | None:
        """Who keeps the others waiting, in words."""
        for_ = f"for {self._patience / 60:g} minutes"
        for other, seen in self._others.items():
            if now - seen.answered > self._patience:
                where = "before the first step" if self._step is None else f"after step {self._step}"
                return f"rank {other} has not answered {for_}; the others wait {where}"
        late = any(seen.progress and now - seen.moved > self._patience for seen in self._others.values())
        silent = any(now - seen.answered > 3 * self._every for seen in self._others.values())
        if self._rank or not late or silent:  # of one that is silent more will be known soon
            return None
        steps = {other: -1 if seen.step is None else seen.step for other, seen in self._others.items()}
        behind = [other for other, step in steps.items() if step < max(steps.values())]
        behind = behind or [other for other, seen in self._others.items() if not seen.waits]
        if len(behind) in (0, len(steps)):
            return f"no process has got further than step {max(steps.values())} {for_}"
        ranks = " and ".join(f"rank {other}" for other in behind)
        return f"{ranks} got no further than step {steps[behind[0]]} {for_}; the others wait"


class _Seen:
    """What another process told last, and when."""

    def __init__(self) -> None:
        self.count = self.progress = 0
        self.step: int | None = None
        self.waits = False
        self.answered = self.moved = time.monotonic()

    def update(self, count: int, progress: int, step: int | None, waits: bool) -> None:
        now = time.monotonic()
        if count != self.count:
            self.answered = now
        if progress != self.progress:
            self.moved = now
        self.count, self.progress, self.step, self.waits = count, progress, step, waits
