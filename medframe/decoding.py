"""How an answer is chosen from what the model finds likely, token by token."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from medframe.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """The settings; by default the likeliest token each time."""

    max_new_tokens: int = 256
    """Longest answer."""
    temperature: float = 0.0
    """0: the likeliest token each time; above, tokens are drawn, the less likely ones the oftener the higher it is."""
    top_k: int | None = None
    """Draw among so many of the likeliest tokens; null: among all."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together have this probability."""
    repetition_penalty: float = 1.0
    """What the logit of a token that is there already, in the question too, is divided by (Keskar et al., 2019)."""
    num_beams: int = 1
    """Answers that are followed at a time, the likeliest as a whole being taken; such a search draws nothing."""
    stop: tuple[str, ...] = ()
    """Texts at which an answer ends, which are no part of it; the format's end tokens end it anyway."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if not 0 <= self.temperature <= 10:
            raise ValueError(f"temperature must lie between 0 and 10, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {self.top_k}; null draws among all")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if not 0.1 <= self.repetition_penalty <= 10:
            raise ValueError(f"repetition_penalty must lie between 0.1 and 10, not {self.repetition_penalty}")
        if self.num_beams < 1:
            raise ValueError(f"num_beams must be at least 1, not {self.num_beams}")
        if self.num_beams > 1 and self.temperature:
            raise ValueError("num_beams and temperature exclude each other: a beam search draws nothing")
        if "" in self.stop:
            raise ValueError("stop holds an empty text")

    def told(self) -> str:
        """In a few words, what is not as by default first of all."""
        parts = ["beam search" if self.num_beams > 1 else "drawn" if self.temperature else "the likeliest token"]
        return ", ".join([*parts, *(f"{f.name} {getattr(self, f.name)}" for f in fields(self) if self._differs(f))])

    def _differs(self, field: Any) -> bool:
        return field.name == "max_new_tokens" or bool(getattr(self, field.name) != field.default)


USUAL = Decoding()
"""Where nothing else is said."""


def preset(name: str) -> Decoding:
    """What a shipped recipe's authors published, by the recipe's name or its beginning; else RecipeError.

    `bentsao` is the first recipe whose name begins so.
    """
    from medframe.shipped import recipes

    found = {recipe: section for recipe, file in sorted(recipes().items()) if (section := _published(file))}
    known = next((recipe for recipe in found if recipe == name or recipe.startswith(f"{name}-")), None)
    if known is None:
        raise RecipeError(f"preset {name!r} is unknown; the authors of these said how they decode: {', '.join(found)}")
    return Decoding(**found[known])


def _published(recipe: Path) -> dict[str, Any] | None:
    """The section `decoding` of a recipe's published profile, where it has both."""
    from omegaconf import OmegaConf

    from medframe.compose import compose

    try:
        section = compose(recipe, ["profile=published"]).config.get("decoding")
    except RecipeError:
        return None
    return dict(OmegaConf.to_container(section)) if section else None  # type: ignore[arg-type]
