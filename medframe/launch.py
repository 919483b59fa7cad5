"""The supervisor: starts the processes that train together on this machine, and answers for how they end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from medframe import worker
from medframe.checkpoints import kept

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_GRACE, _GRACE_WHEN_ASKED = 3.0, 60.0
"""Seconds that the others have, once one has ended badly, to end by themselves; after a signal they may be saving."""


def supervise(processes: int, arguments: Sequence[str], out: Path) -> int:
    """Run `medframe ARGUMENTS` in so many processes of one world; the exit code, what went wrong being said.

    None of them outlives this process. What rank 0 prints is seen at once; of the others, what tells why they failed.
    """
    while (spare := os.open(os.devnull, os.O_RDWR)) < 3:
        pass  # where standard input is closed, say, the listener would get its number, and be lost on the way
    os.close(spare)
    with _signals() as asked, tempfile.TemporaryDirectory(prefix="medframe-run-", ignore_cleanup_errors=True) as folder:
        workers: list[_Worker] = []
        try:
            # Bound here and handed on, so that no other run can take the port in between.
            with socket.create_server(("127.0.0.1", 0), backlog=processes * 4) as listener:
                for rank in range(processes):
                    workers.append(_Worker(rank, processes, arguments, Path(folder), listener))
            failed = _wait(workers, asked)
            return _told(failed, asked, out) if failed else 0
        finally:
            for each in workers:
                each.kill()


class _Worker:
    """One of the processes."""

    def __init__(self, rank: int, size: int, arguments: Sequence[str], folder: Path, listener: socket.socket) -> None:
        self.rank = rank
        self.report: worker.Report | None = None
        self.ended_at = 0.0
        self._report_file = worker.report_file(str(folder), str(rank))
        self._held_back: IO[bytes] | None = tempfile.TemporaryFile() if rank else None  # noqa: SIM115 - kept open
        orders = {"parent": os.getpid(), "folder": str(folder), "listener": listener.fileno() if rank == 0 else None}
        environment = {
            "OMP_NUM_THREADS": str(max(1, _cores() // size)),
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            "GLOO_SOCKET_IFNAME": _loopback(),
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(listener.getsockname()[1]),
            "TMPDIR": str(folder),  # what a killed process leaves there goes with it
            worker.VARIABLE: json.dumps(orders),
        }
        # Signals wait until the new process can catch them.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "medframe", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=self._held_back,
                stderr=self._held_back,
                pass_fds=[listener.fileno()] if rank == 0 else [],
                start_new_session=True,  # a Ctrl-C on the terminal comes by the supervisor
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def poll(self) -> int | None:
        """The exit code once the process has ended, and its report has been read."""
        code = self._process.poll()
        if code is not None and not self.ended_at:
            self.ended_at = time.monotonic()
            self._kill_group()  # now, while its number cannot be another's
            with suppress(FileNotFoundError):
                self.report = worker.Report(**json.loads(self._report_file.read_text("utf-8")))
        return code

    def output(self) -> str:
        """The last lines of what was held back."""
        if self._held_back is None:
            return ""
        self._held_back.seek(0)
        lines = self._held_back.read().decode("utf-8", "replace").splitlines()[-20:]
        return "".join(f"rank {self.rank}: {line}\n" for line in lines)

    def send(self, number: int) -> None:
        if self.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End the process, stopped or not, and what it has started."""
        if self.poll() is None:
            self._kill_group()
            self._process.wait()
            self.poll()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def _wait(workers: list[_Worker], asked: list[int]) -> _Worker | None:
    """Wait until all have ended, handing on the signals that this process gets; the one that failed first."""
    handed_on, deadline = 0, None
    while any([each.poll() is None for each in workers]):  # a list: each is to be looked at
        for number in asked[handed_on:]:
            for each in workers:
                each.kill() if handed_on else each.send(number)  # the second time at once
            handed_on += 1
        if deadline is None and any(each.poll() for each in workers):
            deadline = time.monotonic() + (_GRACE_WHEN_ASKED if asked else _GRACE)
        if deadline and time.monotonic() > deadline:
            break
        time.sleep(0.02)
    return min((each for each in workers if each.poll()), key=_order, default=None)


def _order(failed: _Worker) -> tuple[bool, float]:
    """A key by which the one that failed first comes first, and those that it took along after it."""
    if failed.report:
        return failed.report.follows, failed.report.at
    # Of the signals that end a process, an abort alone may come of another's end.
    return False, failed.ended_at if (failed.poll() or 0) >= 0 or failed.poll() == -signal.SIGABRT else 0.0


def _told(failed: _Worker, asked: list[int], out: Path) -> int:
    """Say what made the run fail, unless it has been said; its exit code."""
    report, code = failed.report, failed.poll() or 0
    if report is None and asked:
        report = worker.Report(128 + asked[0], f"Ended at once; {kept(out)}.", False, 0.0)
    if report and not report.said.startswith("Traceback"):
        said = report.said
    elif report:
        said = f"{failed.output()}rank {failed.rank}: {report.said}"
    elif code < 0:
        guess = " (out of memory?)" if code == -signal.SIGKILL else ""
        name = signal.Signals(-code).name
        said = f"{failed.output()}Error: rank {failed.rank} was killed by {name}{guess}; {kept(out)}"
    else:
        said = f"{failed.output()}Error: rank {failed.rank} ended with code {code} and did not say why; {kept(out)}"
    sys.stderr.write(f"{said.rstrip()}\n")
    return report.code if report else 1


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that this process gets meanwhile; they do not end it."""
    asked: list[int] = []
    before = {number: signal.signal(number, lambda number, _: asked.append(number)) for number in _SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _loopback() -> str:
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
