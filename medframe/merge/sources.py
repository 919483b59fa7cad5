"""What a merge starts from: runs, directories and hub models, and where each of them came from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medframe import hub, weights
from medframe import manifest as manifests
from medframe.backbone import Backbone
from medframe.compose import compose
from medframe.decoding import Decoding
from medframe.errors import RunError
from medframe.model import backbone_for, checked, format_named
from medframe.plugins import Component
from medframe.prompt import PromptFormat
from medframe.recipe import single, speaker
from medframe.trained import open_run, read_manifest, trained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Source:
    """One of the things that are merged: a base model, or an adapter."""

    directory: str
    """Where it lies, or a hub id."""
    name: str
    """What others know it by."""
    run: Path | None = None
    """The run that trained it."""
    manifest: Mapping[str, Any] | None = None
    """Of that run, or of the model directory that it is."""


@dataclass(frozen=True)
class Sources:
    """All that is merged, and what the result will be spoken to in."""

    backbone: Backbone
    """The base model with the adapters."""
    component: Component
    tokenizer: PreTrainedTokenizerBase
    prompt: PromptFormat | None
    prompt_component: Component | None
    decoding: Decoding | None
    """How the run that brings the format answers."""
    beside: str | None
    """To how many bits the weights were rounded that an adapter was trained beside."""
    base: Source
    adapters: Sequence[Source]

    @property
    def is_tiny(self) -> bool:
        """Whether the base is, or comes from, the tiny random model."""
        return self.base.name == "tiny" or bool((self.base.manifest or {}).get("tiny"))

    def lineage(self) -> dict[str, Any]:
        """Base and adapters by name and content, with the particulars of the runs that trained them."""
        alone = replace(self.backbone, adapters=[])
        directories = self.backbone.adapter_directories()
        return {
            "base": _entry(self.base, manifests.base(alone)["fingerprint"]),
            "adapters": [
                _entry(source, manifests.fingerprint_of(directory))
                for source, directory in zip(self.adapters, directories, strict=True)
            ],
        }


def sources(names: Sequence[str], base: Path | None, prompt: str | None) -> Sources:
    """What is named: a base or a run, then adapters or runs; RunError for what cannot be merged.

    `base` is where the base model of a leading run lies now. The last run that trained something gives backbone and
    format, `prompt` names a format where none does.
    """
    first, *rest = names
    adapters = [_adapter(name) for name in rest]
    if _is_run(first):
        opened = open_run(Path(first), base)
        whole = trained(opened.backbone, opened.out)
        out = opened.out.resolve()
        bottom = Source(whole.weights, _name(opened.backbone.weights))
        if whole.adapters:
            below = [Source(adapter, _name(adapter)) for adapter in opened.backbone.adapters]
            adapters = [*below, Source(whole.adapters[-1], out.name, out, opened.manifest), *adapters]
        else:
            tiny = {"tiny": opened.backbone.weights == "tiny"}
            bottom = Source(whole.weights, out.name, out, {**opened.manifest, **tiny})
    else:
        if base is not None:
            raise RunError("--base: it says where a run's base model lies; BASE names it already")
        manifest = _manifest(weights.locate(first))
        bottom = Source(first, _name(first), None, manifest)
        if not rest and not manifest:
            raise RunError(f"{first} alone is nothing to merge: give a run, or adapters after a base model")
    if not adapters and bottom.run is None:
        raise RunError(f"{first} is merged already; give adapters to merge into it")
    return _together(bottom, adapters, prompt)


def _together(base: Source, adapters: Sequence[Source], prompt: str | None) -> Sources:
    directories = [adapter.directory for adapter in adapters]
    last = (adapters or [base])[-1]
    speaks: tuple[PromptFormat, Component] | None = None
    decoding: Decoding | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    with_run = next((source for source in (*reversed(adapters), base) if source.run), None)
    if with_run is not None and with_run.run is not None:
        composed = compose(with_run.run / "recipe.yaml")
        backbone, component = single(composed, "backbone")
        if with_run is last:
            speaks = single(composed, "prompt")
            *_, decoding = speaker(composed)
    elif base.manifest is not None:
        found = checked(weights.locate(base.directory), base.manifest)
        backbone, component = found.backbone, found.backbone_component
    else:
        located = [weights.locate(directory, "adapters") for directory in directories]
        backbone, component, tokenizer = backbone_for(weights.locate(base.directory), located)
    beside = backbone.weights_dtype
    # What is stored is what is merged into.
    backbone = replace(backbone, weights=base.directory, adapters=directories, weights_dtype=None)
    if with_run is not last or not adapters:
        # What a run named is no concern of what was added to it; and a whole model has its own beside it.
        backbone = replace(backbone, tokenizer=None)
    tokenizer = tokenizer or backbone.load_tokenizer()
    if speaks and last.manifest:
        if prompt is not None:
            raise RunError(f"--prompt: {last.name} is bound to the format that it was trained with; leave it out")
        manifests.check_tokenizer(last.manifest["tokenizer"], tokenizer, backbone, f"{last.name} was trained")
        manifests.check_layout(last.manifest, speaks[0], tokenizer, f"{last.name} was trained")
    elif prompt is not None:
        speaks = format_named(Path(base.directory), prompt)
    format_, format_component = speaks or (None, None)
    return Sources(backbone, component, tokenizer, format_, format_component, decoding, beside, base, adapters)


def _adapter(name: str) -> Source:
    """An adapter by its directory, by its run, or by its hub id."""
    path = Path(name).expanduser()
    run = path if _is_run(name) else path.resolve().parent if path.name == "adapter" else None
    if run is None or not _is_run(str(run)):
        return Source(name, _name(name))
    manifest = read_manifest(run)
    adapter = run / "adapter"
    if not adapter.is_dir():
        raise RunError(f"{run} trained every parameter, and has no adapter: medframe merge {run} --out DIR")
    if manifest["state"] != "finished":
        raise RunError(f"{run}: the run has not finished; go on with medframe run RECIPE --resume")
    if (found := manifests.trained_content(run)) != manifest["trained"]:
        raise RunError(
            f"{adapter} is not what the run left: expected fingerprint {manifest['trained'][:12]}, found {found[:12]}"
        )
    return Source(str(adapter), run.resolve().name, run.resolve(), manifest)


def _is_run(name: str) -> bool:
    path = Path(name).expanduser()
    return (path / "manifest.json").is_file() and _manifest(path) is None


def _manifest(directory: Path) -> Mapping[str, Any] | None:
    """The manifest of a model directory; None for anything else."""
    try:
        manifest = json.loads((directory / "manifest.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("kind") == "model" else None


def _name(name: str) -> str:
    """A hub id as it is, of a path the last part: where it lies on this machine tells others nothing."""
    path = Path(name).expanduser()
    shown = hub.shown(path)
    return shown if shown != str(path) else path.resolve().name if path.exists() else name


def _entry(source: Source, fingerprint: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": source.name, "fingerprint": fingerprint}
    if source.run is not None and source.manifest is not None:
        entry["run"] = _particulars(source.manifest)
    elif source.manifest is not None:
        entry["lineage"] = source.manifest.get("lineage")
    return entry


def _particulars(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's manifest says of its training, less where things lay on the machine."""
    kept = ("medframe", "profile", "seed", "hub", "tokenizer", "prompt", "plugins", "libraries", "python", "commit")
    found: dict[str, Any] = {name: manifest.get(name) for name in (*kept, "trained", "batching", "result")}
    base = manifest["base"]
    found["base"] = {"name": _name(base["weights"]), "fingerprint": base["fingerprint"]}
    found["data"] = [
        {name: value for name, value in source.items() if name != "path"} | {"path": _public(source["path"])}
        for source in manifest["data"]
    ]
    return found


def _public(path: str | list[str]) -> list[str]:
    return [name for name in ([path] if isinstance(path, str) else path) if name.startswith(hub.SCHEME)]
