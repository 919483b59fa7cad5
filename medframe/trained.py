"""What can be talked to, opened and checked: a finished run, a merged model, a plain directory of weights."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medframe import hub, model
from medframe.backbone import Backbone
from medframe.compose import compose
from medframe.decoding import USUAL, Decoding
from medframe.encode import Encoder
from medframe.errors import RunError
from medframe.manifest import check, trained_content
from medframe.quantised import Bits
from medframe.recipe import speaker
from medframe.weights import attach, locate


@dataclass(frozen=True)
class Opened:
    """What is needed to talk to a model."""

    out: Path
    """The directory."""
    manifest: dict[str, Any]
    """Its `kind` is run, model or plain. Each has `prompt` and `tokenizer`; that of a plain directory is made here."""
    backbone: Backbone
    """Of a run: as it was before training."""
    encoder: Encoder
    decoding: Decoding = USUAL
    """How it answers unless told otherwise: as its recipe says."""

    @property
    def kind(self) -> str:
        """run: base and adapter, or a model beside its run | model: whole, with a manifest | plain: whole, without."""
        return str(self.manifest["kind"])

    @property
    def fingerprint(self) -> str:
        """sha256 of what answers: what the run trained, or the whole model and its tokenizer."""
        return str(self.manifest["trained" if self.kind == "run" else "fingerprint"])

    @property
    def is_tiny(self) -> bool:
        """Whether the base is the tiny random model, which proves the pipeline and knows no medicine."""
        return self.backbone.weights == "tiny" or bool(self.manifest.get("tiny"))

    def rounded(self, bits: Bits | None) -> Opened:
        """The same with linear layers of so many bits in memory; None: as it is."""
        return replace(self, backbone=replace(self.backbone, weights_dtype=bits)) if bits else self

    def model(self) -> Any:
        """The trained model as it was proven, its adapter not merged, on the GPU where there is one."""
        import torch

        adapter = self.out / "adapter"
        if self.kind != "run":
            loaded: Any = self.backbone.load_model()
        elif adapter.is_dir():
            loaded = attach(self.backbone.load_model(), adapter)
        else:
            loaded = trained(self.backbone, self.out).load_model()
        return loaded.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def open_run(out: Path, base: Path | None = None, proven: bool = True, prompt: str | None = None) -> Opened:
    """What lies in `out`; RunError when it has not finished, or when anything it is bound to is not what it was.

    `out` is a run, a model directory that `medframe merge` wrote, or any directory of transformers' layout. Only a
    model that is bound to no format takes `prompt`, the name of one or a section such as `{use: chatmed, ...}`; with
    it, `out` may be a model of the hub. `base` is where a run's base model lies now, should it have moved. `proven`
    False opens a run before its last proof.
    """
    if prompt is not None and not out.exists() and re.fullmatch(hub.ID, out.as_posix()):
        out = locate(out.as_posix())
    manifest = _manifest(out)
    kind = manifest["kind"]
    if kind == "run":
        if prompt is not None:
            raise RunError(f"--prompt: the run in {out} is bound to the format it was trained with; leave it out")
        return _open_run(out, manifest, base, proven)
    if base is not None:
        raise RunError(f"--base: {out} holds a whole model, and needs none beside it")
    if kind == "plain":
        found = model.plain(out, prompt)
        manifest |= found.describe()
    else:
        found = model.read(out, manifest, prompt)
        manifest |= found.layout() if manifest["prompt"] is None else {}
    assert found.prompt is not None
    return Opened(out, manifest, found.backbone, Encoder(found.prompt, found.tokenizer), _decoding(out, manifest))


def _decoding(out: Path, manifest: dict[str, Any]) -> Decoding:
    """How a model directory answers: as the run that was merged into it."""
    try:
        settings = manifest.get("decoding") or {}
        return Decoding(**{**settings, "stop": tuple(settings.get("stop", ()))})
    except (TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{out / 'manifest.json'} is broken: decoding: {error}") from None


def _open_run(out: Path, manifest: dict[str, Any], base: Path | None, proven: bool) -> Opened:
    if proven and manifest["state"] != "finished":
        raise RunError(f"{out}: the run has not finished; go on with medframe run RECIPE --resume")
    hub.pin(manifest.get("hub", {}))
    backbone, prompt, decoding = speaker(compose(out / "recipe.yaml"))
    if base is not None:
        backbone = replace(backbone, weights=str(base))
    tokenizer = trained(backbone, out).load_tokenizer()
    check(manifest, backbone, tokenizer, prompt)
    if proven and (found := trained_content(out)) != manifest["trained"]:
        raise RunError(
            f"{out}: the trained weights are not those that the run left: expected fingerprint "
            f"{manifest['trained'][:12]}, found {found[:12]}"
        )
    return Opened(out, manifest, backbone, Encoder(prompt, tokenizer), decoding)


def trained(backbone: Backbone, out: Path) -> Backbone:
    """The backbone as the run in `out` trained it; RunError when the run left neither adapter nor model."""
    if (out / "adapter" / "adapter_config.json").exists():
        return replace(backbone, adapters=[*backbone.adapters, str(out / "adapter")])
    if (out / "model" / "config.json").exists():
        return replace(backbone, weights=str(out / "model"), tokenizer=None, adapters=[])
    raise RunError(f"{out} holds neither adapter/ nor model/: the run has not finished; go on with --resume")


def kind_of(out: Path) -> str:
    """run, model or plain, as `Opened.kind`; RunError for what is none of them."""
    return str(_manifest(out)["kind"])


def read_manifest(out: Path) -> dict[str, Any]:
    """The manifest of the run directory; RunError when `out` is none."""
    manifest = _manifest(out)
    if manifest["kind"] == "model":
        raise RunError(f"{out} holds a merged model, not a run: nothing is recorded there of a training")
    if manifest["kind"] == "plain":
        raise RunError(f"{out} is no run directory: it has no manifest.json")
    return manifest


def _manifest(out: Path) -> dict[str, Any]:
    """What the directory says that it is; of weights without a manifest, that they are plain; RunError for neither."""
    file = out / "manifest.json"
    if not file.is_file():
        return _without(out)
    try:
        manifest = json.loads(file.read_text("utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError("it is no object")
        manifest.setdefault("kind", "run")
        if manifest["kind"] not in ("run", "model"):
            raise ValueError(f"its kind is {manifest['kind']!r}")
        if manifest["kind"] == "run" and not {"state", "base"} <= manifest.keys():
            raise ValueError("it lacks what a manifest holds")
    except ValueError as error:
        raise RunError(f"{file} is broken: {error}") from None
    return manifest


def _without(out: Path) -> dict[str, Any]:
    """What a directory without a manifest is; RunError says what would be right where it can be none of it."""
    beside = out.resolve().parent
    if (out / "config.json").is_file():
        return {"kind": "plain"}
    if (out / "adapter_config.json").is_file():
        of_run = (beside / "manifest.json").is_file()
        right = f"name its run, {beside}" if of_run else "make a model of both: medframe merge BASE ADAPTER --out DIR"
        raise RunError(f"{out} is an adapter, which says nothing without its base; {right}")
    what = "is no directory" if not out.is_dir() else "is no run directory: it has no manifest.json"
    raise RunError(f"{out} {what}; give a run, a merged model, or a directory with config.json and weights")
