"""Where medframe keeps what can be made again: encoded examples and tiny models."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def folder() -> Path:
    """MEDFRAME_CACHE, else medframe in the user's cache directory."""
    if own := os.environ.get("MEDFRAME_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "medframe"


def made(name: str, make: Callable[[Path], None]) -> Path:
    """The cached directory `name`, made by `make(directory)` when it is not there.

    It appears whole or not at all: it is built aside under a lock and renamed.
    """
    final = folder() / name
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{final}.lock"):
        if final.is_dir():
            return final
        aside = final.with_name(f"{final.name}.making")
        shutil.rmtree(aside, ignore_errors=True)  # left by a process that was killed
        aside.mkdir()
        try:
            make(aside)
            os.replace(aside, final)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return final
