"""The checkpoints of a run directory: which there are, which are whole, what a killed save left beside them."""

from __future__ import annotations

import hashlib
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
    """Write down what files the folder holds, and how they look; `damage` looks whether they still do."""
    found = {str(file.relative_to(folder)): _look(file) for file in folder.rglob("*") if file.is_file()}
    (folder / CONTENTS).write_text(json.dumps(found), "utf-8")


def damage(folder: Path) -> str | None:
    """What of the checkpoint is not there as it was saved, in words; None when it is whole."""
    try:
        found = json.loads((folder / CONTENTS).read_text("utf-8"))
        looks = {name: (int(size), str(digest)) for name, (size, digest) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return f"{CONTENTS} cannot be read"
    for name, look in looks.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (folder / name).stat().st_size != look[0]:
            return f"{name} is cut short"
        if _look(folder / name) != look:
            return f"{name} is not as it was written"
    return None


def _look(file: Path) -> tuple[int, str]:
    """The file's length, and a digest of it; of a large one, of pieces all over it: the whole would take long."""
    size, digest = file.stat().st_size, hashlib.sha256()
    with file.open("rb") as stream:
        if size <= 64 << 20:
            digest.update(stream.read())
        else:
            for piece in range(1024):
                stream.seek((size - 4096) * piece // 1023)
                digest.update(stream.read(4096))
    return size, digest.hexdigest()[:16]


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
