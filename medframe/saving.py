"""Folders and files that appear whole or not at all, and what a disk says that takes no more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medframe import world as worlds
from medframe.checkpoints import beside, put_right, write_contents
from medframe.errors import SaveError


@contextmanager
def saving(final: Path, kept: str = "what was there before is kept") -> Iterator[Path]:
    """A folder to fill, the same in every process; it becomes `final` once all have left the block without error.

    `kept` says in a SaveError what there is now.
    """
    world = worlds.current()
    aside, old = beside(final)
    with refusals_told(final, kept):
        try:
            if world.rank == 0:
                put_right(final)  # after a process that was killed
                aside.mkdir(parents=True)
            world.together()
            yield aside
            world.together()
            if world.rank == 0:
                if final.parent.name == "checkpoints":
                    write_contents(aside)
                for file in aside.rglob("*"):
                    _to_disk(file)
                if final.exists():
                    os.replace(final, old)
                os.replace(aside, final)
                _to_disk(final.parent)
            world.together()
        except BaseException:
            world.abandon()  # first: what is removed now may be missed by another process
            raise
        finally:
            if world.rank == 0:
                put_right(final)


def write(file: Path, text: str) -> None:
    """Write the file whole or not at all; SaveError when the disk refuses."""
    aside = file.with_name(f".{file.name}.writing")
    with refusals_told(file, "what was there before is kept"):
        try:
            aside.write_text(text, "utf-8")
            os.replace(aside, file)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def refusals_told(path: Path, kept: str) -> Iterator[None]:
    """Turn the disk's refusal of a write into a SaveError that names the path and says what is kept."""
    try:
        yield
    except SaveError:
        raise
    except Exception as error:
        if reason := _refused(error):
            raise SaveError(f"{path} could not be written: {reason}; {kept}") from error
        raise


def _refused(error: BaseException | None) -> str | None:
    """How the disk refused a write, where that is what went wrong: torch and safetensors have errors of their own."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        text = str(error)
        if any(sign in text for sign in ("No space left", "File too large", "os error")):
            return text.partition("\n")[0]
        if "PytorchStreamWriter" in text or "inline_container" in text:
            return "the disk is full, or refuses more"
        error = error.__context__
    return None


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
