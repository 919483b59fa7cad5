"""The answers that have come so far, on disk beside the output, so that a killed process loses none."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from medframe.errors import DataError, RunError
from medframe.saving import refusals_told

_KEPT = "the answers before it are kept; the same command goes on"


class Journal:
    """OUTPUT.part: first what it is of, then a line for each answer in the order in which they came.

    `output` itself appears when all are there, whole and in the order of the questions.
    """

    def __init__(self, output: Path, of: dict[str, Any], anew: bool = False) -> None:
        """Go on with what lies there, or `anew` without it.

        RunError where it is of other questions, another model or other settings, or where another process writes it.
        """
        self.output = output
        self.part = output.with_name(f"{output.name}.part")
        self._of = of = json.loads(json.dumps(of))  # as it will be read
        self._at: dict[int, int] = {}
        """Where in the file each answer is, by the number of its question."""
        self._synced = time.monotonic()
        try:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.part.open("a+b")
        except OSError as error:
            raise DataError(f"{self.part}: {error.strerror or error}") from None
        self._lock()
        if anew:
            self._file.truncate(0)
        self._file.seek(0)
        head = self._file.readline()
        if head.endswith(b"\n"):
            self._check(head)
            self._read(len(head))
        else:
            self._file.truncate(0)
            self._write({"of": of})

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # what the disk refused has been told
            self._file.close()

    def __contains__(self, number: int) -> bool:
        return number in self._at

    def __len__(self) -> int:
        return len(self._at)

    def add(self, number: int, answer: dict[str, Any]) -> None:
        """Keep the answer to this question; SaveError when the disk refuses."""
        self._at[number] = self._write({"number": number, **answer})

    def finish(self) -> Counter[str]:
        """Write all answers to `output`, in order; the journal is then gone. How many ended how."""
        ended: Counter[str] = Counter()
        aside = self.output.with_name(f".{self.output.name}.writing")
        with refusals_told(self.output, "the answers are kept; the same command goes on"):
            with aside.open("w", encoding="utf-8") as whole:
                for number in sorted(self._at):
                    self._file.seek(self._at[number])
                    answer = json.loads(self._file.readline())
                    del answer["number"]
                    ended[answer.get("finish", "error")] += 1
                    whole.write(json.dumps(answer, ensure_ascii=False) + "\n")
                whole.flush()
                os.fsync(whole.fileno())
            os.replace(aside, self.output)
        self.part.unlink()
        return ended

    def _write(self, value: dict[str, Any]) -> int:
        """Add a line; where it begins."""
        with refusals_told(self.part, _KEPT):
            at = self._file.seek(0, os.SEEK_END)
            self._file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
            if time.monotonic() - self._synced > 1:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        return at

    def _lock(self) -> None:
        """Keep others out until the file is closed, however this process ends."""
        try:
            with suppress(BlockingIOError):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self.part.exists() and self.part.stat().st_ino == os.fstat(self._file.fileno()).st_ino:
                    return  # else whoever had it has just finished
        except OSError:
            return  # a file system without locks
        raise RunError(f"{self.part}: another process is writing answers there")

    def _check(self, head: bytes) -> None:
        try:
            before = json.loads(head)["of"]
        except (ValueError, KeyError, TypeError):
            raise RunError(f"{self.part} holds no answers of medframe; move it away") from None
        if changed := [name for name in self._of if before.get(name) != self._of[name]]:
            raise RunError(
                f"{self.part} holds answers that were begun otherwise: another {' and '.join(changed)}; "
                "--overwrite begins anew"
            )

    def _read(self, at: int) -> None:
        for line in iter(self._file.readline, b""):
            try:
                self._at[json.loads(line)["number"]] = at
            except (ValueError, KeyError, TypeError):
                break  # half a line, of a process that was killed in the middle of it
            if not line.endswith(b"\n"):
                break
            at += len(line)
        self._file.truncate(at)
        self._at = {number: start for number, start in self._at.items() if start < at}
