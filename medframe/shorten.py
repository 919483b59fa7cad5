"""What is left out of a conversation that is too long."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from medframe.dataset import Turn

if TYPE_CHECKING:
    from medframe.encode import Example

Overflow = Literal["drop_turns", "cut", "windows", "skip", "keep_first", "truncate"]
Encode = Callable[[Sequence[Turn]], "Example"]


def shorten(turns: Sequence[Turn], limit: int, policy: Overflow, example: Encode) -> tuple[list[Example], str]:
    """The examples that fit, and how they came to; none where the policy cannot make them fit."""
    system, rounds = rounds_of(turns)
    if policy == "skip":
        return [], ""
    if policy == "truncate":
        whole = example(turns)
        start = replace(whole, ids=whole.ids[:limit], trained=whole.trained[:limit])
        return ([start], f"cut at {limit} tokens") if start.supervised else ([], ", and the question alone fills them")
    if policy == "keep_first":
        return _first(example, turns, limit)
    if policy == "windows":
        return _windows(example, system, rounds, limit)
    dropped = 0
    while len(rounds) > 1:
        rounds, dropped = rounds[1:], dropped + 1
        shorter = example([*system, *flat(rounds)])
        if len(shorter.ids) <= limit:
            return [shorter], f"{dropped} oldest round(s) dropped"
    if policy == "cut" and rounds and rounds[0][0].role == "user":
        trimmed, cut = _cut(example, system, rounds[0], limit)
        if trimmed:
            also = f"{dropped} oldest round(s) dropped; " if dropped else ""
            return [trimmed], f"{also}{cut} characters cut from the start of the question"
        return [], ", and the answer alone does not fit"
    return [], ", and a lone round is not cut (limits.on_overflow)"


def _first(example: Encode, turns: Sequence[Turn], limit: int) -> tuple[list[Example], str]:
    """The longest beginning that ends in an answer and fits."""
    for end in range(len(turns) - 1, 0, -1):
        if turns[end - 1].role == "assistant" and len((shorter := example(turns[:end])).ids) <= limit:
            return [shorter], f"{len(turns) - end} closing turn(s) dropped"
    return [], ", and so is its first round"


def _cut(example: Encode, system: Sequence[Turn], round_: Sequence[Turn], limit: int) -> tuple[Example | None, int]:
    """The round with the fewest characters cut from the start of its question that make it fit."""
    text = round_[0].text

    def without(count: int) -> Example:
        return example([*system, replace(round_[0], text=text[count:]), *round_[1:]])

    low, high = 1, len(text) - 1
    if high < low or len(without(high).ids) > limit:
        return None, 0
    while low < high:
        middle = (low + high) // 2
        if len(without(middle).ids) <= limit:
            high = middle
        else:
            low = middle + 1
    return without(high), high


def _windows(
    example: Encode, system: Sequence[Turn], rounds: list[tuple[Turn, ...]], limit: int
) -> tuple[list[Example], str]:
    """Neighbouring rounds together as far as they fit, every answer in one window."""
    windows: list[Example] = []
    current: list[tuple[Turn, ...]] = []
    fitting: Example | None = None
    skipped = 0
    for round_ in rounds:
        longer = example([*system, *flat([*current, round_])])
        if len(longer.ids) > limit and current:
            assert fitting is not None
            windows.append(fitting)
            current, fitting = [], None
            longer = example([*system, *round_])
        if len(longer.ids) > limit:
            skipped += 1
            continue
        current, fitting = [*current, round_], longer
    if fitting is not None:
        windows.append(fitting)
    if not windows:
        return [], ", and so is every round by itself"
    also = f", {skipped} round(s) too long for one" if skipped else ""
    return windows, f"made into {len(windows)} windows{also}"


def rounds_of(turns: Sequence[Turn]) -> tuple[tuple[Turn, ...], list[tuple[Turn, ...]]]:
    """The leading system turns, and the rounds: a user turn with all that follows it up to the next."""
    start = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    rounds: list[tuple[Turn, ...]] = []
    for turn in turns[start:]:
        if turn.role == "user" or not rounds:
            rounds.append((turn,))
        else:
            rounds[-1] = (*rounds[-1], turn)
    return tuple(turns[:start]), rounds


def flat(rounds: Iterable[Sequence[Turn]]) -> Iterator[Turn]:
    """The turns of the rounds, in order."""
    for round_ in rounds:
        yield from round_
