"""Which turns the published formats take, and the answers of a conversation one by one; jinja.py refuses alike."""

from __future__ import annotations

from collections.abc import Sequence

from medframe import PromptError, Turn

ONE_ROUND = "one question and one answer"
ROUNDS = "user and assistant in turn, the user first"
SYSTEM_AND_ROUNDS = "at most one system turn, then user and assistant in turn, the user first"


def check_one_round(turns: Sequence[Turn]) -> None:
    """PromptError for anything but a question, with or without its answer."""
    if [turn.role for turn in turns] not in (["user"], ["user", "assistant"]):
        raise refusal(ONE_ROUND, turns)


def check_rounds(turns: Sequence[Turn], *, system: bool = False) -> None:
    """PromptError for anything but questions and answers in turn; with `system`, after at most one system turn."""
    roles = [turn.role for turn in turns]
    if system and roles[:1] == ["system"]:
        del roles[0]
    if not roles or roles != [("user", "assistant")[i % 2] for i in range(len(roles))]:
        raise refusal(SYSTEM_AND_ROUNDS if system else ROUNDS, turns)


def refusal(wanted: str, turns: Sequence[Turn]) -> PromptError:
    """The error for turns in another order than the one wanted."""
    return PromptError(f"{wanted}, not {', '.join(turn.role for turn in turns) or 'nothing'}")


def up_to_each_answer(turns: Sequence[Turn]) -> list[Sequence[Turn]]:
    """For each answer that says something, the turns up to it; the turns as they are when there is none."""
    ends = [k for k, turn in enumerate(turns, start=1) if turn.role == "assistant" and turn.text.strip()]
    return [turns[:end] for end in ends] or [turns]
