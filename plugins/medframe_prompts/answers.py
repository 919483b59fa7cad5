"""Which answers of a conversation a rendering trains, from where to where."""

from __future__ import annotations

from collections.abc import Sequence

from medframe import Control, PromptError
from medframe_prompts.layout import Layout, Piece, Slot, Template

Roles = tuple[str, ...]
Supervised = list[tuple[Piece, bool]]
"""A layout, each piece with whether it is trained."""


def asked(roles: Sequence[str]) -> list[int]:
    """The turns that answer a question: the assistant's, right after a user's."""
    return [k for k in range(1, len(roles)) if (roles[k - 1], roles[k]) == ("user", "assistant")]


class Answers:
    """The answers in what a chat template writes."""

    def __init__(self, template: Template) -> None:
        self.template = template
        self._ends_of: dict[Roles, list[int]] = {}
        self._supervised: dict[Roles, Supervised] = {}

    def trained(self, roles: Roles) -> list[int]:
        """The answers that a rendering of these roles trains: all, if each stands where it was asked; else the last.

        PromptError when the last turn is an answer that cannot be trained.
        """
        answers = asked(roles)
        if roles[-1:] == ("assistant",) and roles[-2:] != ("user", "assistant"):
            raise PromptError(f"turn {len(roles)} (assistant) answers no question")
        if all(self._start(roles, turn) is not None and self._ends(roles, turn) for turn in answers):
            return answers
        if roles[-1] != "assistant":
            return []
        if self._start(roles, answers[-1]) is None:
            raise PromptError(self._apart(roles))
        return answers[-1:]

    def conversations(self, roles: Roles) -> list[int]:
        """How many turns to lay out each time, so that every answer is trained once; PromptError as `trained`."""
        if roles not in self._ends_of:
            found = [len(roles)]
            end = len(roles) if roles[-1:] == ("assistant",) else 0
            while left := [turn for turn in asked(roles[:end]) if turn not in self.trained(roles[:end])]:
                end = left[-1] + 1
                found.insert(0, end)
            self._ends_of[roles] = found
        return self._ends_of[roles]

    def supervised(self, roles: Roles) -> Supervised:
        """The layout of these roles with what is trained; PromptError as `trained`."""
        if roles not in self._supervised:
            pieces: Supervised = [(piece, False) for piece in self.template.layout(roles)]
            for turn in reversed(self.trained(roles)):
                at = _place(self.template.layout(roles), turn)
                end = next((i for i in range(at + 1, len(pieces)) if isinstance(pieces[i][0], Control)), len(pieces))
                own: Supervised = [(piece, True) for piece, _ in pieces[at : end + 1]]
                if end == len(pieces):
                    own.append((Control("eos"), True))
                if start := self._start(roles, turn):
                    words = pieces[at - 1][0]
                    assert isinstance(words, str)
                    at, own = at - 1, [(words.removesuffix(start), False), (start, True), *own]
                pieces[at : end + 1] = own
            self._supervised[roles] = pieces
        return self._supervised[roles]

    def ends(self, roles: Roles) -> list[str | int]:
        """The control tokens that end the answers trained."""
        return [piece.token for piece, train in self.supervised(roles) if train and isinstance(piece, Control)]

    def _start(self, roles: Roles, turn: int) -> str | None:
        """White space that the model itself has to write before the answer; None where it is not asked there.

        It is asked after what the turns before are laid out as by themselves: only if that is what stands before the
        answer here does training it teach what chat will ask for (the prefix law).
        """
        whole = self.template.layout(roles)
        before, words = _parted(whole[: _place(whole, turn)])
        asked_before, asked_words = _parted(self.template.layout(roles[:turn]))
        if before != asked_before or not words.startswith(asked_words):
            return None
        start = words[len(asked_words) :]
        return None if start.strip() else start

    def _ends(self, roles: Roles, turn: int) -> bool:
        """Whether a control token ends the answer before the next turn, or it is the last."""
        whole = self.template.layout(roles)
        after = whole[_place(whole, turn) + 1 :]
        return next((isinstance(piece, Control) for piece in after if not isinstance(piece, str)), True)

    def _apart(self, roles: Roles) -> str:
        whole = self.template.layout(roles)
        trained, chat = _shown(whole[: _place(whole, len(roles) - 1)]), _shown(self.template.layout(roles[:-1]))
        at = next(
            (i for i, (a, b) in enumerate(zip(trained, chat, strict=False)) if a != b), min(len(trained), len(chat))
        )
        return (
            "the chat template writes something else before an answer in training than when it is asked: "
            f"{trained[at:][-60:]!r}, asked {chat[at:][-60:]!r}; where that is a matter of thoughts or of another "
            "argument that the template reads, set it in prompt.arguments, such as {enable_thinking: false}"
        )


def _place(layout: Layout, turn: int) -> int:
    return next(i for i, piece in enumerate(layout) if isinstance(piece, Slot) and piece.turn == turn)


def _parted(layout: Layout) -> tuple[Layout, str]:
    """The layout up to its last control token or text, and the wording after that."""
    if layout and isinstance(layout[-1], str):
        return layout[:-1], layout[-1]
    return layout, ""


def _shown(layout: Layout) -> str:
    """The layout in words, `...` for the texts."""
    return "".join(
        "..." if isinstance(piece, Slot) else str(piece.token) if isinstance(piece, Control) else piece
        for piece in layout
    )
