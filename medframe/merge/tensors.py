"""Tensors in files: what there is by name, told from headers, and the content of one at a time."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from medframe.errors import BackboneError
from medframe.weights import pickled

if TYPE_CHECKING:
    import torch

PIECE = 8 << 20
"""Bytes that are read, copied or looked at together: little beside any model."""
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""safetensors' names of the types that are known here, and torch's."""
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Bytes of one element."""
FLOATING = ("F64", "F32", "F16", "BF16")


class Space(Protocol):
    """Memory to read a tensor into."""

    def weight(self, size: int) -> torch.Tensor:
        """So many bytes."""


class Stored(Protocol):
    """One tensor in a file."""

    @property
    def name(self) -> str: ...
    @property
    def file(self) -> Path: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str:
        """As safetensors names it."""

    def read(self, space: Space | None = None) -> torch.Tensor:
        """The tensor, in the memory of `space` or in memory of its own."""

    def pieces(self) -> Iterator[memoryview]:
        """Its bytes in order; each piece is valid until the next is asked for."""


@dataclass(frozen=True)
class InSafetensors:
    """A tensor in a safetensors file. It is read by plain reads: pages of a mapped file would count as memory."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str
    start: int
    """Where its bytes begin in the file."""
    size: int
    """How many bytes it has."""

    def read(self, space: Space | None = None) -> torch.Tensor:
        import torch

        memory = space.weight(self.size) if space else torch.empty(self.size, dtype=torch.uint8)
        with self.file.open("rb", buffering=0) as stream:
            stream.seek(self.start)
            _fill(stream, _bytes(memory), self.file)
        dtype: torch.dtype = getattr(torch, DTYPES[self.dtype])
        return memory.view(dtype).view(self.shape)

    def pieces(self) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(min(PIECE, self.size)))
        with self.file.open("rb", buffering=0) as stream:
            stream.seek(self.start)
            for at in range(0, self.size, PIECE):
                piece = buffer[: min(PIECE, self.size - at)]
                _fill(stream, piece, self.file)
                yield piece


class Pickle:
    """A `.bin` file, a pickle of which nothing is run, opened anew now and then, so that few of its pages are kept."""

    _KEPT = 256 << 20

    def __init__(self, file: Path, what: str) -> None:
        self.file = file
        self.what = what
        self._zipped = zipfile.is_zipfile(file)  # what is not cannot be read in part
        self._tensors: dict[str, torch.Tensor] | None = None
        self._read = 0

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors by name, on pages of the file where it has such."""
        if self._tensors is None or (self._zipped and self._read > self._KEPT):
            self._tensors, self._read = None, 0
            self._tensors = pickled(self.file, self.what)
        return self._tensors

    def read(self, name: str) -> torch.Tensor:
        """A copy of one tensor."""
        tensor = self.tensors()[name]
        self._read += tensor.nbytes
        return tensor.contiguous().clone()


@dataclass(frozen=True)
class InPickle:
    """A tensor in a `.bin` file."""

    name: str
    pickle: Pickle = field(repr=False)
    shape: tuple[int, ...]
    dtype: str

    @property
    def file(self) -> Path:
        return self.pickle.file

    def read(self, space: Space | None = None) -> torch.Tensor:
        return self.pickle.read(self.name)  # it has been copied already

    def pieces(self) -> Iterator[memoryview]:
        yield from pieces(self.read())


def pieces(tensor: torch.Tensor) -> Iterator[memoryview]:
    """The bytes of a contiguous tensor in order."""
    whole = _bytes(tensor)
    yield from (whole[at : at + PIECE] for at in range(0, len(whole), PIECE))


def content(tensor: Stored) -> str:
    """sha256 of its bytes."""
    digest = hashlib.sha256()
    for piece in tensor.pieces():
        digest.update(piece)
    return digest.hexdigest()


def elements(tensor: Stored) -> int:
    """How many numbers it holds."""
    return math.prod(tensor.shape)


def of_model(directory: Path) -> dict[str, Stored]:
    """Every tensor of a model's directory by name, in the order in which they lie; BackboneError as `transformers`."""
    for single, index, read in (
        ("model.safetensors", "model.safetensors.index.json", in_safetensors),
        ("pytorch_model.bin", "pytorch_model.bin.index.json", in_pickle),
    ):
        if (directory / single).is_file():
            return dict(read(directory / single))
        if (directory / index).is_file():
            return _indexed(directory / index, read)
    raise BackboneError(
        f"backbone.weights: {directory} has neither model.safetensors nor pytorch_model.bin, nor an index of several"
    )


def _indexed(index: Path, read: Any) -> dict[str, Stored]:
    try:
        places: dict[str, str] = json.loads(index.read_text("utf-8"))["weight_map"]
        files = sorted({index.parent / name for name in places.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackboneError(f"backbone.weights: {index} is broken: {error!r}") from None
    found: dict[str, Stored] = {}
    for file in files:
        if not file.is_file():
            raise BackboneError(f"backbone.weights: {index} names {file.name}, which is not there")
        for name, tensor in read(file).items():
            if places.get(name) == file.name:
                found[name] = tensor
    if missing := sorted(places.keys() - found.keys()):
        raise BackboneError(f"backbone.weights: {index} names {missing[0]}, which {places[missing[0]]} does not hold")
    return found


def in_safetensors(file: Path, what: str = "weights") -> Mapping[str, Stored]:
    """The tensors of a safetensors file in the order of their bytes; BackboneError for one that is damaged."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            size = os.fstat(stream.fileno()).st_size - 8 - length
            if size < 0:
                raise ValueError("it is cut short")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        found = [_entry(file, name, entry, 8 + length) for name, entry in header.items()]
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackboneError(f"backbone.{what}: {file} is no whole safetensors file: {error}") from None
    found.sort(key=lambda tensor: tensor.start)
    if sum(tensor.size for tensor in found) != size:
        raise BackboneError(f"backbone.{what}: {file} is cut short or damaged: its tensors do not fill it")
    return {tensor.name: tensor for tensor in found}


def _entry(file: Path, name: str, entry: Mapping[str, Any], base: int) -> InSafetensors:
    start, end = entry["data_offsets"]
    shape, dtype = tuple(entry["shape"]), entry["dtype"]
    if dtype in SIZES and end - start != math.prod(shape) * SIZES[dtype]:
        raise ValueError(f"{name} has {end - start} bytes, not those of {list(shape)} {dtype}")
    return InSafetensors(name, file, shape, dtype, base + start, end - start)


def in_pickle(file: Path, what: str = "weights") -> Mapping[str, Stored]:
    """The tensors of a `.bin` file, read with nothing of it run; BackboneError where it holds anything else."""
    names = {torch_name: name for name, torch_name in DTYPES.items()}
    pickle = Pickle(file, what)
    found: dict[str, Stored] = {}
    for name, tensor in pickle.tensors().items():
        dtype = names.get(str(tensor.dtype).removeprefix("torch."))
        if dtype is None:
            raise BackboneError(f"backbone.{what}: {file}: {name} is of type {tensor.dtype}, which is not known here")
        found[name] = InPickle(name, pickle, tuple(tensor.shape), dtype)
    return found


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    import torch

    flat: Any = tensor.detach().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if len(flat) else memoryview(b"")


def _fill(stream: Any, buffer: memoryview, file: Path) -> None:
    done = 0
    while done < len(buffer):
        count = stream.readinto(buffer[done : done + PIECE])
        if not count:
            raise BackboneError(f"{file} ends early: it was changed while it was read")
        done += count
