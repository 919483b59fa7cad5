"""Rows of a medical knowledge base as questions and answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from medframe import DataError, DatasetSource, Row, Sample, Turn, kind_of
from medframe_datasets.meta import kept

_IDS = ("id", "_id")


@dataclass(kw_only=True)
class CMeKG(DatasetSource):
    """Knowledge-base entries, one question and answer each (CMeKG, as BenTsao's knowledge base lays it out).

    Rows are `{"中心词": "偏头痛", "相关疾病": [...], "相关症状": [...], "所属科室": [...], "发病部位": [...]}`: one
    centre word, and attributes that vary from row to row, each a list of texts or one text. An entry becomes one
    question: about one `attribute`, or, where that is null, about the centre word, answered by all attributes, a
    line each. An attribute that lists nothing is passed over; an entry with none left is bad.
    """

    head: str = "中心词"
    """The field that holds the centre word."""
    attribute: str | None = None
    """The attribute to ask for; null: all, each on a line of its own."""
    question: str = "{head}的{attribute}有哪些？"
    """How one attribute is asked for: {head} and {attribute}."""
    overview: str = "请介绍一下{head}。"
    """How all attributes are asked for: {head}."""
    answer: str = "{head}的{attribute}：{values}。"
    """How one attribute is answered: {head}, {attribute} and {values}."""
    separator: str = "、"
    """What stands between the values of an attribute."""

    bundled: ClassVar[str | None] = "samples/cmekg.jsonl"
    licence: ClassVar[str] = "not stated (CMeKG; its site is offline). Sample: Apache-2.0"
    homepage: ClassVar[str] = "https://github.com/king-yyf/CMeKG_tools"

    def __post_init__(self) -> None:
        places = {"question": ("head", "attribute"), "overview": ("head",), "answer": ("head", "attribute", "values")}
        for name, known in places.items():
            try:
                getattr(self, name).format(**dict.fromkeys(known, ""))
            except (LookupError, ValueError, AttributeError):
                wanted = ", ".join(f"{{{place}}}" for place in known)
                raise ValueError(f"{name}: only {wanted} can be filled in; write {{{{ and }}}} for braces") from None

    def sample(self, row: Row) -> Sample:
        head = row.text(self.head)
        if not head.strip():
            raise DataError(f"field {self.head!r} is empty; it names what the entry is about")
        if self.attribute is None:
            names = [name for name in row.value if name not in (self.head, *_IDS)]
            question = self.overview.format(head=head)
        else:
            names = [self.attribute]
            question = self.question.format(head=head, attribute=self.attribute)
        lines = []
        for name in names:
            if values := self._values(name, row[name]):
                lines.append(self.answer.format(head=head, attribute=name, values=self.separator.join(values)))
        if not lines:
            raise DataError(f"nothing is listed for {head!r}" + (f" in {self.attribute!r}" if self.attribute else ""))
        return Sample((Turn("user", question), Turn("assistant", "\n".join(lines))), row.where, kept(row, *_IDS))

    def _values(self, name: str, value: Any) -> list[str]:
        values = [] if value is None else value if isinstance(value, list) else [value]
        for each in values:
            if not isinstance(each, str):
                raise DataError(f"field {name!r} must hold texts, it holds {kind_of(each)}")
        return [each for each in values if each.strip()]
