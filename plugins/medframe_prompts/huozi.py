"""The chat prompt of Huozi 1.0."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from medframe import Control, PromptFormat, Span, Text, Turn
from medframe_prompts import jinja
from medframe_prompts.turns import check_rounds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BEGIN, _END = "<|beginofutterance|>", "<|endofutterance|>"
_ROLES = {"system": "系统", "user": "用户", "assistant": "助手"}


@dataclass(kw_only=True)
class HuoziChat(PromptFormat):
    """`<|beginofutterance|>用户…<|endofutterance|>`, any number of rounds after a fixed system turn (Huozi 1.0).

    As `utils.py` of HIT-SCIR/huozi at ed1534c asks. How it was trained is not published: here on the answers, each
    with its `<|endofutterance|>`. A system turn in the conversation is refused; `system_text` is the format's own.
    """

    system_text: str = (
        "你是由哈尔滨工业大学--自然语言处理研究所进行训练和部署的人工智能（Artificial Intelligence, AI）助手。\n"
        "你的名字是“活字”。\n"
        "你要为用户提供高质量的自然语言处理服务，旨在实现与用户之间的流畅、自然、可信、可靠和可用的对话。\n"
        "你的目标是通过对话回答用户的问题、提供相关信息和建议，并能够执行各种任务，以满足用户的需求和期望。\n"
        "你需要努力确保我们的服务能够提供准确、有用和全面的解决方案，以使用户获得最佳的体验和价值"
    )
    """The system turn that opens every conversation, by default the published one; empty: none."""

    system = "fixed"
    multi_turn: ClassVar[bool] = True
    stop: ClassVar[tuple[str | int, ...]] = (_END,)

    def render(self, turns: Sequence[Turn]) -> list[Span]:
        check_rounds(turns)
        head = [Turn("system", self.system_text)] if self.system_text else []
        spans = [span for turn in (*head, *turns) for span in _utterance(turn)]
        return spans if turns[-1].role == "assistant" else [*spans, Control(_BEGIN), Text("助手\n")]

    def chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str:
        begin, end = jinja.control(_BEGIN, tokenizer), jinja.control(_END, tokenizer)
        head = jinja.emit(begin, jinja.quoted(f"系统\n{self.system_text}"), end, jinja.quoted("\n"))
        return jinja.lines(
            jinja.rounds(),
            head if self.system_text else "",
            "{%- for turn in messages -%}",
            jinja.emit(
                begin,
                '("用户" if turn["role"] == "user" else "助手")',
                jinja.quoted("\n"),
                'turn["content"]',
                end,
                jinja.quoted("\n"),
            ),
            "{%- endfor -%}",
            '{%- if add_generation_prompt and messages[-1]["role"] == "user" -%}',
            jinja.emit(begin, jinja.quoted("助手\n")),
            "{%- endif -%}",
        )


def _utterance(turn: Turn) -> Iterator[Span]:
    answer = turn.role == "assistant"
    yield Control(_BEGIN)
    yield Text(f"{_ROLES[turn.role]}\n")
    yield Text(turn.text, train=answer)
    yield Control(_END, train=answer)
    yield Text("\n")
