"""Single questions with their answers: Huatuo-26M, cMedQA2 and MedMCQA."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from medframe import BadRow, DataError, DatasetSource, Row, Sample, Turn, kind_of
from medframe_datasets.meta import kept


@dataclass(kw_only=True)
class Huatuo26M(DatasetSource):
    r"""Questions with one answer each, in any two fields or columns (Huatuo-26M, and files like it).

    Rows are `{"questions": ..., "answers": ...}`, as in huatuo26M-testdatasets. Other files by the names of their
    columns: Huatuo26M-Lite with `question: question, answer: answer`; a CSV file of Chinese-medical-dialogue-data with
    `question: [title, ask], answer: answer`, the title and what was asked on a line each. huatuo_encyclopedia_qa holds
    lists, `{"questions": [["one wording", "another"]], "answers": ["..."]}`, which `lists` reads.
    """

    question: str | list[str] = "questions"
    """The field that holds the question; of several, those that are not empty, each on a line of its own."""
    answer: str = "answers"
    """The field that holds the answer."""
    lists: bool = False
    """Questions and answers are lists: the first wording is asked, the others stay in the sample's meta."""
    literal_newlines: bool = False
    r"""Take a backslash and an n, as some exports write a line break, for a line break."""

    bundled: ClassVar[str | None] = "samples/huatuo_26m.jsonl"
    licence: ClassVar[str] = "Apache-2.0. Sample: Apache-2.0"
    homepage: ClassVar[str] = "https://github.com/FreedomIntelligence/Huatuo-26M"

    def __post_init__(self) -> None:
        if not self.question:
            raise ValueError("question: names no field")

    def sample(self, row: Row) -> Sample:
        names = [self.question] if isinstance(self.question, str) else self.question
        meta = kept(row, "id")
        asked = []
        for name in names:
            text, *others = self._texts(row, name)
            asked.append(text)
            if others:
                meta.setdefault("other_wordings", []).extend(others)
        answers = self._texts(row, self.answer)
        if len(answers) > 1:
            raise DataError(f"field {self.answer!r} lists {len(answers)} answers; a row has one")
        question = "\n".join(filter(None, asked)) if len(asked) > 1 else asked[0]
        turns = [Turn("user", question), Turn("assistant", answers[0])]
        if self.literal_newlines:
            turns = [Turn(turn.role, turn.text.replace("\\n", "\n")) for turn in turns]
        return Sample(tuple(turns), row.where, meta)

    def _texts(self, row: Row, name: str) -> list[str]:
        """At least one text."""
        if not self.lists:
            if isinstance(row[name], list):
                raise DataError(f"field {name!r} must be text, it is a list; lists: true reads lists")
            return [row.text(name)]
        texts = [] if row[name] is None else list(_flat(row[name]))
        for text in texts:
            if not isinstance(text, str):
                raise DataError(f"field {name!r} must be a list of texts, it holds {kind_of(text)}")
        return texts or [""]


def _flat(value: Any) -> Iterator[Any]:
    """What is in a list of lists; text itself where there is no list."""
    if isinstance(value, list):
        for each in value:
            yield from _flat(each)
    else:
        yield value


