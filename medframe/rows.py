"""Files -> rows: JSON lines, JSON arrays and CSV, in UTF-8 or GB18030."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from medframe.dataset import BadRow, Row, Where
from medframe.errors import DataError
from medframe.files import encoding_of, past_mark
from medframe.hub import shown

_BLANK = " \t\r\n"
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_JSON_NAMES = {".json", ".jsonl", ".ndjson", ".txt"}
# A longer cell is a quote that was never closed: stop there, not after holding the whole file in memory.
_LONGEST_CELL = 1 << 24
# The longest token that json reports or half-reads when the text stops inside it is `\ud83d\ude0`.
_TAIL = 16
_UNDECODED = re.compile("[\udc80-\udcff]")  # what errors="surrogateescape" leaves of a byte
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # an escape for half of a surrogate pair; its other half may follow


def read(files: Sequence[Path]) -> Iterator[Row | BadRow]:
    """Every row of every file in order, with the file and 1-based line where it begins; memory stays flat.

    DataError for a file that cannot be read, or that breaks where no later row could be found.
    """
    for file in files:
        try:
            yield from _rows(file)
        except OSError as error:
            raise DataError(f"{shown(file)}: cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:  # the first pass found none
            raise DataError(f"{shown(file)}: changed while it was being read") from error


def _rows(file: Path) -> Iterator[Row | BadRow]:
    name = shown(file)
    with file.open("rb") as raw:
        start = past_mark(name, raw)
        separator = _SEPARATORS.get(file.suffix.lower())
        first = b"" if separator else _first(raw)
        if not (separator or first in (b"", b"[", b"{") or file.suffix.lower() in _JSON_NAMES):
            known = "JSON lines and JSON arrays (any name), .csv and .tsv"
            raise DataError(f"{name}: neither begins like JSON nor is named like CSV; what is read: {known}")
        raw.seek(start)
        encoding, clean = encoding_of(name, raw)
        raw.seek(start)
        errors = "strict" if clean else "surrogateescape"
        # "\n" alone ends a JSON line: U+2028 and "\r" do not. CSV wants to see line ends as they are.
        text = io.TextIOWrapper(raw, encoding, errors, newline="" if separator else "\n")
        flawed = "" if clean else f"bytes that are not {encoding.upper()}"
        if separator:
            yield from _csv_rows(name, text, separator, flawed)
        elif first == b"[":
            yield from _Array(name, text, flawed).rows()
        else:
            yield from _json_lines(name, text, flawed)


def _first(raw: BinaryIO) -> bytes:
    """The first byte that is not blank; `[` and `{` are the same byte in both encodings."""
    while chunk := raw.read(1 << 12):
        if body := chunk.lstrip(_BLANK.encode()):
            return body[:1]
    return b""


class _Json:
    """Decodes JSON values, and knows what is wrong with one that Python accepts."""

    def __init__(self) -> None:
        self.constants: list[str] = []  # NaN and the like: noted, so that the rows after it are still read
        self.decode = json.JSONDecoder(parse_constant=self.constants.append).raw_decode

    def flaw(self, value: Any) -> str | None:
        """Why a decoded value is no row all the same."""
        if self.constants:
            constant = self.constants[0]
            self.constants.clear()
            return f"{constant} is not JSON; write null or a number"
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            return f"{half} is half of a surrogate pair, which no tokenizer can encode"
        except RecursionError as error:
            return _complaint(error)
        return None


def _complaint(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg.removesuffix(" at").rstrip(": ")
    return "nested too deeply" if isinstance(error, RecursionError) else "a number with too many digits"


def _json_lines(file: str, text: TextIO, flawed: str) -> Iterator[Row | BadRow]:
    reader = _Json()
    decode, constants = reader.decode, reader.constants
    for number, line in enumerate(text, 1):
        body = line.strip(_BLANK)
        if not body:
            continue
        where = Where(file, number)
        if flawed and _UNDECODED.search(body):
            yield BadRow(where, flawed)
            continue
        try:
            value, end = decode(body)
        except (ValueError, RecursionError) as error:
            constants.clear()
            yield BadRow(where, _why_not_json(line, body, error))
            continue
        if end != len(body):
            constants.clear()
            column = line.index(body) + len(body) - len(body[end:].lstrip(_BLANK)) + 1
            yield BadRow(where, f"not JSON: a value, and then more text at column {column}")
        elif (constants or ("\\" in body and _HALF.search(body))) and (why := reader.flaw(value)):
            yield BadRow(where, why)
        else:
            yield Row(value, where)


def _why_not_json(line: str, body: str, error: Exception) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return f"not JSON that can be read: {_complaint(error)}"
    at = f"{_complaint(error)} at column {line.index(body) + error.pos + 1}"
    if body[0] == "{" and (error.pos >= len(body) or error.msg.startswith("Unterminated")):
        # the first line of one pretty-printed object, or a line that was cut short
        return f"not a JSON object on one line: {at}; write each row on one line, or all rows as one [array]"
    return f"not JSON: {at}"


class _Array:
    """The elements of one JSON array, decoded from a buffer that holds little more than one of them."""

    def __init__(self, file: str, text: TextIO, flawed: str) -> None:
        self.file, self.text, self.flawed = file, text, flawed
        self.buffer, self.at, self.line, self.element, self.ended = "", 0, 1, 0, False
        self.json = _Json()

    def rows(self) -> Iterator[Row | BadRow]:
        self._next()
        bracket = self.line
        self._advance(self.at + 1)  # the bracket that made this an array
        mark = "," if self._next() != "]" else "]"
        while mark == ",":
            self.element += 1
            self._next()
            where = Where(self.file, self.line, self.element if self.line == bracket else None)
            value, end = self._decode()
            if self.flawed and _UNDECODED.search(self.buffer, self.at, end):
                raise self._broken(self.at, self.flawed)
            halves = self.buffer.find("\\", self.at, end) >= 0 and _HALF.search(self.buffer, self.at, end)
            why = self.json.flaw(value) if halves or self.json.constants else None
            yield BadRow(where, why) if why else Row(value, where)
            self._advance(end)
            mark = self._next()
            if mark == ",":
                self._advance(self.at + 1)
            elif mark != "]":
                what = "no comma or bracket follows it" if mark else "the file ends before the array does"
                raise self._broken(self.at, what)
        self._advance(self.at + 1)
        if self._next():
            what = "text after the array's closing bracket"
            raise DataError(f"{self.file}:{self.line}: {what}; a file holds one array, or one row per line")

    def _decode(self) -> tuple[Any, int]:
        """The value at `at` and where it ends, reading on while the buffer stops inside it."""
        while True:
            try:
                value, end = self.json.decode(self.buffer, self.at)
                if self.ended or end + _TAIL <= len(self.buffer):  # else 12 may be the start of 123
                    return value, end
            except json.JSONDecodeError as error:
                # An error well inside the buffer stays one whatever follows; only an open string cannot tell.
                open_string = error.msg.startswith("Unterminated")
                if self.ended or (error.pos + _TAIL <= len(self.buffer) and not open_string):
                    cut = open_string or error.pos >= len(self.buffer.rstrip(_BLANK))
                    why = "the file ends inside it" if cut else "not JSON"
                    raise self._broken(error.pos, f"{why}: {_complaint(error)}") from None
            except (ValueError, RecursionError) as error:
                raise self._broken(self.at, _complaint(error)) from None
            self._fill()

    def _next(self) -> str:
        """Steps over blanks; the character there, or nothing at the file's end."""
        while True:
            rest = self.at
            while rest < len(self.buffer) and self.buffer[rest] in _BLANK:
                rest += 1
            self._advance(rest)
            if rest < len(self.buffer) or self.ended:
                return self.buffer[rest : rest + 1]
            self._fill()

    def _advance(self, to: int) -> None:
        self.line += self.buffer.count("\n", self.at, to)
        self.at = to

    def _fill(self) -> None:
        """Drops what is used up and reads at least as much as is left: an element is retried log(n) times."""
        rest = self.buffer[self.at :]
        more = self.text.read(max(len(rest), 1 << 16))
        self.buffer, self.at, self.ended = rest + more, 0, not more

    def _broken(self, position: int, why: str) -> DataError:
        line = self.line + self.buffer.count("\n", self.at, position)
        return DataError(f"{self.file}:{line}: element {self.element} of the array: {why}")


