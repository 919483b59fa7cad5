"""A model directory: weights and tokenizer as transformers has them, and a manifest to open it by, anywhere."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import medframe
from medframe import manifest as manifests
from medframe.backbone import Backbone
from medframe.compose import sections, typed
from medframe.errors import BackboneError, PluginError, RunError
from medframe.fingerprint import tokenizer_fingerprint
from medframe.plugins import Component, catalog
from medframe.prompt import PromptFormat
from medframe.recipe import single

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OWN = ("weights", "tokenizer", "adapters", "dtype", "weights_dtype")
"""Fields of a backbone that a model directory has no use for: it is all of them, as it is stored."""


@dataclass(frozen=True)
class Loaded:
    """A whole model's backbone, its tokenizer and its prompt format, each with its row of the catalog."""

    backbone: Backbone
    backbone_component: Component
    tokenizer: PreTrainedTokenizerBase
    prompt: PromptFormat | None
    prompt_component: Component | None

    def describe(self) -> dict[str, Any]:
        """What it is, by content: the part of a manifest that is checked when it is opened."""
        found = manifests.base(self.backbone)
        tokenizer = tokenizer_fingerprint(self.tokenizer)
        fields = {name: value for name, value in asdict(self.backbone).items() if name not in _OWN}
        return {
            "medframe": medframe.__version__,
            "fingerprint": hashlib.sha256(f"{found['fingerprint']} {tokenizer}".encode()).hexdigest(),
            "backbone": {"use": self.backbone_component.name, "fields": fields},
            "tokenizer": tokenizer,
            **self.layout(),
            "weights": {"fingerprint": found["fingerprint"], "tensors": found["tensors"]},
        }

    def layout(self) -> dict[str, Any]:
        """The part of it that is about the prompt format: `prompt`, null where there is none, and `plugins`."""
        plugins = {"backbone": manifests.plugin(self.backbone_component)}
        if self.prompt is None or self.prompt_component is None:
            return {"prompt": None, "plugins": plugins}
        plugins["prompt"] = manifests.plugin(self.prompt_component)
        return {
            "prompt": manifests.layout(self.prompt, self.prompt_component, self.tokenizer),
            "plugins": plugins,
        }


def read(directory: Path, manifest: Mapping[str, Any], prompt: str | None) -> Loaded:
    """The model directory, checked against its manifest; RunError when anything is not as it was written there.

    `prompt` names a format where the manifest has none.
    """
    file = directory / "manifest.json"
    try:
        layout = manifest["prompt"] and {"use": manifest["prompt"]["use"], **manifest["prompt"]["fields"]}
    except (KeyError, TypeError) as error:
        raise RunError(f"{file} is broken: it lacks what a manifest holds ({error})") from None
    if layout is None:
        format_, component = format_named(directory, prompt)
    elif prompt is not None:
        raise RunError(f"--prompt: {directory} is bound to the format {layout['use']!r}; leave --prompt out")
    else:
        format_, component = single(sections({"prompt": layout}, file), "prompt")
    found = checked(directory, manifest)
    if layout is not None:
        manifests.check_layout(manifest, format_, found.tokenizer, "the model was written")
    return replace(found, prompt=format_, prompt_component=component)


def checked(directory: Path, manifest: Mapping[str, Any]) -> Loaded:
    """The model directory without its format, its weights and tokenizer checked as `read` does."""
    file = directory / "manifest.json"
    try:
        named = {"use": manifest["backbone"]["use"], **manifest["backbone"]["fields"]}
        expected, tokens = manifest["weights"], manifest["tokenizer"]
    except (KeyError, TypeError) as error:
        raise RunError(f"{file} is broken: it lacks what a manifest holds ({error})") from None
    named["weights"] = str(directory.resolve())
    backbone, component = single(sections({"backbone": named}, file), "backbone")
    if apart := manifests.differing(expected, manifests.base(backbone)):
        raise RunError(f"the weights in {directory} are not those that were written there: {apart}")
    tokenizer = backbone.load_tokenizer()
    manifests.check_tokenizer(tokens, tokenizer, backbone, "this model was written")
    return Loaded(backbone, component, tokenizer, None, None)


def plain(directory: Path, prompt: str | None) -> Loaded:
    """A directory of transformers' layout, with the backbone that its config.json asks for and the format named."""
    format_, format_component = format_named(directory, prompt)
    backbone, component, tokenizer = backbone_for(directory)
    return Loaded(backbone, component, tokenizer, format_, format_component)


def format_named(directory: Path, prompt: str | None) -> tuple[PromptFormat, Component]:
    """The prompt format of `--prompt`, a name or a section `{use: NAME, ...}`; RunError, with all names, for None."""
    if prompt is None:
        known = ", ".join(sorted({c.name for c in catalog().components if c.kind == "prompt"}))
        raise RunError(
            f"{directory} does not say how it was trained to be spoken to: give --prompt NAME, one of {known} "
            "(medframe list-plugins prompt/NAME tells more)"
        )
    text = prompt.strip()
    return single(typed(f"prompt={text}" if text.startswith("{") else f"prompt.use={text}"), "prompt")


def backbone_for(directory: Path, adapters: Sequence[Path] = ()) -> tuple[Backbone, Component, PreTrainedTokenizerBase]:
    """The first backbone that is for the directory's `model_type` and can read the tokenizer, and that tokenizer.

    It has the adapters, of which the last may bring the tokenizer. BackboneError, the first one's, where none can.
    """
    try:
        found = str(json.loads((directory / "config.json").read_text("utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackboneError(f"{directory / 'config.json'} does not say what model this is: {error!r}") from None
    refusals: list[BackboneError] = []
    for component in _backbones_for(found):
        paths = {"weights": str(directory.resolve()), "adapters": [str(adapter.resolve()) for adapter in adapters]}
        backbone: Backbone = component.load()(**paths)
        try:
            backbone.load_config()
            # A LLaMA of a later generation has a tokenizer of another kind: then `auto` is for it.
            return backbone, component, backbone.load_tokenizer()
        except BackboneError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]
    raise BackboneError(f"{directory} holds a {found} model, and no backbone that is installed is for it")


def _backbones_for(model_type: str) -> Iterator[Component]:
    """Those that name the type, then those for any; in the order of the catalog, medframe's own first."""
    known = []
    for component in catalog().components:
        if component.kind == "backbone" and component.state == "ok":
            with suppress(PluginError):  # a broken one is nobody's trouble but who names it
                known.append((component, component.load().model_types))
    for wanted in (model_type, "*"):
        yield from (component for component, types in known if wanted in types)


def carry(component: Any, directory: Path, named: str) -> dict[str, str]:
    """Copy the files that the component's fields name into the directory; each such field with its file there."""
    copies = {}
    for field in component.path_fields:
        value = getattr(component, field)
        if isinstance(value, str) and Path(value).is_file():
            copies[field] = f"{named}-{field}{Path(value).suffix}"
            shutil.copyfile(value, directory / copies[field])
    return copies
