"""The DatasetSource contract, and the values between a file and a prompt: Row, Turn, Sample."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from medframe.errors import DataError

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Where:
    """The place a row came from; prints as `file:line`, or `file:line[element]`."""

    file: str
    line: int
    element: int | None = None
    """Which element of an array it is, counted from 1, where the line alone does not tell."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f"[{self.element}]" if self.element else "")


@dataclass(frozen=True, slots=True)
class Row:
    """One row as its file holds it: a JSON value, or a CSV record as a dict of strings."""

    value: Any
    where: Where

    def __getitem__(self, name: str) -> Any:
        """The field `name`; DataError names the fields there are when it is missing."""
        if not isinstance(self.value, dict):
            raise DataError(f"a row must be an object with fields, this one is {kind_of(self.value)}")
        try:
            return self.value[name]
        except KeyError:
            have = ", ".join(map(repr, self.value)) or "none"
            raise DataError(f"no field {name!r}; the row's fields: {have}") from None

    def text(self, name: str) -> str:
        """The field `name` as text; null reads as empty, anything else but text is a DataError."""
        value = self[name]
        if value is None:
            return ""
        if not isinstance(value, str):
            raise DataError(f"field {name!r} must be text, it is {kind_of(value)}")
        return value


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read: a value, not an exception, so that the ledger decides what it means."""

    where: Where
    why: str


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side of a conversation said."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation to learn from, in reading order."""

    turns: tuple[Turn, ...]
    where: Where
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class DatasetSource(ABC):
    """Where samples come from. The frame reads the files, the plugin explains one row."""

    path: str | list[str] = "???"
    """File, list of files or glob, here or hf://datasets/OWNER/NAME/FILE; `sample`: the plugin's own bundled sample."""

    path_fields: ClassVar[tuple[str, ...]] = ("path",)
    bundled: ClassVar[str | None] = None
    """The file, beside the component's module, that `path: sample` reads."""
    licence: ClassVar[str] = "not stated"
    homepage: ClassVar[str] = ""

    @abstractmethod
    def sample(self, row: Row) -> Sample:
        """One row as a conversation; DataError with the reason when it cannot be one."""

    def rows(self) -> Iterator[Row | BadRow]:
        """The rows of `files()` in order, each with its place."""
        from medframe.rows import read

        return read(self.files())

    def __iter__(self) -> Iterator[Sample | BadRow]:
        """Every row of the source as a sample or a BadRow, the same order each time."""
        for row in self.rows():
            if isinstance(row, BadRow):
                yield row
                continue
            try:
                sample = self.sample(row)
                if not isinstance(sample, Sample):
                    raise TypeError(f"it returned {sample!r}, not a Sample")
                yield sample
            except DataError as error:
                yield BadRow(row.where, str(error))
            except Exception as error:
                # A slip in the plugin; where it happened is what its author needs to know.
                yield BadRow(row.where, f"{type(self).__name__}.sample failed: {type(error).__name__}: {error}")

    def fingerprint(self) -> str | None:
        """sha256 of all that the samples depend on besides the fields; None: it cannot be known, read anew each run."""
        from medframe.files import find, fingerprint
        from medframe.hub import SCHEME

        if type(self).__iter__ is not DatasetSource.__iter__:
            return None
        others = [getattr(self, name) for name in self.path_fields if name != "path"]
        named = [value for value in others if isinstance(value, str)]
        read = [value for value in named if value.startswith(SCHEME) or Path(value).is_file()]
        return fingerprint([*self.files(), *(find(read) if read else [])])

    def files(self) -> list[Path]:
        """The files that `path` names, globs sorted, those of the hub fetched; DataError when one is missing."""
        from medframe.files import find

        if self.path == "sample":
            return [self._bundled_file()]
        return find(self.path)

    def _bundled_file(self) -> Path:
        if self.bundled is None:
            raise DataError("path: this data set has no bundled sample; give the file's path")
        spec = importlib.util.find_spec(type(self).__module__)
        assert spec is not None and spec.origin is not None
        return Path(spec.origin).parent / self.bundled


def kind_of(value: Any) -> str:
    """What a JSON value is, in words for a message."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true/false", type(None): "null"}
    return names.get(type(value), "a number")
