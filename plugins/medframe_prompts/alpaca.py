"""The prompt of Chinese-Alpaca."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from medframe import Control, PromptFormat, Span, Text, Turn
from medframe_prompts import jinja
from medframe_prompts.turns import check_rounds, up_to_each_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_USER, _ASSISTANT = "### Instruction:\n", "### Response: "


@dataclass(kw_only=True)
class ChineseAlpaca(PromptFormat):
    """`### Instruction:… ### Response: …`, any number of rounds under a fixed header (Chinese-Alpaca).

    As ymcui/Chinese-LLaMA-Alpaca trains, answer tokenised by itself, and its API chats; texts as they are. Its
    inference script, which puts two newlines after each heading, is not followed: what is trained is what is asked.
    Earlier answers stand in the prompt without an end token, so that one layout trains one answer. A system turn is
    refused; `header` is the format's own.
    """

    header: str = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    )
    """What stands before the first instruction, by default the published sentence."""
    train_turns: Literal["last", "all"] = "all"
    """Which answers of a conversation are learnt: the last | each, in a sample that ends with it."""

    joined: ClassVar[bool] = False
    system = "fixed"
    multi_turn: ClassVar[bool] = True
    markers: ClassVar[tuple[str, ...]] = ("### Instruction:", "### Response:")

    def unroll(self, turns: Sequence[Turn]) -> list[Sequence[Turn]]:
        return up_to_each_answer(turns) if self.train_turns == "all" else [turns]

    def render(self, turns: Sequence[Turn]) -> list[Span]:
        check_rounds(turns)
        *asked, last = turns
        answer = last.text if last.role == "assistant" else None
        dialogue = "".join(
            f"{_USER if turn.role == 'user' else _ASSISTANT}{turn.text}\n\n"
            for turn in (asked if answer is not None else turns)
        )
        spans: list[Span] = [Control("bos"), Text(f"{self.header}\n\n{dialogue}{_ASSISTANT}")]
        if answer is not None:
            spans += [Text(answer, train=True), Control("eos", train=True)]
        return spans

    def chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The Jinja template that asks alike. It refuses a conversation that ends with an answer.

        The published code tokenises the answer by itself and a template gives one string, so that on LLaMA's
        tokenizer the ids would differ where the answer begins.
        """
        return jinja.lines(
            jinja.rounds(),
            '{%- if messages[-1]["role"] == "assistant" -%}',
            '{{- raise_exception("the last answer is tokenised by itself, which no template can lay out") -}}',
            "{%- endif -%}",
            jinja.emit(jinja.control("bos", tokenizer), jinja.quoted(f"{self.header}\n\n")),
            "{%- for turn in messages -%}",
            '{%- if turn["role"] == "user" -%}',
            jinja.emit(jinja.quoted(_USER), 'turn["content"]', jinja.quoted("\n\n")),
            "{%- else -%}",
            jinja.emit(jinja.quoted(_ASSISTANT), 'turn["content"]', jinja.quoted("\n\n")),
            "{%- endif -%}",
            "{%- endfor -%}",
            "{%- if add_generation_prompt -%}",
            jinja.emit(jinja.quoted(_ASSISTANT)),
            "{%- endif -%}",
        )
