"""The process that starts those that are measured, gives each its turn, and gathers what they found."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

from medframe.bench.variants import Variant
from medframe.errors import RunError
from medframe.world import LAUNCH

TURNS = "turns"
"""The file in a variant's folder with the port of this machine at which its rank 0 asks for its turns."""


class Failed(RunError):
    """A variant could not be measured; its process has said why."""


def measure(recipe: Path, variants: Sequence[Variant], steps: int, apart: bool) -> list[list[dict[str, Any]]]:
    """What every process of each variant found, by variant and rank.

    A step of each is taken in turn, while the others wait: A B A B ... With `apart`, one variant follows another.
    Failed, with its exit code, where a variant comes to no result.
    """
    with tempfile.TemporaryDirectory(prefix="medframe-bench-", ignore_cleanup_errors=True) as folder:
        found = []
        groups = [[variant] for variant in variants] if apart else [list(variants)]
        for number, group in enumerate(groups):
            with ExitStack() as stack:
                running = []
                for index, variant in enumerate(group):
                    place = Path(folder, f"{number}-{index}")
                    place.mkdir()
                    running.append(stack.enter_context(_Running(recipe, variant, place, steps)))
                _take_turns(running)
                found += [each.found() for each in running]
        return found


def _take_turns(running: list[_Running]) -> None:
    waiting = [each for each in running if each.comes()]  # all of them, before the first is measured
    while waiting:
        waiting = [each for each in waiting if each.goes()]


class _Running:
    """The process, or the processes, of one variant."""

    def __init__(self, recipe: Path, variant: Variant, folder: Path, steps: int) -> None:
        self._variant, self._folder = variant, folder
        # No socket in the folder: its path may be longer than a socket's can be.
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1)
        (folder / TURNS).write_text(str(self._listener.getsockname()[1]))
        self._connection: socket.socket | None = None
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - kept open
        options = ["--steps", str(steps), "--worker", str(folder)]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "medframe", "bench", *options, "--", str(recipe), *variant.overrides],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._said,
            env={name: value for name, value in os.environ.items() if name not in LAUNCH},  # not of a launch around us
            start_new_session=True,  # a Ctrl-C on the terminal comes by way of this process
        )

    def __enter__(self) -> _Running:
        return self

    def __exit__(self, *_: object) -> None:
        # Who waits for a turn hears no signal, but that nobody is there to give one.
        self._listener.close()
        if self._connection:
            self._connection.close()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def comes(self) -> bool:
        """Wait until it is ready for its first turn; whether it is, or has ended."""
        self._listener.settimeout(0.2)
        while self._process.poll() is None:
            with suppress(TimeoutError):
                self._connection, _ = self._listener.accept()
                return self._stops()
        self._check()
        return False

    def goes(self) -> bool:
        """Let it take a step; whether it then waits for another turn."""
        assert self._connection
        self._connection.sendall(b".")
        return self._stops()

    def _stops(self) -> bool:
        assert self._connection
        try:
            if self._connection.recv(1):
                return True
        except ConnectionError:
            pass
        self._process.wait()  # it has hung up: it is at its end
        self._check()
        return False

    def _check(self) -> None:
        code = self._process.wait()
        if code == 0:
            return
        self._said.seek(0)
        said = self._said.read().decode("utf-8", "replace").strip()
        if code < 0:
            guess = " (out of memory?)" if code == -signal.SIGKILL else ""
            said += f"\nError: was killed by {signal.Signals(-code).name}{guess}"
        where = f"{self._variant.name}: " if self._variant.name else ""
        # What libraries said before is of no use to anybody; a bug's traceback is.
        _, *errors = f"\n{said}".split("\nError: ")
        if not errors or "Traceback (most recent call last)" in said:
            errors = [f"ended with code {code}:\n{said}"]
        failed = Failed(*(f"{where}{error}" for error in errors))
        failed.exit_code = code if code > 0 else 1
        raise failed

    def found(self) -> list[dict[str, Any]]:
        """What each rank has found."""
        files = sorted(self._folder.glob("rank-*.json"), key=lambda file: int(file.stem.removeprefix("rank-")))
        return [json.loads(file.read_text("utf-8")) for file in files]
