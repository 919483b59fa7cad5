"""Where a chat template puts the turns of a conversation: read by rendering it with placeholders for their texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from medframe import Control, PromptError, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEXT = "Ab  c\n\n'\"<&>\\ 头痛。"
"""What a template might change, were it to change texts: case, spaces, lines, quotes."""
_SPACES = " \n\t\r\u3000"


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of a turn's text. `left` and `right` are the characters that the template strips there; None: all
    white space."""

    turn: int
    left: str | None = ""
    right: str | None = ""

    def text(self, turns: Sequence[Turn]) -> str:
        """The turn's text as the template writes it."""
        return turns[self.turn].text.lstrip(self.left).rstrip(self.right)


Piece = str | Control | Slot
Layout = tuple[Piece, ...]
"""The template's wording (never two strings in a row), its control tokens, and the places of the turns in order."""


class Template:
    """A Jinja chat template with the tokenizer whose control tokens it writes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
        self.source = source
        self._tokenizer = tokenizer
        # What the encoder takes for text is text here as well: words, and runs of white space that were added.
        tokens = [t for t in tokenizer.added_tokens_decoder.values() if t.special or re.match(r"[^\w\s▁]", t.content)]
        self.swallows_left = {token.content for token in tokens if token.lstrip}
        """Control tokens that take in the white space before them."""
        self.swallows_right = {token.content for token in tokens if token.rstrip}
        """Control tokens that take in the white space after them."""
        longest_first = sorted((re.escape(token.content) for token in tokens), key=len, reverse=True)
        self._controls = re.compile(f"({'|'.join(longest_first) or '(?!)'})")
        self._layouts: dict[tuple[str, ...], Layout] = {}

    def layout(self, roles: tuple[str, ...]) -> Layout:
        """How turns of these roles are laid out, after a user turn up to where the assistant is to speak.

        PromptError when the template raises, or does not write each turn's text once, in order and unchanged but for
        white space stripped at its ends.
        """
        if roles not in self._layouts:
            # Long texts in the first rounds, were a template to cut them; a hundred rounds of them would take seconds.
            marks = [f"«{turn}»{_TEXT * (100 if turn < 4 else 1)}«/{turn}»" for turn in range(len(roles))]
            wording = _between(self._write(roles, marks), marks, roles)
            slots = self._slots(roles, marks, wording)
            pieces: list[Piece] = self._pieces(wording[0])
            for slot, words in zip(slots, wording[1:], strict=True):
                pieces += [slot, *self._pieces(words)]
            self._layouts[roles] = tuple(pieces)
        return self._layouts[roles]

    def _write(self, roles: tuple[str, ...], texts: Sequence[str]) -> str:
        from jinja2 import TemplateSyntaxError

        messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
        try:
            written = self._tokenizer.apply_chat_template(
                messages, chat_template=self.source, tokenize=False, add_generation_prompt=roles[-1] == "user"
            )
        except TemplateSyntaxError as error:
            raise PromptError(f"the chat template is no valid Jinja: {error.message}, line {error.lineno}") from error
        except Exception as error:  # a template is a program: it may raise anything
            reason = " ".join(str(error).split())[:300]
            raise PromptError(f"the chat template refuses {', '.join(roles)}: {reason}") from error
        assert isinstance(written, str)
        return written

    def _slots(self, roles: tuple[str, ...], marks: Sequence[str], wording: Sequence[str]) -> list[Slot]:
        """The places of the texts, with what is stripped there: tried with each white space character around them."""
        left, right = [""] * len(roles), [""] * len(roles)
        for space in _SPACES:
            # Three before and two after: how much longer the wording has become tells which side was kept.
            written = self._write(roles, [f"{space * 3}{mark}{space * 2}" for mark in marks])
            for turn, (words, found) in enumerate(zip(wording, _between(written, marks, roles), strict=True)):
                befores = ("", space * 2) if turn else ("",)
                afters = ("", space * 3) if turn < len(roles) else ("",)
                kept = [(a, b) for a, b in product(befores, afters) if a + words + b == found]
                if not kept:
                    raise PromptError(f"the chat template changes white space around {_name(roles, turn)}")
                before, after = kept[0]
                if turn and not before:
                    right[turn - 1] += space
                if turn < len(roles) and not after:
                    left[turn] += space
        every = {_SPACES: None}
        slots = [Slot(i, every.get(a, a), every.get(b, b)) for i, (a, b) in enumerate(zip(left, right, strict=True))]
        mixed = "".join(reversed(_SPACES)) + _SPACES
        turns = [Turn("user", f"{mixed}{mark}{mixed}") for mark in marks]
        expected = wording[0] + "".join(
            slot.text(turns) + words for slot, words in zip(slots, wording[1:], strict=True)
        )
        if self._write(roles, [turn.text for turn in turns]) != expected:
            raise PromptError("the chat template changes white space around texts in a way that is not understood")
        return slots

    def _pieces(self, words: str) -> list[Piece]:
        """Wording cut at the control tokens in it, as the tokenizer cuts it."""
        parts = self._controls.split(words)
        return [Control(part) if i % 2 else part for i, part in enumerate(parts) if part]


def _between(written: str, marks: Sequence[str], roles: Sequence[str]) -> list[str]:
    """What stands before, between and after the marks; PromptError unless each is there once, and in order."""
    found, end = [], 0
    for turn, mark in enumerate(marks):
        times = written.count(mark)
        if times == 0:
            trace = f"«{turn}»" in written or f"«/{turn}»" in written
            what = "changes" if trace else "leaves out"
            raise PromptError(f"the chat template {what} the text of {_name(roles, turn)}")
        if times > 1:
            raise PromptError(f"the chat template writes the text of {_name(roles, turn)} {times} times")
        at = written.index(mark)
        if at < end:
            raise PromptError(f"the chat template writes {_name(roles, turn)} before an earlier turn")
        found.append(written[end:at])
        end = at + len(mark)
    return [*found, written[end:]]


def _name(roles: Sequence[str], turn: int) -> str:
    return f"turn {turn + 1} ({roles[turn]})" if turn < len(roles) else "the last turn"
