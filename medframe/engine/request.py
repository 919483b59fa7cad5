"""A question in ids, and what has been answered so far."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from medframe.decoding import Decoding
from medframe.engine.text import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Finish = Literal["stop", "length", "broken"]


@dataclass(frozen=True, slots=True)
class Chance:
    """A token that was chosen, and how likely the model found it, before any setting changed that."""

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]
    """(token, log-probability) of as many as were asked for, the likeliest first."""


@dataclass(eq=False)
class Request:
    """One answer to one question."""

    ids: list[int]
    """The question, laid out."""
    decoding: Decoding
    ends: frozenset[int]
    """Tokens that end the answer, and are no part of it."""
    tokenizer: PreTrainedTokenizerBase
    seed: int | str = 0
    """Of what is drawn: it depends on nothing that is answered beside it."""
    logprobs: int | None = None
    """How many of the likeliest tokens to tell beside each chosen one; None: no log-probabilities."""

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget what has been answered."""
        self.tokens: list[int] = []
        self.chances: list[Chance] = []
        self.said = ""
        """The answer so far, as far as no later token can change it."""
        self.finish: Finish | None = None
        """Why it has ended: by an end token or a stop text, at its full length, or with logits that are no numbers."""
        self.random = random.Random(self.seed)
        self._text = Text(self.tokenizer, self.decoding.stop)

    @property
    def longest(self) -> int:
        """Tokens, question and answer, that it may come to."""
        return len(self.ids) + self.decoding.max_new_tokens

    def take(self, token: int) -> None:
        """Go on by a token, or end."""
        if token in self.ends:
            self.end("stop")
            return
        self.tokens.append(token)
        self.said += self._text.add([token])
        if self._text.stopped:
            self.end("stop")
        elif len(self.tokens) == self.decoding.max_new_tokens:
            self.end("length")

    def end(self, finish: Finish) -> None:
        """Go on no further."""
        self.said += self._text.end()
        self.finish = finish  # last: whoever sees it from another thread sees the whole text
