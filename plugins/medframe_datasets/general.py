"""Shapes that files of many origins have: messages, ShareGPT, Alpaca and Firefly."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, cast, get_args

from medframe import DataError, DatasetSource, Role, Row, Sample, Turn, kind_of
from medframe_datasets.meta import kept

_YOURS = "that of the file you name. Sample: Apache-2.0"


def _speakers() -> dict[str, str]:
    users = dict.fromkeys(("user", "human", "patient"), "user")
    return {"system": "system", **users, **dict.fromkeys(("assistant", "gpt", "doctor"), "assistant")}


@dataclass(kw_only=True)
class Messages(DatasetSource):
    r"""Conversations as lists of messages with a role and a content, any number of turns.

    Rows are `{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}, ...]}`, with a
    system message or a field `system` at will. The messages become turns one by one, in their order: whether a
    system turn, or two of one side in a row, can be laid out is the prompt format's to say.
    """

    messages: str = "messages"
    """The field that holds the list of messages."""
    role: str = "role"
    """The field of a message that says who speaks."""
    content: str = "content"
    """The field of a message that holds its text."""
    roles: dict[str, str] = field(default_factory=_speakers)
    """Who speaks, by the file's word: system, user or assistant. Other words are an error; add them here."""
    system: str = "system"
    """The field that holds a system turn beside the list; rows may lack it."""
    literal_newlines: bool = False
    r"""Take a backslash and an n, as some exports write a line break, for a line break."""

    bundled: ClassVar[str | None] = "samples/messages.jsonl"
    licence: ClassVar[str] = _YOURS
    homepage: ClassVar[str] = "https://huggingface.co/docs/transformers/chat_templating"
    ids: ClassVar[tuple[str, ...]] = ("id",)
    """The fields that stay with the sample."""

    def __post_init__(self) -> None:
        for word, role in self.roles.items():
            if role not in get_args(Role):
                raise ValueError(f"roles: {word!r} must be system, user or assistant, not {role!r}")

    def sample(self, row: Row) -> Sample:
        messages = row[self.messages]
        if not isinstance(messages, list):
            raise DataError(f"field {self.messages!r} must be a list of messages, it is {kind_of(messages)}")
        system = row.text(self.system) if self.system in row.value else ""
        turns = [Turn("system", self._text(system))] if system else []
        for number, message in enumerate(messages, 1):
            try:
                turns.append(self._turn(Row(message, row.where)))
            except DataError as error:
                raise DataError(f"field {self.messages!r}, message {number}: {error}") from None
        return Sample(tuple(turns), row.where, kept(row, *self.ids))

    def _turn(self, message: Row) -> Turn:
        word = message.text(self.role)
        if word not in self.roles:
            raise DataError(f"role {word!r} is none of {', '.join(self.roles)} (roles says whose turn it is)")
        return Turn(cast(Role, self.roles[word]), self._text(message.text(self.content)))

    def _text(self, text: str) -> str:
        return text.replace("\\n", "\n") if self.literal_newlines else text


@dataclass(kw_only=True)
class ShareGPT(Messages):
    """Conversations as ShareGPT and FastChat write them, any number of turns.

    Rows are `{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...]}`, with a
    message from `system` or a field `system` at will.
    """

    messages: str = "conversations"
    """The field that holds the list of messages."""
    role: str = "from"
    """The field of a message that says who speaks."""
    content: str = "value"
    """The field of a message that holds its text."""

    bundled: ClassVar[str | None] = "samples/sharegpt.jsonl"
    homepage: ClassVar[str] = "https://github.com/lm-sys/FastChat"


@dataclass(kw_only=True)
class Instructions(DatasetSource):
    """Rows with an instruction, an output and perhaps an input: what Alpaca's and BenTsao's have in common."""

    instruction: str = "instruction"
    """The field that holds the instruction or question."""
    input: str = "input"
    """The field that holds what the instruction is about; missing, null and empty mean that there is none."""
    output: str = "output"
    """The field that holds the answer."""
    on_input: Literal["append", "refuse"] = "append"
    """A row with an input: put it on a new line after the instruction | call the row bad."""

    def question(self, row: Row) -> str:
        """The instruction, and the input on a new line after it, as Chinese-LLaMA-Alpaca joins them."""
        instruction = row.text(self.instruction)
        more = row.text(self.input) if self.input in row.value else ""
        if more and self.on_input == "refuse":
            raise DataError(f"field {self.input!r} is not empty; on_input: append puts it after the instruction")
        return f"{instruction}\n{more}" if instruction and more else instruction or more

    def sample(self, row: Row) -> Sample:
        turns = (Turn("user", self.question(row)), Turn("assistant", row.text(self.output)))
        return Sample(turns, row.where, kept(row, "id"))


