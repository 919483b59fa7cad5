"""The prompt of ChatMed-Consult and ChatMed-TCM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from medframe import Control, PromptFormat, Span, Text, Turn
from medframe_prompts import jinja
from medframe_prompts.turns import check_one_round

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
        check_one_round(turns)
        whole = self.supervise == "all"
        spans: list[Span] = [
            Control("bos", train=whole),
            Text(f"问：\n{turns[0].text.strip()}\n答：\n", train=whole),
        ]
        if len(turns) == 2:
            spans += [Text(f"{turns[1].text.strip()}\n", train=True), Control("eos", train=True)]
        return spans

    def chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str:
        bos, eos = jinja.control("bos", tokenizer), jinja.control("eos", tokenizer)
        return jinja.lines(
            jinja.one_round(),
            jinja.emit(bos, jinja.quoted("问：\n"), 'messages[0]["content"] | trim', jinja.quoted("\n")),
            "{%- if messages[1] -%}",
            jinja.emit(jinja.quoted("答：\n"), 'messages[1]["content"] | trim', jinja.quoted("\n"), eos),
            "{%- elif add_generation_prompt -%}",
            jinja.emit(jinja.quoted("答：\n")),
            "{%- endif -%}",
        )
