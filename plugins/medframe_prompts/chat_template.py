"""The prompt format that is the model's own chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from medframe import Control, PromptError, PromptFormat, Span, Text, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from medframe_prompts.answers import Answers

_THINKING = "enable_thinking"


@dataclass(kw_only=True)
class ChatTemplate(PromptFormat):
    """The model's own chat template: Qwen3, Llama-3, MedGemma, GLM, Mistral and any other that comes with one.

    Trained is each answer with what the template writes after it, up to and including the first control token: the
    token that ends it. Where the template writes none before the conversation is over (GLM-4), the end-of-sequence
    token does.

    The layout depends on the order of the roles alone. A template that looks into texts (Qwen3 takes apart an answer
    that holds `</think>`) is not followed there: texts are text. Where white space at the ends of a text is stripped,
    it is stripped here as well. An answer that follows no question is context, never trained.

    A template may write an earlier answer otherwise than it was given (Qwen3 leaves out thoughts): a rendering then
    trains its last answer alone, and `unroll` gives every other answer a rendering of its own, as it was asked.
    """

    template: str | None = None
    """File with another Jinja template; null: the one that comes with the tokenizer."""
    arguments: dict[str, Any] = field(default_factory=lambda: {_THINKING: False})
    """What the template is told, in training and in chat alike, such as enable_thinking."""
    today: str = "2024-07-26"
    """The date (YYYY-MM-DD) that a template which writes one is told: the same in training and in chat."""

    path_fields: ClassVar[tuple[str, ...]] = ("template",)
    system: ClassVar[Literal["none", "optional", "fixed"]] = "optional"
    multi_turn: ClassVar[bool] = True
    _bound: ClassVar[Any] = None
    """What the tokenizer's template does, an Answers, once bound."""

    def __post_init__(self) -> None:
        date.fromisoformat(self.today)
        for name in self.arguments:
            if not name.isidentifier() or name in ("messages", "tools", "documents", "add_generation_prompt"):
                raise ValueError(f"arguments: {name!r} is no name of an argument that a recipe gives")

    def bind(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """The format with the tokenizer's template read and tried; PromptError when it cannot be trained with."""
        from medframe_prompts.answers import Answers
        from medframe_prompts.layout import Template

        if self._bound is not None:
            return self
        answers = Answers(Template(tokenizer, self._pinned(self._source(tokenizer))))
        ends = answers.ends(("user", "assistant"))
        # A template for one question alone refuses longer conversations as they come.
        with suppress(PromptError):
            ends += answers.ends(("user", "assistant", "user", "assistant"))
        bound = copy(self)
        # The class has these for every tokenizer, the bound format for its own.
        vars(bound).update(_bound=answers, stop=tuple(dict.fromkeys(end for end in ends if end != "eos")))
        return bound

    def render(self, turns: Sequence[Turn]) -> list[Span]:
        answers = self._answers()
        if not turns:
            raise PromptError("an empty conversation")
        template = answers.template
        spans: list[Span] = []
        swallowing = False
        for piece, train in answers.supervised(tuple(turn.role for turn in turns)):
            if isinstance(piece, Control):
                if piece.token in template.swallows_left:
                    _strip_end(spans)
                spans.append(Control(piece.token, train))
                swallowing = piece.token in template.swallows_right
                continue
            text = piece if isinstance(piece, str) else piece.text(turns)
            text = text.lstrip() if swallowing else text
            if text:
                spans.append(Text(text, train))
                swallowing = False
        return spans

    def unroll(self, turns: Sequence[Turn]) -> list[Sequence[Turn]]:
        """The conversation up to its end, or up to earlier answers as well: `render` trains each answer in one of them.

        PromptError as `render`.
        """
        return [turns[:end] for end in self._answers().conversations(tuple(turn.role for turn in turns))]

    def chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The model's template with `arguments` and `today` as its defaults, so that a plain call gives these ids."""
        return self.bind(tokenizer)._answers().template.source

    def _answers(self) -> Answers:
        if self._bound is None:
            raise PromptError("a chat template is the tokenizer's: bind(tokenizer) comes first")
        bound: Answers = self._bound
        return bound

    def _source(self, tokenizer: PreTrainedTokenizerBase) -> str:
        if self.template is not None:
            try:
                return Path(self.template).read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise PromptError(f"prompt.template: {self.template} cannot be read: {error}") from None
        named = tokenizer.chat_template
        source = named.get("default") if isinstance(named, dict) else named
        if not source:
            has = f"only templates for {', '.join(sorted(named))}" if isinstance(named, dict) else "no chat template"
            raise PromptError(
                f"the tokenizer has {has}; give prompt.template, a file with one, or another prompt format: "
                "a base model has none, its chat version does"
            )
        return str(source)

    def _pinned(self, source: str) -> str:
        """The template with the arguments that it reads, and the date, set in front of it."""
        front = []
        for name, value in self.arguments.items():
            if re.search(rf"\b{name}\b", source):
                front.append(f"{{%- set {name} = {name} | default({_literal(value)}) %}}")
            elif name != _THINKING:
                raise PromptError(f"prompt.arguments: the chat template reads no {name}")
        if "strftime_now" in source:
            day = date.fromisoformat(self.today)
            formats = {
                found[1]: day.strftime(found[1]) for found in re.findall(r"strftime_now\((['\"])(.*?)\1", source)
            }
            front.append(
                f"{{%- macro strftime_now(format) %}}{{{{ {_literal(formats)}.get(format, '{self.today}') }}}}"
                "{%- endmacro %}"
            )
        # The newline after a block is no part of what is written. A template that a run has saved begins with all this.
        head = "".join(f"{line}\n" for line in front)
        return head + source.removeprefix(head)


def _literal(value: Any) -> str:
    """A recipe's value as Jinja spells it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(str(key))}: {_literal(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def _strip_end(spans: list[Span]) -> None:
    """White space at the end of what is laid out so far is left out."""
    while spans and isinstance(last := spans[-1], Text):
        spans.pop()
        if text := last.text.rstrip():
            spans.append(Text(text, last.train))
            return
