"""The files that a path names, and their rows: JSON lines, JSON arrays and CSV, in UTF-8 or GB18030."""

from __future__ import annotations

import codecs
import csv
import difflib
import glob
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from medframe.dataset import BadRow, Row, Where
from medframe.errors import DataError

_CHUNK = 1 << 18
_BLANK = " \t\r\n"
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_JSON_NAMES = {".json", ".jsonl", ".ndjson", ".txt"}
_BOMS = (codecs.BOM_UTF8, b"\x84\x31\x95\x33")  # the second is GB18030's
_WIDE_BOMS = {  # UTF-32 first: its little-endian mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
# A longer cell is a quote that was never closed: stop there, not after holding the whole file in memory.
_LONGEST_CELL = 1 << 24
# The longest token that json reports or half-reads when the text stops inside it is `\ud83d\ude0`.
_TAIL = 16
_UNDECODED = re.compile("[\udc80-\udcff]")  # what errors="surrogateescape" leaves of a byte
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # an escape for half of a surrogate pair; its other half may follow


def find(path: str | list[str]) -> list[Path]:
    """The files that a path, a list of paths, or globs (`**` too) name, each once, each glob's sorted.

    DataError when one is missing, is a folder, or matches nothing.
    """
    names = [path] if isinstance(path, str) else path
    if not names or not all(names):
        raise DataError("path: empty; give a file, a list of files or a glob such as data/*.jsonl")
    found: dict[Path, Path] = {}  # resolved -> as named, so that ./a and a are one file
    for name in names:
        try:
            for file in _matches(os.path.expanduser(name)):
                found.setdefault(file.resolve(), file)
        except OSError as error:
            raise DataError(f"{name}: cannot be looked up: {error.strerror or error}") from error
    return list(found.values())


def read(files: Sequence[Path]) -> Iterator[Row | BadRow]:
    """Every row of every file in order, with the file and 1-based line where it begins; memory stays flat.

    DataError for a file that cannot be read, or that breaks where no later row could be found.
    """
    for file in files:
        try:
            yield from _rows(file)
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:  # the first pass found none
            raise DataError(f"{file}: changed while it was being read") from error


def fingerprint(files: Sequence[Path]) -> str:
    """The sha256, in hex, of the files' contents in order; their names do not matter."""
    digest = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as raw:
                # The length marks where one file ends: moving a row to the next file is a change.
                digest.update(os.fstat(raw.fileno()).st_size.to_bytes(8, "big"))
                while chunk := raw.read(_CHUNK):
                    digest.update(chunk)
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def _matches(name: str) -> list[Path]:
    path = Path(name)
    if path.is_file():  # before globbing: `[1].json` may be a file's real name
        return [path]
    if path.is_dir():
        raise DataError(f"{name}: is a folder; name its files, for example {path / '*.jsonl'}")
    if path.exists():
        raise DataError(f"{name}: is not a regular file, and rows are read in two passes; save it to a file")
    if glob.has_magic(name):
        files = [Path(match) for match in sorted(glob.glob(name, recursive=True)) if os.path.isfile(match)]
        if not files:
            raise DataError(f"{name}: matches no file (looked from {Path.cwd()}); give a glob that does")
        return files
    if not path.parent.is_dir():
        raise DataError(f"{name}: no such file: there is no folder {path.parent} (looked from {Path.cwd()})")
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    hint = f"did you mean {path.parent / near[0]}?" if near else f"give a file in {path.parent.resolve()}"
    raise DataError(f"{name}: no such file; {hint}")


def _rows(file: Path) -> Iterator[Row | BadRow]:
    with file.open("rb") as raw:
        head = raw.read(4)
        for mark, name in _WIDE_BOMS.items():
            if head.startswith(mark):
                raise DataError(f"{file}: is {name}; convert it to UTF-8: iconv -f {name} -t UTF-8")
        start = next((len(mark) for mark in _BOMS if head.startswith(mark)), 0)
        raw.seek(start)
        separator = _SEPARATORS.get(file.suffix.lower())
        first = b"" if separator else _first(raw)
        if not (separator or first in (b"", b"[", b"{") or file.suffix.lower() in _JSON_NAMES):
            known = "JSON lines and JSON arrays (any name), .csv and .tsv"
            raise DataError(f"{file}: neither begins like JSON nor is named like CSV; what is read: {known}")
        raw.seek(start)
        encoding, clean = _encoding(file, raw)
        raw.seek(start)
        errors = "strict" if clean else "surrogateescape"
        # "\n" alone ends a JSON line: U+2028 and "\r" do not. CSV wants to see line ends as they are.
        text = io.TextIOWrapper(raw, encoding, errors, newline="" if separator else "\n")
        flawed = "" if clean else f"bytes that are not {encoding.upper()}"
        if separator:
            yield from _csv_rows(str(file), text, separator, flawed)
        elif first == b"[":
            yield from _Array(str(file), text, flawed).rows()
        else:
            yield from _json_lines(str(file), text, flawed)


def _first(raw: BinaryIO) -> bytes:
    """The first byte that is not blank; `[` and `{` are the same byte in both encodings."""
    while chunk := raw.read(1 << 12):
        if body := chunk.lstrip(_BLANK.encode()):
            return body[:1]
    return b""


def _encoding(file: Path, raw: BinaryIO) -> tuple[str, bool]:
    """The encoding that most lines are in, and whether all of them are."""
    utf8 = codecs.getincrementaldecoder("utf-8")()
    start = raw.tell()
    try:
        while chunk := raw.read(_CHUNK):
            utf8.decode(chunk)
        utf8.decode(b"", final=True)
        return "utf-8", True
    except UnicodeDecodeError:
        raw.seek(start)
    # One bad byte must not turn a UTF-8 file into GB18030 mojibake: lines vote. Splitting bytes at "\n" is
    # safe, it is no part of a longer character in either; a line of any length is decoded in pieces.
    decoders = {name: codecs.getincrementaldecoder(name)() for name in ("utf-8", "gb18030")}
    votes = dict.fromkeys(decoders, 0)
    lines, ascii_so_far, valid = 0, True, set(decoders)
    while True:
        piece = raw.readline(_CHUNK)
        over = not piece or piece.endswith(b"\n")
        ascii_so_far = ascii_so_far and piece.isascii()
        if not ascii_so_far:
            for name in tuple(valid):
                try:
                    decoders[name].decode(piece, over)
                except UnicodeDecodeError:
                    valid.remove(name)
            if over:
                lines += 1
                for name, decoder in decoders.items():
                    votes[name] += name in valid
                    decoder.reset()
                ascii_so_far, valid = True, set(decoders)
        if not piece:
            break
    for name, count in votes.items():
        if 2 * count >= lines:
            return name, count == lines
    raise DataError(f"{file}: neither UTF-8 nor GB18030; convert it, for example: iconv -f BIG5 -t UTF-8")


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
        self._advance(self.at + 1)  # the bracket that made this an array
        mark = "," if self._next() != "]" else "]"
        while mark == ",":
            self.element += 1
            self._next()
            where = Where(self.file, self.line)
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
