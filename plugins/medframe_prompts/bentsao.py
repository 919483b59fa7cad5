"""The prompts of BenTsao (HuaTuo): its knowledge base on LLaMA, on Bloom and Huozi, and its literature dialogues.

From SCIR-HI/Huatuo-Llama-Med-Chinese, `templates/` and `finetune.py`: texts as they are, not stripped, `<s>` first
where the tokenizer adds it, the end token after the answer. The loss is on the answer and its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from medframe import Control, PromptFormat, Span, Text, Turn
from medframe_prompts import jinja
from medframe_prompts.turns import check_one_round, check_rounds, up_to_each_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(kw_only=True)
class BenTsaoMed(PromptFormat):
    """`下面是一个问题… ### 问题:… ### 回答:…`, one question and one answer (BenTsao on LLaMA and Alpaca).

    BenTsao's `med_template`. There is no system turn and no second round.
    """

    before: ClassVar[str] = "下面是一个问题，运用医学知识来正确回答提问.\n### 问题:\n"
    after: ClassVar[str] = "\n### 回答:\n"
    markers: ClassVar[tuple[str, ...]] = ("### 问题:", "### 回答:")

    def render(self, turns: Sequence[Turn]) -> list[Span]:
        check_one_round(turns)
        spans: list[Span] = [Control("bos"), Text(f"{self.before}{turns[0].text}{self.after}")]
        if len(turns) == 2:
            spans += [Text(turns[1].text, train=True), Control("eos", train=True)]
        return spans

    def chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str:
        after = jinja.quoted(self.after)
        return jinja.lines(
            jinja.one_round(),
            jinja.emit(jinja.control("bos", tokenizer), jinja.quoted(self.before), 'messages[0]["content"]'),
            "{%- if messages[1] -%}",
            jinja.emit(after, 'messages[1]["content"]', jinja.control("eos", tokenizer)),
            "{%- elif add_generation_prompt -%}",
            jinja.emit(after),
            "{%- endif -%}",
        )


@dataclass(kw_only=True)
class BenTsaoBloom(BenTsaoMed):
    """`下面是一个问题… ### 回答：…`, one question and one answer (BenTsao on Bloom and Huozi).

    BenTsao's `bloom_deploy`, its colon full width. There is no system turn and no second round.
    """

    before: ClassVar[str] = "下面是一个问题，运用医学知识来正确回答提问.\n"
    after: ClassVar[str] = "\n### 回答：\n"
    markers: ClassVar[tuple[str, ...]] = ("### 回答：",)


@dataclass(kw_only=True)
class BenTsaoLiterature(PromptFormat):
    """`### 说明: <user>:… <bot>:… ### 回复:…`, any number of rounds (BenTsao on literature, CALLA).

    BenTsao's `literature_template` with the dialogue as the training data write it; its chat script, which leaves
    out the space before `<user>`, is not followed. The dialogue so far stands in the prompt, so that one layout
    trains one answer. There is no system turn.
    """

    train_turns: Literal["last", "all"] = "all"
    """Which answers of a dialogue are learnt: the last, as published | each, in a sample that ends with it."""

    multi_turn: ClassVar[bool] = True
    before: ClassVar[str] = "以下是描述任务的说明，编写适当地回复完成请求的响应。\n\n ### 说明:\n"
    after: ClassVar[str] = "\n\n### 回复:\n"
    markers: ClassVar[tuple[str, ...]] = ("### 说明:", "### 回复:", "<user>:", "<bot>:")

    def unroll(self, turns: Sequence[Turn]) -> list[Sequence[Turn]]:
        return up_to_each_answer(turns) if self.train_turns == "all" else [turns]

    def render(self, turns: Sequence[Turn]) -> list[Span]:
        check_rounds(turns)
        *asked, last = turns
        answer = last.text if last.role == "assistant" else None
        dialogue = "".join(
            f" <user>: {turn.text}" if turn.role == "user" else f" <bot>: {turn.text}"
            for turn in (asked if answer is not None else turns)
        )
        spans: list[Span] = [Control("bos"), Text(f"{self.before}{dialogue}{self.after}")]
        if answer is not None:
            spans += [Text(answer, train=True), Control("eos", train=True)]
        return spans

    def chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str:
        after = jinja.quoted(self.after)
        return jinja.lines(
            jinja.rounds(),
            jinja.emit(jinja.control("bos", tokenizer), jinja.quoted(self.before)),
            "{%- for turn in messages -%}",
            '{%- if turn["role"] == "user" -%}',
            jinja.emit(jinja.quoted(" <user>: "), 'turn["content"]'),
            "{%- elif not loop.last -%}",
            jinja.emit(jinja.quoted(" <bot>: "), 'turn["content"]'),
            "{%- else -%}",
            jinja.emit(after, 'turn["content"]', jinja.control("eos", tokenizer)),
            "{%- endif -%}",
            "{%- endfor -%}",
            '{%- if add_generation_prompt and messages[-1]["role"] == "user" -%}',
            jinja.emit(after),
            "{%- endif -%}",
        )
