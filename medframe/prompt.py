"""The PromptFormat contract: turns laid out as spans, and which of them are trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from medframe.dataset import Turn
from medframe.errors import PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Text:
    """What somebody wrote, or the format's own wording; never parsed for control tokens."""

    text: str
    train: bool = False


@dataclass(frozen=True, slots=True)
class Control:
    """One control token: "bos", "eos", a special token's string, or an id.

    "bos" resolves to nothing where the tokenizer adds none; anything else that does not resolve is a PromptError.
    """

    token: str | int
    train: bool = False


Span = Text | Control


@dataclass(kw_only=True)
class PromptFormat(ABC):
    """How a conversation is laid out, the same for training, evaluation, chat and serving."""

    path_fields: ClassVar[tuple[str, ...]] = ()
    joined: ClassVar[bool] = True
    """Neighbouring Texts are tokenised as one run; False: one by one, as if each stood alone."""
    system: ClassVar[Literal["none", "optional", "fixed"]] = "none"
    multi_turn: ClassVar[bool] = False
    stop: ClassVar[tuple[str | int, ...]] = ()
    """Tokens that end an answer, besides the tokenizer's end-of-sequence token."""
    markers: ClassVar[tuple[str, ...]] = ()
    """Wording that tells the model who speaks. It is plain text, so a patient can type it: `check` counts such rows."""

    @property
    def skew(self) -> str | None:
        """What an option that is on reproduces of a published difference between training and serving."""
        return None

    def bind(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """The format for this tokenizer, before `render`; binding a bound format again changes nothing."""
        return self

    def unroll(self, turns: Sequence[Turn]) -> list[Sequence[Turn]]:
        """The conversations to lay out so that every answer is learnt: this one, where one `render` trains them all."""
        return [turns]

    @abstractmethod
    def render(self, turns: Sequence[Turn]) -> list[Span]:
        """The turns laid out; after a user turn, ready for the assistant to speak.

        PromptError for turns that the format cannot lay out.
        """

    def chat_template(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The Jinja template by which `tokenizer.apply_chat_template` gives the ids of `render`; saved with a model.

        Equal for texts that spell out no control token: a template's text is parsed for them. PromptError says why no
        template can lay out alike.
        """
        raise PromptError(f"the format {type(self).__name__} brings none")