@dataclass(kw_only=True)
class CMedQA2(DatasetSource):
    """Patients' questions from a health forum and doctors' answers, in two files (cMedQA2).

    `path` is `answer.csv` with the columns `ans_id,question_id,content`, `questions` is `question.csv` with
    `question_id,content`. Each answer is one sample with its question, so that a question with several answers is
    asked several times. An answer whose question is not there is bad. All questions are held in memory.
    """

    questions: str | None = None
    """The file of questions; may be left out only with the bundled sample."""
    question_id: str = "question_id"
    """The field, in both files, that names the question."""
    content: str = "content"
    """The field, in both files, that holds the text."""

    path_fields: ClassVar[tuple[str, ...]] = ("path", "questions")
    bundled: ClassVar[str | None] = "samples/cmedqa2_answer.csv"
    licence: ClassVar[str] = "non-commercial research. Sample: Apache-2.0"
    homepage: ClassVar[str] = "https://github.com/zhangsheng93/cMedQA2"

    def __post_init__(self) -> None:
        if self.questions is None and self.path == "sample":
            self.questions = str(Path(__file__).parent / "samples" / "cmedqa2_question.csv")
        if self.questions is None and self.path != "???":
            raise ValueError("questions: not given; name the file of questions, cMedQA2's question.csv")

    def sample(self, row: Row) -> Sample:
        number = _id(row, self.question_id)
        if number not in self._questions:
            raise DataError(f"no question has {self.question_id} {number!r} in {self.questions}")
        turns = (Turn("user", self._questions[number]), Turn("assistant", row.text(self.content)))
        return Sample(turns, row.where, kept(row, "ans_id", self.question_id))

    def rows(self) -> Iterator[Row | BadRow]:
        """The answers; DataError when the questions cannot be read."""
        if not self._questions:
            raise DataError(f"questions: {self.questions} holds none")
        return super().rows()

    @cached_property
    def _questions(self) -> dict[str, str]:
        """The questions by id, read once."""
        if self.questions is None or not ("://" in self.questions or Path(self.questions).is_file()):
            raise DataError(f"questions: {self.questions}: no such file; name one file, cMedQA2's question.csv")
        found: dict[str, str] = {}
        for row in DatasetSource.rows(replace(self, path=self.questions)):
            if isinstance(row, BadRow):
                raise DataError(f"{row.where}: {row.why}")
            try:
                number, text = _id(row, self.question_id), row.text(self.content)
            except DataError as error:
                raise DataError(f"{row.where}: {error}") from None
            if found.setdefault(number, text) != text:
                raise DataError(f"{row.where}: a second question with {self.question_id} {number!r}")
        return found


def _id(row: Row, name: str) -> str:
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"field {name!r} must be a whole number or text, it is {kind_of(value)}")
    return str(value).strip()


@dataclass(kw_only=True)
class MedMCQA(DatasetSource):
    """Multiple-choice questions of Indian medical entrance exams, in English (MedMCQA, 8,000 in DISC-Med-SFT).

    Rows are `{"question": ..., "opa": ..., "opb": ..., "opc": ..., "opd": ..., "cop": 1, "exp": ..., "id": ...}`. The
    question lists the options as `A. ...`, a line each; the answer is the right one, `A. ...`, and the explanation
    on the lines after it. `cop` counts from 1 in the project's files and from 0 in the hub's copy, whose test split
    has no answers (-1).
    """

    question: str = "question"
    """The field that holds the question."""
    options: list[str] = field(default_factory=lambda: ["opa", "opb", "opc", "opd"])
    """The fields that hold the options A, B, ...; one that is blank is not listed."""
    correct: str = "cop"
    """The field that holds the number of the right option."""
    first_option: int = 1
    """The number of option A: 1 in the project's own files, 0 in the hub's copy."""
    explanation: str = "exp"
    """The field that holds the explanation; missing, null and empty mean that there is none."""

    bundled: ClassVar[str | None] = "samples/medmcqa.jsonl"
    licence: ClassVar[str] = "MIT (repository) and Apache-2.0 (hub card). Sample: Apache-2.0"
    homepage: ClassVar[str] = "https://github.com/medmcqa/medmcqa"

    def __post_init__(self) -> None:
        if self.first_option not in (0, 1):
            raise ValueError(f"first_option must be 0 or 1, not {self.first_option}")
        if not 2 <= len(self.options) <= 26:
            raise ValueError(f"options must name 2 to 26 fields, not {len(self.options)}")

    def sample(self, row: Row) -> Sample:
        question = row.text(self.question)
        options = [f"{chr(ord('A') + at)}. {text}" for at, text in enumerate(map(row.text, self.options))]
        listed = [option for option in options if option[3:].strip()]
        right = self._right(row)
        answer = options[right]
        if answer not in listed:
            raise DataError(f"field {self.options[right]!r} is blank, and it is the right option")
        explanation = row.text(self.explanation) if self.explanation in row.value else ""
        turns = (
            Turn("user", "\n".join([question, *listed])),
            Turn("assistant", f"{answer}\n{explanation}" if explanation else answer),
        )
        return Sample(turns, row.where, kept(row, "id", "choice_type", "subject_name", "topic_name"))

    def _right(self, row: Row) -> int:
        """The place of the right option, from 0."""
        value = row[self.correct]
        first, last = self.first_option, self.first_option + len(self.options) - 1
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        if type(number) is not int or not first <= number <= last:
            raise DataError(f"field {self.correct!r} must be {first} to {last}, it is {value!r} (see first_option)")
        return number - first
