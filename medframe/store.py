"""Encoded examples on disk, memory-mapped, found again by the content of all they depend on."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import medframe
from medframe import cache
from medframe.dataset import BadRow, Where
from medframe.encode import Encoded, Encoder, Unlearnable
from medframe.errors import DataError
from medframe.fingerprint import format_fingerprint, tokenizer_fingerprint
from medframe.ledger import Ledger

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medframe.source import Source

Outcome = Encoded | Unlearnable | BadRow

_CODE = ("dataset", "files", "hub", "rows", "encode", "tokens", "shorten", "ledger", "store")
"""The core's own modules that a row passes on its way into the store."""


class Examples:
    """The examples of one source: token ids and labels, read from disk as they are asked for."""

    def __init__(self, folder: Path, temporary: tempfile.TemporaryDirectory[str] | None = None) -> None:
        import numpy as np

        self._temporary = temporary  # removed with this object
        meta = json.loads((folder / "ledger.json").read_text("utf-8"))
        self.folder = folder
        self.ledger = Ledger.from_json(meta["ledger"])
        self.digest: str = meta["digest"]
        """sha256 of the examples' ids and labels."""
        self._files: list[str] = meta["files"]
        self._ids = _map(folder / "ids", np.int32)
        self._trained = _map(folder / "trained", np.bool_)
        self._ends = _map(folder / "ends", np.int64)
        self._lines = _map(folder / "lines", np.int64)
        self._file = _map(folder / "file", np.int32)
        self._element = _map(folder / "element", np.int32)
        self._row = _map(folder / "row", np.int64)
        self.supervised: NDArray[np.int32] = _map(folder / "supervised", np.int32)
        """Tokens with a loss, by example."""
        self.lengths: NDArray[np.int64] = np.diff(self._ends, prepend=0)
        """Tokens, by example."""

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Number of the row that each example came from, counting those with examples: windows of one row share it."""
        import numpy as np

        # By its number, not its line: the rows of an array on one line share that.
        return np.cumsum(np.diff(self._row, prepend=0) != 0) - 1

    def ids(self, index: int) -> NDArray[np.int32]:
        """Token ids, int32 [length]."""
        return self._ids[self._ends[index] - self.lengths[index] : self._ends[index]]

    def trained(self, index: int) -> NDArray[np.bool_]:
        """Which tokens are trained, bool [length]."""
        return self._trained[self._ends[index] - self.lengths[index] : self._ends[index]]

    def where(self, index: int) -> Where:
        """The row that the example came from."""
        return Where(self._files[self._file[index]], int(self._lines[index]), int(self._element[index]) or None)


def examples(source: Source, encoder: Encoder) -> Examples:
    """The source's examples, encoded now or found in the cache; DataError as the limits say."""
    content = source.dataset.fingerprint()
    if content is None:
        # Nothing tells whether this source still gives the same rows, so it is never reused.
        temporary = tempfile.TemporaryDirectory(prefix="medframe-store-")
        _write(Path(temporary.name), source, encoder)
        return Examples(Path(temporary.name), temporary)
    key = _key(source, encoder, content)

    def make(aside: Path) -> None:
        _write(aside, source, encoder)

    folder = cache.made(f"store/{key}", make)
    if not _is_whole(folder):
        shutil.rmtree(folder)
        folder = cache.made(f"store/{key}", make)
    found = Examples(folder)
    found.ledger.source = source.name  # the same rows may have been encoded under another name
    return found


def _write(folder: Path, source: Source, encoder: Encoder) -> None:
    ledger = Ledger(source.name)
    files: dict[str, int] = {}
    names = {"ids": "i", "trained": "b", "ends": "q", "lines": "q", "element": "i"}
    names |= {"file": "i", "row": "q", "supervised": "i"}
    columns = {name: array(code) for name, code in names.items()}
    streams = {name: (folder / name).open("wb") for name in names}
    digest = hashlib.sha256()
    end = 0

    def flush() -> None:
        for name, column in columns.items():
            column.tofile(streams[name])
            if name in ("ids", "trained", "ends"):
                digest.update(column)
            del column[:]

    try:
        for count, outcome in enumerate(_repeats_marked(encoder.encode(source.rows())), 1):
            for example in ledger.add(outcome, encoder.limits):
                end += len(example.ids)
                columns["ids"].extend(example.ids)
                columns["trained"].frombytes(example.trained)
                columns["ends"].append(end)
                columns["lines"].append(outcome.where.line)
                columns["element"].append(outcome.where.element or 0)
                columns["file"].append(files.setdefault(outcome.where.file, len(files)))
                columns["row"].append(count)
                columns["supervised"].append(example.supervised)
            if count % 1000 == 0:
                flush()
        flush()
    finally:
        for stream in streams.values():
            stream.close()
    if not ledger.rows:
        raise DataError(f"data.{source.name}: no rows in {_shown(source)}")
    sizes = {name: (folder / name).stat().st_size for name in names}
    meta = {"ledger": ledger.to_json(), "files": list(files), "digest": digest.hexdigest(), "sizes": sizes}
    (folder / "ledger.json").write_text(json.dumps(meta, ensure_ascii=False), "utf-8")


def _repeats_marked(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """The outcomes; those that became the same as an earlier one say so."""
    seen: set[int] = set()
    for outcome in outcomes:
        if not isinstance(outcome, Encoded):
            yield outcome
            continue
        # 64 bits: that two of a million rows differ and look alike has a chance of one in 37 million.
        content = hash(tuple((tuple(example.ids), example.trained) for example in outcome.examples))
        yield replace(outcome, repeats=True) if content in seen else outcome
        seen.add(content)


def _is_whole(folder: Path) -> bool:
    """Whether the store has what was written: a disk that was full or a power cut may have taken some of it."""
    try:
        sizes = json.loads((folder / "ledger.json").read_text("utf-8"))["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _key(source: Source, encoder: Encoder, content: str) -> str:
    parts: dict[str, Any] = {
        "medframe": medframe.__version__,
        "code": [_module_sha(f"medframe.{name}") for name in _CODE],
        "dataset": _code_of(type(source.dataset)),
        # The values themselves: what the recipe holds may be ${oc.env:X}, and mean something else by now.
        "section": {f.name: getattr(source.dataset, f.name) for f in fields(source.dataset)},
        "limit": source.mix.limit,
        "content": content,
        "format": format_fingerprint(encoder.prompt, encoder.tokenizer),
        "prompt": [repr(encoder.prompt), _code_of(type(encoder.prompt))],
        "tokenizer": tokenizer_fingerprint(encoder.tokenizer),
        "limits": repr(encoder.limits),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _code_of(cls: type) -> list[list[str]]:
    """The class and what it inherits from, each with the content of its module or, in a plugin, of its package."""
    return [[base.__qualname__, _code_around(base.__module__)] for base in cls.__mro__ if base is not object]


def _code_around(module: str) -> str:
    """A digest of the modules that the one may draw on: those of its package; of the core, `_CODE` tells."""
    top = module.partition(".")[0]
    spec = importlib.util.find_spec(top)
    if top == medframe.__name__ or spec is None or not spec.submodule_search_locations:
        return _module_sha(module)
    files = sorted(file for folder in spec.submodule_search_locations for file in Path(folder).rglob("*.py"))
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


def _module_sha(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return module
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def _map(file: Path, dtype: Any) -> NDArray[Any]:
    import numpy as np

    # An empty file cannot be mapped.
    return np.memmap(file, dtype, "r") if file.stat().st_size else np.zeros(0, dtype)


def _shown(source: Source) -> str:
    path = source.dataset.path
    return ", ".join(path) if isinstance(path, list) else path
