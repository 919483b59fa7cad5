"""The merged tensors, streamed into safetensors files, and each file read again to prove what it holds."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medframe.errors import ProofError
from medframe.merge.compute import Workspace, merged
from medframe.merge.plan import Output, Plan, told
from medframe.merge.tensors import DTYPES, FLOATING, in_safetensors, pieces

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LOOK = 1 << 20
"""Bytes that are looked at together: few enough to stay in a processor's cache."""
_EXPONENTS = {"F16": ("uint16", 0x7C00), "BF16": ("uint16", 0x7F80), "F32": ("uint32", 0x7F800000)}
"""The bits that are all set in what is no finite number."""


@dataclass(frozen=True)
class Written:
    """One tensor as it was written."""

    name: str
    checksum: int
    """crc32 of the bytes that were computed."""
    differs: bool
    """Whether an adapter has changed any number of it."""


def write(
    plan: Plan, folder: Path, shard_size: int, once: bool, say: Callable[[str], None]
) -> tuple[list[Written], dict[str, str]]:
    """Write every tensor of the plan into files of at most `shard_size` bytes, if one tensor is not more, and an index.

    No more than two tensors are in memory. Every file has reached the disk, and is read again: ProofError when a tensor
    there is not the one that was computed, or is not finite. Returns what was written, and of each tensor on the disk
    the sha256.
    """
    shards = list(_shards(plan, shard_size))
    names = [_name(number, len(shards)) for number in range(1, len(shards) + 1)]
    written: list[Written] = []
    proofs: list[Future[dict[str, str]]] = []
    digests: dict[str, str] = {}
    space = Workspace()
    with ThreadPoolExecutor(1) as beside:  # while the next file is computed
        try:
            for number, (name, outputs) in enumerate(zip(names, shards, strict=True), 1):
                done = _write_file(folder / name, outputs, plan, once, space)
                proofs.append(beside.submit(_proven, folder / name, done))
                written += done
                total = sum(plan.size(output) for output in outputs)
                say(f"  {number} of {len(shards)}: {name}, {told(total)}")
            for proof in proofs:
                digests |= proof.result()
        finally:
            for proof in proofs:
                proof.cancel()
    if len(shards) > 1:
        places = {output.name: name for name, outputs in zip(names, shards, strict=True) for output in outputs}
        index = {"metadata": {"total_size": plan.bytes}, "weight_map": dict(sorted(places.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    return written, digests


def _shards(plan: Plan, most: int) -> Iterator[list[Output]]:
    shard: list[Output] = []
    size = 0
    for output in plan.outputs:
        if shard and size + plan.size(output) > most:
            yield shard
            shard, size = [], 0
        shard.append(output)
        size += plan.size(output)
    yield shard


def _name(number: int, of: int) -> str:
    return "model.safetensors" if of == 1 else f"model-{number:05}-of-{of:05}.safetensors"


def _write_file(file: Path, outputs: Sequence[Output], plan: Plan, once: bool, space: Workspace) -> list[Written]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for output in outputs:
        start, end = end, end + plan.size(output)
        shape, dtype = list(output.shape), plan.dtype_of(output)
        header[output.name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the content begins at a multiple of eight
    written: list[Future[Written]] = []
    # While one tensor is written, the next is computed: two are in memory.
    with file.open("wb", buffering=0) as stream, ThreadPoolExecutor(1) as writer:
        _write_all(stream, memoryview(len(text).to_bytes(8, "little") + text))
        for output in outputs:
            content, differs = _content(output, plan.dtype_of(output), once, space)
            if written:
                written[-1].result()
            written.append(writer.submit(_write_tensor, stream, output, plan.dtype_of(output), content, differs))
        return [each.result() for each in written]


def _content(output: Output, dtype: str, once: bool, space: Workspace) -> tuple[Iterator[memoryview], bool]:
    """The bytes of the merged tensor, and whether any of its numbers is another than before."""
    import torch

    if not output.changes and output.source.dtype == dtype:
        return output.source.pieces(), False
    tensor, differs = merged(output, getattr(torch, DTYPES[dtype]), once, space)
    return pieces(tensor.contiguous()), differs


def _write_tensor(stream: Any, output: Output, dtype: str, content: Iterator[memoryview], differs: bool) -> Written:
    checksum = 0
    for piece in content:
        checksum = zlib.crc32(piece, checksum)
        if dtype in FLOATING and not _finite(piece, dtype):
            hint = "; float16 ends at 65,504: --dtype bfloat16 or float32 may hold it" if dtype == "F16" else ""
            raise ProofError(f"{output.name} is not finite{' once merged' if output.changes else ' in the base'}{hint}")
        _write_all(stream, piece)
    return Written(output.name, checksum, differs)


def _finite(piece: memoryview, dtype: str) -> bool:
    import numpy as np

    if dtype == "F64":
        return bool(np.isfinite(np.frombuffer(piece, np.float64)).all())
    kind, mask = _EXPONENTS[dtype]
    for start in range(0, len(piece), _LOOK):
        bits: NDArray[Any] = np.frombuffer(piece[start : start + _LOOK], kind) & np.array(mask, kind)
        if int(bits.max()) == mask:
            return False
    return True


def _write_all(stream: Any, piece: memoryview) -> None:
    done = 0
    while done < len(piece):  # a write may take a part of it, before a full disk says so
        done += stream.write(piece[done:])


def _proven(file: Path, written: Sequence[Written]) -> dict[str, str]:
    """Have the file on the disk, and read it again: the sha256 of each tensor, by its name."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    stored = in_safetensors(file)
    found = {}
    for tensor in written:
        digest, checksum = hashlib.sha256(), 0
        for piece in stored[tensor.name].pieces():
            digest.update(piece)
            checksum = zlib.crc32(piece, checksum)
        if checksum != tensor.checksum:
            raise ProofError(f"{file}: {tensor.name} does not hold what was computed")
        found[tensor.name] = digest.hexdigest()
    return found
