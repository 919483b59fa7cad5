"""The prompts of the Baichuan family, whose roles are token ids: DISC-MedLLM, Baichuan-13B-Chat, Baichuan2-Chat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from medframe import Control, PromptError, PromptFormat, Span, Text, Turn
from medframe_prompts import jinja
from medframe_prompts.turns import check_rounds, up_to_each_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# user_token_id and assistant_token_id of every published generation_config. What these pieces are called differs.
USER, ASSISTANT = 195, 196


@dataclass(kw_only=True)
class BaichuanChat(PromptFormat):
    """`195…196…</s>`, any number of rounds (Baichuan-7B and 13B-Chat).

    As `_build_chat_input` of Baichuan-13B-Chat lays out: no `<s>`, texts as they are, `</s>` after every answer.
    The loss is on the answers and their ends. There is no system turn.
    """

    multi_turn: ClassVar[bool] = True

    def bind(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """The format itself; PromptError unless the tokenizer has control tokens for the roles."""
        _check_roles(tokenizer)
        return self

    def render(self, turns: Sequence[Turn]) -> list[Span]:
        check_rounds(turns)
        spans: list[Span] = []
        for turn in turns:
            if turn.role == "user":
                spans += [Control(USER), Text(turn.text)]
            else:
                spans += [Control(ASSISTANT), Text(turn.text, train=True), Control("eos", train=True)]
        return spans if turns[-1].role == "assistant" else [*spans, Control(ASSISTANT)]

    def chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str:
        return jinja.lines(jinja.rounds(), _body(tokenizer, jinja.control("eos", tokenizer)))


@dataclass(kw_only=True)
class Disc(BaichuanChat):
    """`<s>195…196…</s>`, any number of rounds (DISC-MedLLM on Baichuan-13B).

    As DISC-MedLLM's training script lays out: texts as they are, `</s>` after every answer. The loss is on the
    answers and their ends. There is no system turn. DISC was trained with `<s>` and asked without it; here both are
    as `bos` says.
    """

    bos: bool = True
    """Begin with `<s>`, as DISC-MedLLM was trained; false: without, as its published chat asks."""

    def render(self, turns: Sequence[Turn]) -> list[Span]:
        # Not Control("bos"): Baichuan's tokenizer adds none, DISC's script does.
        return [*([Control("<s>")] if self.bos else []), *super().render(turns)]

    def chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str:
        bos = jinja.emit(jinja.control("<s>", tokenizer)) if self.bos else ""
        return jinja.lines(bos, super().chat_template(tokenizer))


@dataclass(kw_only=True)
class Baichuan2Chat(PromptFormat):
    """`195…196…`, any number of rounds after an optional system text (Baichuan2-7B and 13B-Chat).

    As `build_chat_input` of Baichuan2 lays out: no `<s>`, texts as they are, a system turn without a role id.
    Published, an earlier answer has no `</s>`, so that one layout trains one answer. The loss is on answers and
    their ends.
    """

    history_eos: bool = True
    """`</s>` after every answer; false: after the last one only, as published."""
    train_turns: Literal["last", "all"] = "all"
    """Which answers of a conversation are learnt: the last | each."""

    system = "optional"
    multi_turn: ClassVar[bool] = True

    def bind(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """The format itself; PromptError unless the tokenizer has control tokens for the roles."""
        _check_roles(tokenizer)
        return self

    def unroll(self, turns: Sequence[Turn]) -> list[Sequence[Turn]]:
        return [turns] if self.history_eos or self.train_turns == "last" else up_to_each_answer(turns)

    def render(self, turns: Sequence[Turn]) -> list[Span]:
        check_rounds(turns, system=True)
        spans: list[Span] = []
        for k, turn in enumerate(turns, start=1):
            if turn.role == "system":
                spans.append(Text(turn.text))
            elif turn.role == "user":
                spans += [Control(USER), Text(turn.text)]
            else:
                last = k == len(turns)
                train = last or (self.history_eos and self.train_turns == "all")
                spans += [Control(ASSISTANT), Text(turn.text, train=train)]
                spans += [Control("eos", train=train)] if last or self.history_eos else []
        return spans if turns[-1].role == "assistant" else [*spans, Control(ASSISTANT)]

    def chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str:
        eos = jinja.control("eos", tokenizer)
        end = eos if self.history_eos else f'({eos} if loop.last else "")'
        return jinja.lines(
            jinja.rounds(system=True),
            '{%- if messages[0]["role"] == "system" -%}',
            jinja.emit('messages[0]["content"]'),
            "{%- endif -%}",
            _body(tokenizer, end),
        )


def _check_roles(tokenizer: PreTrainedTokenizerBase) -> None:
    # In another vocabulary the two ids are ordinary pieces, which a text may hold.
    if not {USER, ASSISTANT} <= set(tokenizer.all_special_ids):
        raise PromptError(
            f"{USER} and {ASSISTANT} are no control tokens of this tokenizer: the format is for the backbone baichuan"
        )


def _body(tokenizer: PreTrainedTokenizerBase, end: str) -> str:
    """The rounds, and what asks for an answer; `end` stands after each answer."""
    user, assistant = jinja.control(USER, tokenizer), jinja.control(ASSISTANT, tokenizer)
    return jinja.lines(
        "{%- for turn in rounds -%}",
        '{%- if turn["role"] == "user" -%}',
        jinja.emit(user, 'turn["content"]'),
        "{%- else -%}",
        jinja.emit(assistant, 'turn["content"]', end),
        "{%- endif -%}",
        "{%- endfor -%}",
        '{%- if add_generation_prompt and messages[-1]["role"] == "user" -%}',
        jinja.emit(assistant),
        "{%- endif -%}",
    )
