"""What a run is bound to, by content, and the check before anything uses it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import medframe
from medframe import hub
from medframe.backbone import Backbone
from medframe.errors import BackboneError, RunError
from medframe.fingerprint import format_fingerprint, tokenizer_fingerprint
from medframe.weights import pickled

if TYPE_CHECKING:
    from medframe.plugins import Component
    from medframe.prepare import Prepared
    from medframe.prompt import PromptFormat
    from medframe.recipe import Recipe
    from medframe.source import Source

WHOLE = 1 << 20
"""Tensors up to this many bytes are hashed whole; of larger ones, WINDOWS pieces of 4 KiB at fixed offsets."""
WINDOWS = 64
_SETS = {"target_modules", "exclude_modules"}
"""What peft keeps as sets in its configuration, and writes in another order each time."""


def describe(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    """The manifest of a run that is about to start."""
    from medframe.source import Source

    sources: list[Source] = list(recipe.data)
    if isinstance(recipe.held_out, Source):
        sources.append(recipe.held_out)
    return {
        "kind": "run",
        "medframe": medframe.__version__,
        "state": "training",
        "profile": recipe.profile,
        "seed": recipe.seed,
        "base": base(recipe.backbone),
        "hub": hub.commits(_named(recipe.backbone, sources)),
        "tokenizer": tokenizer_fingerprint(prepared.tokenizer),
        "prompt": layout(recipe.prompt, recipe.components["prompt"], prepared.tokenizer),
        "data": [
            {**_data(source), "encoded": digest} for source, digest in zip(sources, prepared.digests, strict=True)
        ],
        "plugins": {section: plugin(component) for section, component in recipe.components.items()},
        "libraries": libraries(),
        "python": platform.python_version(),
        "machine": machine(),
        "commit": _commit(),
    }


def layout(prompt: PromptFormat, component: Component, tokenizer: Any) -> dict[str, Any]:
    """What a manifest says of a prompt format with this tokenizer."""
    return {
        "use": component.name,
        "fields": asdict(prompt),
        "fingerprint": format_fingerprint(prompt, tokenizer),
        "skew": prompt.skew,
    }


def plugin(component: Component) -> dict[str, str]:
    """Who offers a component."""
    return {
        "name": component.name,
        "distribution": component.distribution,
        "version": component.version,
        "target": component.target,
    }


def libraries() -> dict[str, str]:
    """The versions of the libraries that decide what is computed."""
    return {name: version(name) for name in ("torch", "transformers", "peft", "accelerate", "tokenizers")}


def _named(backbone: Backbone, sources: Sequence[Source]) -> Iterator[str]:
    """Every weight and path as the recipe names it."""
    yield from (name for name in (backbone.weights, backbone.tokenizer, *backbone.adapters) if name)
    for source in sources:
        for field in source.dataset.path_fields:
            value = getattr(source.dataset, field)
            yield from value if isinstance(value, list) else [value] if isinstance(value, str) else []


def base(backbone: Backbone) -> dict[str, Any]:
    """What the untrained model is, by content: a fingerprint, and a digest of each tensor to name one that differs."""
    directories = [backbone.directory(), *backbone.adapter_directories()]
    tensors: dict[str, str] = {}
    configs = []
    for number, directory in enumerate(directories):
        prefix = f"adapter {number}: " if number else ""
        tensors |= {f"{prefix}{name}": digest for name, digest in _tensors(directory)}
        configs.append(_config(directory))
    whole = hashlib.sha256(json.dumps([sorted(tensors.items()), configs], sort_keys=True).encode()).hexdigest()
    return {"weights": hub.shown(directories[0]), "fingerprint": whole, "tensors": dict(sorted(tensors.items()))}


def check_adapters(backbone: Backbone) -> None:
    """RunError for an adapter that a run trained on something else than what it is applied to here."""
    if backbone.is_random:
        return  # no adapter was trained on it
    for number, directory in enumerate(backbone.adapter_directories()):
        try:
            trained_on = json.loads((directory.parent / "manifest.json").read_text("utf-8"))["base"]
            expected, name = trained_on["fingerprint"], trained_on["weights"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not of a run: what it was trained on is not recorded
        found = base(replace(backbone, adapters=backbone.adapters[:number]))["fingerprint"]
        if found != expected:
            raise RunError(
                f"backbone.adapters: {directory} was trained on {name}, fingerprint {_short(expected)}; here it would "
                f"be applied to one of fingerprint {_short(found)}"
            )


def check(manifest: Mapping[str, Any], backbone: Backbone, encoder_tokenizer: Any, prompt: PromptFormat) -> None:
    """Raise RunError unless base model, tokenizer and prompt format are those that the run was trained with."""
    found = base(backbone)
    if apart := differing(manifest["base"], found):
        raise RunError(
            f"the base model in {found['weights']} is not the one this run was trained on: {apart}. "
            "Give the directory of the right one with --base"
        )
    check_tokenizer(manifest["tokenizer"], encoder_tokenizer, backbone, "this run was trained")
    check_layout(manifest, prompt, encoder_tokenizer, "the run was trained")


def differing(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """How what `base` found differs from what was expected, in words; None where it does not."""
    if expected["fingerprint"] == found["fingerprint"]:
        return None
    names = sorted({*expected["tensors"], *found["tensors"]})
    apart = [n for n in names if expected["tensors"].get(n) != found["tensors"].get(n)]
    detail = f"{len(apart)} of {len(names)} tensors differ, first {apart[0]}" if apart else "config.json differs"
    return f"expected fingerprint {_short(expected['fingerprint'])}, found {_short(found['fingerprint'])}; {detail}"


def check_tokenizer(expected: str, tokenizer: Any, backbone: Backbone, who: str) -> None:
    """RunError unless the tokenizer has the expected fingerprint; `who` says who was made with it."""
    actual = tokenizer_fingerprint(tokenizer)
    if actual != expected:
        raise RunError(
            f"the tokenizer is not the one {who} with: expected fingerprint "
            f"{_short(expected)}, found {_short(actual)} in {backbone.tokenizer_directory()}"
        )


def check_layout(manifest: Mapping[str, Any], prompt: PromptFormat, tokenizer: Any, who: str) -> None:
    """RunError unless the prompt format lays out as the manifest says; `who` says who was made with it."""
    actual, wanted = format_fingerprint(prompt, tokenizer), manifest["prompt"]
    if actual != wanted["fingerprint"]:
        offered = manifest["plugins"]["prompt"]
        raise RunError(
            f"the prompt format {wanted['use']!r} lays conversations out differently than in training: expected "
            f"fingerprint {_short(wanted['fingerprint'])}, found {_short(actual)}; {who} with "
            f"{offered['distribution']} {offered['version']}"
        )


def trained_content(out: Path) -> str:
    """sha256 over the tensors and the configuration of what the run in `out` trained, adapter/ or model/."""
    return fingerprint_of(next(out / name for name in ("adapter", "model") if (out / name).is_dir()))


def fingerprint_of(directory: Path) -> str:
    """sha256 over the tensors and the configuration of a directory of weights or of an adapter."""
    found = [sorted(_tensors(directory)), _config(directory)]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _tensors(directory: Path) -> Iterator[tuple[str, str]]:
    """(name, digest over dtype, shape and content) of every tensor in the directory's weight files."""
    if files := sorted(directory.glob("*.safetensors")):
        for file in files:
            yield from _safetensors(file)
        return
    import torch

    files = sorted(f for f in directory.glob("*.bin") if f.name.startswith(("pytorch_model", "adapter_model")))
    if not files:
        raise BackboneError(f"backbone.weights: {directory} has neither *.safetensors nor pytorch_model*.bin")
    for file in files:
        for name, tensor in pickled(file).items():
            whole: Any = tensor.contiguous().flatten().view(torch.uint8).numpy()
            yield name, _digest(f"{tensor.dtype} {list(tensor.shape)}", len(whole), _slices(memoryview(whole)))


