"""What the processes of a run must agree on before they train together."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medframe import world as worlds
from medframe.errors import RunError


def check_agreed(description: Mapping[str, Any]) -> None:
    """RunError unless every process has the data, tokenizer, prompt format and base model that rank 0 has."""
    mine = {
        "data": [source["encoded"] for source in description["data"]],
        "tokenizer": description["tokenizer"],
        "prompt format": description["prompt"]["fingerprint"],
        "base model": description["base"]["fingerprint"],
    }
    first, *others = worlds.current().gather(mine)
    for rank, theirs in enumerate(others, 1):
        if apart := [name for name, value in first.items() if theirs[name] != value]:
            raise RunError(
                f"rank {rank} has another {' and another '.join(apart)} than rank 0: every process must read the same"
            )


def check_shared(out: Path) -> None:
    """RunError in a process for which `out` is not the directory that rank 0 has made ready."""
    file = out / "manifest.json"
    expected = worlds.current().share(_digest(file))
    deadline = time.monotonic() + 10
    while _digest(file) != expected:  # a file system of the network may take a moment
        if time.monotonic() > deadline:
            raise RunError(
                f"out: {out} is another directory on {platform.node()} than for rank 0; name one that all share"
            )
        time.sleep(0.5)


def _digest(file: Path) -> str | None:
    if not file.parent.is_dir() or file.name not in os.listdir(file.parent):  # listing it asks the server
        return None
    return hashlib.sha256(file.read_bytes()).hexdigest()
