"""The prompt of ChatMed-Consult and ChatMed-TCM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from medframe import Control, PromptError, PromptFormat, Span, Text, Turn


@dataclass(kw_only=True)
class ChatMed(PromptFormat):
    """`<s>问：…答：…</s>`, one question and one answer (ChatMed, ShenNong-TCM).

    As michael-wzhu/ChatMed tokenises it: question and answer stripped, the newline before `</s>` kept.
    """

    supervise: Literal["answer", "all"] = "answer"
    """What the loss is on: the answer and its end | every token, the question too, as published."""

    markers: ClassVar[tuple[str, ...]] = ("问：\n", "答：\n")

    @property
    def skew(self) -> str | None:
        return "the loss is on the question as well, as published" if self.supervise == "all" else None

    def render(self, turns: Sequence[Turn]) -> list[Span]:
        roles = [turn.role for turn in turns]
        if roles not in (["user"], ["user", "assistant"]):
            raise PromptError(f"one question and one answer, not {', '.join(roles) or 'nothing'}")
        whole = self.supervise == "all"
        spans: list[Span] = [
            Control("bos", train=whole),
            Text(f"问：\n{turns[0].text.strip()}\n答：\n", train=whole),
        ]
        if len(turns) == 2:
            spans += [Text(f"{turns[1].text.strip()}\n", train=True), Control("eos", train=True)]
        return spans
