"""The log of a run: metrics.jsonl, and a live line on a terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from medframe.checkpoints import kept
from medframe.saving import refusals_told, write


class RunLog:
    """Appends a line to metrics.jsonl for every call, and redraws one line where standard error is a terminal."""

    def __init__(self, file: Path, after_step: int) -> None:
        """Go on after `after_step`: lines of later steps, which will be trained again, are removed; -1 removes all."""
        self._file = file
        kept = [line for line in _lines(file) if json.loads(line)["step"] <= after_step]
        write(file, "".join(f"{line}\n" for line in kept))
        self.held_out: dict[int, float] = {
            values["step"]: values["held_out_loss"] for values in map(json.loads, kept) if "held_out_loss" in values
        }
        """Step -> held-out loss, so far."""
        self.steps = after_step
        self._live = sys.stderr.isatty()
        self._first: tuple[int, float] | None = None

    def __call__(self, step: int, of: int, values: Mapping[str, float]) -> None:
        with refusals_told(self._file, kept(self._file.parent)), self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **values}) + "\n")
        self.steps = step
        if "held_out_loss" in values:
            self.held_out[step] = values["held_out_loss"]
        if self._live:
            self._draw(step, of, values)

    def before_and_after(self) -> tuple[float | None, float] | None:
        """The held-out loss at step 0, None where nobody measured it or the log was lost, and the last one."""
        return (self.held_out.get(0), self.held_out[max(self.held_out)]) if self.held_out else None

    def close(self) -> None:
        """End the live line."""
        if self._live and self._first:
            sys.stderr.write("\n")
            self._live = False

    def _draw(self, step: int, of: int, values: Mapping[str, float]) -> None:
        now = time.monotonic()
        self._first = self._first or (step, now)
        parts = [f"step {step}/{of}"]
        if "loss" in values:
            parts.append(f"loss {values['loss']:.3f}")
        if self.held_out:
            parts.append(f"held-out {self.held_out[max(self.held_out)]:.3f}")
        if "supervised_tokens_per_second" in values:
            parts.append(f"{values['supervised_tokens_per_second']:,.0f} supervised tokens/s")
        if step > self._first[0]:
            left = (now - self._first[1]) / (step - self._first[0]) * (of - step)
            parts.append(f"{int(left) // 60}:{int(left) % 60:02d} left")
        sys.stderr.write("\r\x1b[K" + "  ".join(parts))
        sys.stderr.flush()


def _lines(file: Path) -> list[str]:
    """The whole lines of the log; a last one cut short by a kill is left out."""
    if not file.is_file():
        return []
    text = file.read_text("utf-8")
    return text[: text.rfind("\n") + 1].splitlines()