@dataclass(kw_only=True)
class Alpaca(Instructions):
    r"""Instructions as Stanford Alpaca writes them, with earlier rounds and a system turn where a row has them.

    Rows are `{"instruction": ..., "input": ..., "output": ...}`. `history`, a list of `[question, answer]`, holds
    the rounds before the instruction (CMtMedQA of Zhongjing), and `system` a system turn.
    """

    history: str = "history"
    """The field that holds the rounds before this one; rows may lack it."""
    system: str = "system"
    """The field that holds a system turn; rows may lack it."""
    literal_newlines: bool = False
    r"""Take a backslash and an n, as some exports write a line break, for a line break."""

    bundled: ClassVar[str | None] = "samples/alpaca.json"
    licence: ClassVar[str] = _YOURS
    homepage: ClassVar[str] = "https://github.com/tatsu-lab/stanford_alpaca"

    def sample(self, row: Row) -> Sample:
        last = super().sample(row)
        system = row.text(self.system) if self.system in row.value else ""
        turns = [Turn("system", system)] if system else []
        turns += [*self._earlier(row), *last.turns]
        if self.literal_newlines:
            turns = [Turn(turn.role, turn.text.replace("\\n", "\n")) for turn in turns]
        return Sample(tuple(turns), row.where, last.meta)

    def _earlier(self, row: Row) -> list[Turn]:
        rounds = row.value.get(self.history) or []
        turns = []
        for number, pair in enumerate(rounds if isinstance(rounds, list) else [rounds], 1):
            match pair:
                case [str(question), str(answer)]:
                    turns += [Turn("user", question), Turn("assistant", answer)]
                case _:
                    raise DataError(f"field {self.history!r}, round {number}: must be [question, answer], both text")
        return turns


@dataclass(kw_only=True)
class AlpacaZh(Alpaca):
    """GPT-4's answers to Alpaca's instructions in Chinese (alpaca_gpt4_data_zh, 1,000 of them in DISC-Med-SFT).

    Rows are `{"instruction": ..., "input": ..., "output": ...}` in one JSON array; `input` is often empty.
    """

    bundled: ClassVar[str | None] = "samples/alpaca_zh.json"
    licence: ClassVar[str] = (
        "CC BY-NC 4.0, research only; instructions translated by ChatGPT, answers by GPT-4. Sample: Apache-2.0"
    )
    homepage: ClassVar[str] = "https://github.com/Instruction-Tuning-with-GPT-4/GPT-4-LLM"


@dataclass(kw_only=True)
class Firefly(DatasetSource):
    """Conversations as lists of rounds, as Firefly writes them (also its copy of MOSS's data).

    Rows are `{"conversation": [{"human": ..., "assistant": ...}, ...]}`. DISC-Med-SFT has the same field with
    another shape inside.
    """

    conversation: str = "conversation"
    """The field that holds the list of rounds."""
    human: str = "human"
    """The field of a round that holds the question."""
    assistant: str = "assistant"
    """The field of a round that holds the answer."""

    bundled: ClassVar[str | None] = "samples/firefly.jsonl"
    licence: ClassVar[str] = _YOURS
    homepage: ClassVar[str] = "https://github.com/yangjianxin1/Firefly"

    def sample(self, row: Row) -> Sample:
        rounds = row[self.conversation]
        if not isinstance(rounds, list):
            raise DataError(f"field {self.conversation!r} must be a list of rounds, it is {kind_of(rounds)}")
        turns = []
        for number, each in enumerate(rounds, 1):
            said = Row(each, row.where)
            try:
                turns += [Turn("user", said.text(self.human)), Turn("assistant", said.text(self.assistant))]
            except DataError as error:
                raise DataError(f"field {self.conversation!r}, round {number}: {error}") from None
        return Sample(tuple(turns), row.where, kept(row, "conversation_id", "category"))
