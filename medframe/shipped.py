"""The recipes that come with medframe, in a checkout or installed from a wheel."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import medframe


def recipes() -> dict[str, Path]:
    """Name -> file of every shipped recipe; what they include lies in `base` beside them."""
    return {file.stem: file for file in sorted(_folder().glob("*.yaml"))}


def find(recipe: str) -> tuple[Path, bool]:
    """The file that RECIPE names, and whether it is a shipped one, looked up because no such file is here."""
    here = Path(recipe).expanduser()
    if not here.is_file():
        shipped = recipes().get(here.stem if here.suffix in ("", ".yaml", ".yml") else here.name)
        if shipped is not None:
            return shipped, True
    return here, False


def _folder() -> Path:
    checkout = Path(medframe.__file__).parent.parent / "recipes"
    if (checkout.parent / "setup.cfg").is_file() and checkout.is_dir():
        return checkout
    try:
        files = distribution("medframe").files or []
    except PackageNotFoundError:
        files = []
    for file in files:
        if file.parts[-3:-1] == ("medframe", "recipes"):
            return Path(str(file.locate())).resolve().parent
    return checkout
