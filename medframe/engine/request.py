"""A question in ids, and what has been answered so far."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

from medframe.decoding import Decoding

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Chance:
    """A token that was chosen, and how likely the model found it, before any setting changed that."""

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]
    """(token, log-probability) of as many as were asked for, the likeliest first."""


@dataclass(eq=False, slots=True)
class Request:
    """One answer to one question."""

    ids: list[int]
    """The question, laid out."""
    decoding: Decoding
    ends: frozenset[int]
    """Tokens that end the answer, and are no part of it."""
    seed: int = 0
    """Of what is drawn: it depends on nothing that is answered beside it."""
    logprobs: int | None = None
    """How many of the likeliest tokens to tell beside each chosen one; None: no log-probabilities."""
    tokens: list[int] = field(default_factory=list)
    """The answer so far."""
    chances: list[Chance] = field(default_factory=list)
    finish: Finish | None = None
    """Why it has ended: by an end token, or because it is as long as it may be."""
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    @property
    def longest(self) -> int:
        """Tokens, question and answer, that it may come to."""
        return len(self.ids) + self.decoding.max_new_tokens

    def take(self, token: int) -> None:
        """Go on by a token, or end."""
        if token in self.ends:
            self.finish = "stop"
            return
        self.tokens.append(token)
        if len(self.tokens) == self.decoding.max_new_tokens:
            self.finish = "length"