def _safetensors(file: Path) -> Iterator[tuple[str, str]]:
    with file.open("rb") as stream:
        try:
            (size,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(size))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                start, end = (8 + size + offset for offset in entry["data_offsets"])
                kind = f"{entry['dtype']} {entry['shape']}"
                yield name, _digest(kind, end - start, _reads(stream.fileno(), start))
        except (struct.error, ValueError, KeyError, UnicodeDecodeError) as error:
            raise BackboneError(f"{file} is no safetensors file: {error}") from None


def _digest(kind: str, size: int, part: Callable[[int, int], bytes | memoryview]) -> str:
    """Of `size` bytes, of which `part(at, count)` gives some."""
    digest = hashlib.sha256(kind.encode())
    if size <= WHOLE:
        digest.update(part(0, size))
    else:
        for window in range(WINDOWS):
            digest.update(part((size - 4096) * window // (WINDOWS - 1), 4096))
    return digest.hexdigest()[:16]


def _slices(content: memoryview) -> Callable[[int, int], memoryview]:
    return lambda at, count: content[at : at + count]


def _reads(descriptor: int, start: int) -> Callable[[int, int], bytes]:
    """Plain reads: of a mapped file, each window would bring its surroundings into memory."""

    def part(at: int, count: int) -> bytes:
        found = os.pread(descriptor, count, start + at)
        if len(found) != count:
            raise ValueError("it is cut short")
        return found

    return part


def _config(directory: Path) -> Any:
    """The configuration, less what a mere re-save changes."""
    for name in ("config.json", "adapter_config.json"):
        if (directory / name).is_file():
            config = json.loads((directory / name).read_text("utf-8"))
            volatile = ("transformers_version", "_name_or_path", "base_model_name_or_path", "peft_version")
            for key in _SETS & config.keys():
                if isinstance(config[key], list):
                    config[key] = sorted(config[key])
            return {key: value for key, value in config.items() if key not in volatile}
    return None


def _data(source: Source) -> dict[str, Any]:
    return {
        "section": source.name,
        "path": source.dataset.path,
        "content": source.dataset.fingerprint(),
        "licence": source.dataset.licence,
        "homepage": source.dataset.homepage,
    }


def machine() -> str:
    """What this process computes on, in words."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU, {platform.machine()}, {torch.get_num_threads()} threads"


def _commit() -> str | None:
    """The git commit of the working directory, where it is in a repository."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def _short(digest: str) -> str:
    return digest[:12]
