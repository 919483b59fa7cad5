"""BenTsao's data sets: questions on medical knowledge, and conversations about the liver-cancer literature."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from medframe import DataError, Role, Row, Sample, Turn
from medframe_datasets.general import Instructions
from medframe_datasets.meta import kept

_LICENCE = (
    "code Apache-2.0; the README limits the data to academic research; written by GPT-3.5, which makes mistakes. "
    "Sample: Apache-2.0"
)
_HOMEPAGE = "https://github.com/SCIR-HI/Huatuo-Llama-Med-Chinese"


@dataclass(kw_only=True)
class BenTsaoKnowledge(Instructions):
    """Questions on medical knowledge and one answer each, from cMeKG (BenTsao, `llama_data.json`).

    Rows are `{"instruction": ..., "input": "", "output": ...}`: JSON lines in spite of the name. Published training
    drops an `input` that is not empty, for its templates have no place for one; here it follows the instruction.
    """

    bundled: ClassVar[str | None] = "samples/bentsao_knowledge.jsonl"
    licence: ClassVar[str] = _LICENCE
    homepage: ClassVar[str] = _HOMEPAGE


@dataclass(kw_only=True)
class BenTsaoLiterature(Instructions):
    """Conversations about the conclusions of liver-cancer papers, 1 to 6 rounds (BenTsao, `liver_cancer.json`).

    Rows are `{"instruction": " <user>: q1 <bot>: a1 <user>: q2", "input": "", "output": "a2"}` in one JSON array on
    one line; some have an `id`. The history inside the instruction becomes real turns, in which every character
    between the markers is kept: written out again as ` <user>: text` and ` <bot>: text` they are the instruction. One
    that is no such chain from a user's turn to a user's turn is an error.
    """

    bundled: ClassVar[str | None] = "samples/bentsao_literature.json"
    licence: ClassVar[str] = _LICENCE
    homepage: ClassVar[str] = _HOMEPAGE

    def sample(self, row: Row) -> Sample:
        try:
            turns = turns_of(self.question(row))
        except DataError as error:
            raise DataError(f"field {self.instruction!r}: {error}") from None
        answer = Turn("assistant", row.text(self.output))
        return Sample((*turns, answer), row.where, kept(row, "id"))


_ROLES: dict[str, Role] = {"user": "user", "bot": "assistant"}
_MARKER = re.compile(r" <(user|bot)>: ")
_STRAY = re.compile(r"<(?:user|bot)>:")


def turns_of(history: str) -> list[Turn]:
    """The turns of ` <user>: q1 <bot>: a1 <user>: q2`; DataError where the markers do not cut it up unmistakably."""
    before, *parts = _MARKER.split(history)
    if before or not parts:
        raise DataError("must begin with ' <user>: ', a space on either side, as published training data does")
    turns = [Turn(_ROLES[who], text) for who, text in zip(parts[::2], parts[1::2], strict=True)]
    for number, turn in enumerate(turns, 1):
        expected = "user" if number % 2 else "assistant"
        if turn.role != expected:
            raise DataError(f"turn {number} must be of the {expected}: the two sides take turns, the user first")
        if stray := _STRAY.search(turn.text):
            raise DataError(f"turn {number} holds another {stray[0]!r}; a marker has exactly one space on either side")
    if turns[-1].role != "user":
        raise DataError("ends in a turn of the bot; it must end in the question that the output answers")
    return turns