def _csv_rows(file: str, text: TextIO, separator: str, flawed: str) -> Iterator[Row | BadRow]:
    if csv.field_size_limit() < _LONGEST_CELL:  # Python's own limit, 131072, is less than a long record
        csv.field_size_limit(_LONGEST_CELL)
    ended = 0  # lines so far; csv's own count also counts a lone "\r"

    def lines() -> Iterator[str]:
        nonlocal ended
        for line in text:
            ended += line.endswith("\n")
            yield line

    records = csv.reader(lines(), delimiter=separator, strict=True)
    header: list[str] = []
    while True:
        where = Where(file, ended + 1)
        try:
            cells = next(records, None)
        except csv.Error as error:
            # Inside or outside quotes is unknown from here on, so the next record cannot be found.
            what = "a quote in the record that begins here is not closed, or not doubled inside a cell"
            raise DataError(f"{where}: {what} ({error})") from None
        if cells is None:
            return
        if not cells or (len(cells) == 1 != len(header) and not cells[0].strip()):
            continue
        undecoded = bool(flawed and _UNDECODED.search("".join(cells)))
        if not header:
            if undecoded:
                raise DataError(f"{where}: {flawed} in the header")
            header = _header(where, cells)
        elif undecoded:
            yield BadRow(where, flawed)
        elif len(cells) != len(header):
            yield BadRow(where, f"{len(cells)} cells, the header has {len(header)}")
        else:
            yield Row(dict(zip(header, cells, strict=True)), where)


def _header(where: Where, cells: list[str]) -> list[str]:
    names = [cell if cell.strip() else f"column{position}" for position, cell in enumerate(cells, 1)]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{where}: two columns are named {name!r}; every name must differ")
    return names
