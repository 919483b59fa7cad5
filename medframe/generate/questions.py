"""The rows of a file as conversations that wait for an answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from medframe import files, rows
from medframe.dataset import BadRow, DatasetSource, Role, Row, Turn, Where, kind_of
from medframe.errors import DataError

_ROLES = {"system": "system", "user": "user", "human": "user", "patient": "user"}
_ROLES |= dict.fromkeys(("assistant", "gpt", "doctor"), "assistant")
_CONVERSATIONS = ("messages", "conversations", "conversation")
_QUESTIONS = ("question", "query", "instruction", "prompt", "text")
_ANSWERS = ("response", "output", "answer")


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be answered."""

    where: Where
    turns: tuple[Turn, ...] = ()
    expected: str | None = None
    """The answer that the row has itself."""
    id: Any = None
    """The row's field `id`."""
    why: str | None = None
    """Why the row cannot be read."""


def questions(file: Path, source: DatasetSource | None = None) -> Iterator[Question]:
    """Every row in order; DataError when the file cannot be read, a Question with `why` for a row that cannot.

    JSON, JSON lines and CSV: a text, {"question": ...} (or query, instruction with input, prompt, text), or a list of
    messages with role and content (or from and value). In a .txt file each line is a question. `source` explains rows
    of another shape. An answer that the row has (response, output, answer, or the assistant's last message) is what
    is expected, and is asked for again.
    """
    for row in _lines(file) if file.suffix == ".txt" else rows.read(files.find(str(file))):
        if isinstance(row, BadRow):
            yield Question(row.where, why=row.why)
            continue
        try:
            turns = list(source.sample(row).turns if source else _turns(row))
            said = []
            while turns and turns[-1].role == "assistant":
                said.append(turns.pop().text)
            if not turns or turns[-1].role != "user" or not turns[-1].text.strip():
                raise DataError("nothing is asked")
        except DataError as error:
            yield Question(row.where, why=str(error))
            continue
        name = row.value.get("id") if isinstance(row.value, dict) else None
        yield Question(row.where, tuple(turns), said[-1] if said else None, name)


def _lines(file: Path) -> Iterator[Row]:
    for found in files.find(str(file)):
        with found.open("rb") as raw:
            start = files.past_mark(str(found), raw)
            encoding, _ = files.encoding_of(str(found), raw)
            raw.seek(start)
            for number, line in enumerate(raw, 1):
                if text := line.decode(encoding, "replace").strip():
                    yield Row(text, Where(str(found), number))


def _turns(row: Row) -> list[Turn]:
    if isinstance(row.value, str):
        return [Turn("user", row.value)]
    if name := next((name for name in _CONVERSATIONS if name in _fields(row)), None):
        if not isinstance(row[name], list):
            raise DataError(f"field {name!r} must be a list of messages, it is {kind_of(row[name])}")
        system = row.text("system") if "system" in row.value else ""
        turns = [_turn(Row(message, row.where)) for message in row[name]]
        return [Turn("system", system), *turns] if system else turns
    asked = next((name for name in _QUESTIONS if name in _fields(row)), None)
    if asked is None:
        raise DataError(
            f"no field tells what is asked (fields: {', '.join(map(repr, row.value))}); "
            f"known are {', '.join((*_CONVERSATIONS, *_QUESTIONS))}, and --source NAME for what a data set has"
        )
    text = row.text(asked)
    if asked == "instruction" and row.value.get("input"):
        text = f"{text}\n{row.text('input')}"
    answer = next((name for name in _ANSWERS if row.value.get(name)), None)
    return [Turn("user", text), *([Turn("assistant", row.text(answer))] if answer else [])]


def _fields(row: Row) -> dict[str, Any]:
    if not isinstance(row.value, dict):
        raise DataError(f"a row must be a text or an object with fields, this one is {kind_of(row.value)}")
    return row.value


def _turn(message: Row) -> Turn:
    keys = ("role", "content") if "role" in _fields(message) else ("from", "value")
    word, text = (message.text(key) for key in keys)
    if word not in _ROLES:
        raise DataError(f"{keys[0]} {word!r} is none of {', '.join(_ROLES)}")
    return Turn(cast(Role, _ROLES[word]), text)
