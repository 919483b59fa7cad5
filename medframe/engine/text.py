"""Tokens -> text, while they are coming."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BROKEN = "\N{REPLACEMENT CHARACTER}"


class Text:
    """The text of an answer, of which a piece is given as soon as no later token can change it.

    Control tokens are no part of it, nor is a stop text or what comes after it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._ids: list[int] = []
        self._shown = self._known = 0
        """Tokens before the window that is decoded, and those in it whose text is known."""
        self._held = ""
        """Text that may yet turn out to be the beginning of a stop text."""
        self.stopped = False
        """Whether a stop text has come."""

    def add(self, ids: Sequence[int]) -> str:
        """The text that is certain once these tokens have come."""
        self._ids += ids
        new = self._decoded(self._shown, None)[len(self._decoded(self._shown, self._known)) :]
        if not new or new.endswith(_BROKEN):  # the bytes of a character that is not whole
            return ""
        self._shown, self._known = self._known, len(self._ids)
        return self._released(new)

    def end(self) -> str:
        """What is left when no token comes any more."""
        new = self._decoded(self._shown, None)[len(self._decoded(self._shown, self._known)) :]
        self._known = len(self._ids)
        rest = self._released(new) + ("" if self.stopped else self._held)
        self._held = ""
        return rest

    def _decoded(self, start: int, end: int | None) -> str:
        return str(self._tokenizer.decode(self._ids[start:end], skip_special_tokens=True))

    def _released(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        begun = max((_begun(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - begun :]
        return text[: len(text) - begun]


def _begun(text: str, stop: str) -> int:
    """How many of its last characters may be the beginning of the stop text."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
