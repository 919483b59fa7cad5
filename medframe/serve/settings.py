"""How it is served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from medframe.serve.limits import Limits


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How it is served."""

    title: str = "medframe"
    keys: Sequence[str] = ()
    """Any of them opens the API; none: it is open."""
    local: bool = True
    """Whether it listens on loopback alone."""
    limits: Limits = field(default_factory=Limits)
    ignore_system: bool = False
    """Leave system turns out instead of refusing those that a format cannot lay out."""
    token_ids: bool = False
    """Whether /v1/completions takes token ids, control tokens among them."""
    disclaimer: bool = False
    """Whether each answer ends with the disclaimer."""
    legacy: bool = False
    """Whether ChatMed's own /chatmed_generate is answered too."""
