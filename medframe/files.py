"""Files: those that a path names, what is in them as a digest, and how their text is encoded."""

from __future__ import annotations

import codecs
import difflib
import glob
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from medframe import hub
from medframe.errors import DataError

_CHUNK = 1 << 18
_BOMS = (codecs.BOM_UTF8, b"\x84\x31\x95\x33")  # the second is GB18030's
_WIDE_BOMS = {  # UTF-32 first: its little-endian mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def find(path: str | list[str]) -> list[Path]:
    """The files that a path, a list of paths, or globs (`**` too) name, each once, each glob's sorted.

    Those named hf://datasets/... are fetched where they are not in the hub's cache. DataError when one is missing, is
    a folder, or matches nothing.
    """
    names = [path] if isinstance(path, str) else path
    if not names or not all(names):
        raise DataError("path: empty; give a file, a list of files or a glob such as data/*.jsonl")
    found: dict[Path, Path] = {}  # resolved -> as named, so that ./a and a are one file
    for name in names:
        if "://" in name:
            # Not resolved: two files of the same content are one blob in the hub's cache.
            found |= {file: file for file in _on_hub(name)}
            continue
        try:
            for file in _matches(os.path.expanduser(name)):
                found.setdefault(file.resolve(), file)
        except OSError as error:
            raise DataError(f"{name}: cannot be looked up: {error.strerror or error}") from error
    return list(found.values())


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
            raise DataError(f"{hub.shown(file)}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def past_mark(file: str, raw: BinaryIO) -> int:
    """Step over a byte-order mark, and say where the text begins; DataError, naming `file`, for UTF-16 and UTF-32."""
    head = raw.read(4)
    for mark, name in _WIDE_BOMS.items():
        if head.startswith(mark):
            raise DataError(f"{file}: is {name}; convert it to UTF-8: iconv -f {name} -t UTF-8")
    start = next((len(mark) for mark in _BOMS if head.startswith(mark)), 0)
    raw.seek(start)
    return start


def encoding_of(file: str, raw: BinaryIO) -> tuple[str, bool]:
    """The encoding that most lines are in, and whether all of them are; DataError, naming `file`, where in none."""
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


def _on_hub(name: str) -> list[Path]:
    if not name.startswith(hub.SCHEME):
        raise DataError(f"{name}: is no file here, and elsewhere only {hub.SCHEME}datasets/OWNER/NAME/FILE is read")
    try:
        return hub.data(name)
    except hub.HubError as error:
        raise DataError(str(error)) from error


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
        hint = ""
        if not path.suffix and path.parent.parent.is_dir():  # it may have been meant as a hub id
            hint = f"; a data set of the hub is named {hub.SCHEME}datasets/{path.parent.name}/{path.name}"
        raise DataError(f"{name}: no such file: there is no folder {path.parent} (looked from {Path.cwd()}){hint}")
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    hint = f"did you mean {path.parent / near[0]}?" if near else f"give a file in {path.parent.resolve()}"
    raise DataError(f"{name}: no such file; {hint}")
