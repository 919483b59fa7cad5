"""The checkpoints of a run directory: which there are, which are whole, what a killed save left beside them."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

CONTENTS = "contents.json"
"""The file of a checkpoint that says what else is in it."""


def checkpoints(out: Path) -> list[Path]:
    """Every checkpoint, the oldest first; what was being written when the process was killed has another name."""
    folders = (out / "checkpoints").glob("checkpoint-*")
    return sorted((folder for folder in folders if re.fullmatch(r"checkpoint-\d+", folder.name)), key=step)


def step(checkpoint: Path) -> int:
    """The optimizer step that it was saved at."""
    return int(checkpoint.name.rpartition("-")[2])


def newest(out: Path, say: Callable[[str], None]) -> Path | None:
    """The last checkpoint that is whole; a damaged one is said and passed over."""
    for folder in reversed(checkpoints(out)):
        if (wrong := damage(folder)) is None:
            return folder
        say(f"{folder.name} is damaged and passed over: {wrong}.")
    return None


def kept(out: Path) -> str:
    """What is left of a run that has failed, in words."""
    return "the last whole checkpoint is kept: go on with --resume" if checkpoints(out) else "nothing was saved yet"


def write_contents(folder: Path) -> None:
    """Write down what files the folder holds and how long they are; `damage` looks whether it still does."""
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    (folder / CONTENTS).write_text(json.dumps(sizes), "utf-8")


def damage(folder: Path) -> str | None:
    """What of the checkpoint is not there as it was saved, in words; None when it is whole."""
    try:
        sizes = json.loads((folder / CONTENTS).read_text("utf-8"))
    except (OSError, ValueError):
        return f"{CONTENTS} cannot be read"
    for name, size in sizes.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (folder / name).stat().st_size != size:
            return f"{name} is cut short"
    return None


def beside(final: Path) -> tuple[Path, Path]:
    """Where `saving` writes what will become `final`, and where it puts what was there, for a moment."""
    return final.with_name(f"{final.name}.saving"), final.with_name(f"{final.name}.old")


def put_right(final: Path) -> None:
    """Remove what a save that did not end has left; what it was about to replace is there again."""
    aside, old = beside(final)
    if old.exists() and not final.exists():
        os.replace(old, final)
    for left in (aside, old):
        shutil.rmtree(left, ignore_errors=True)


def put_all_right(out: Path) -> None:
    """`put_right` for all that a trainer saves."""
    halves = [path for ending in ("saving", "old") for path in (out / "checkpoints").glob(f"checkpoint-*.{ending}")]
    for final in {out / "adapter", out / "model", *(path.with_suffix("") for path in halves)}:
        put_right(final)
