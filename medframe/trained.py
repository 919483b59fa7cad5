"""A finished run, opened again: its model and prompt format, checked against its manifest."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medframe import hub
from medframe.backbone import Backbone
from medframe.compose import compose
from medframe.encode import Encoder
from medframe.errors import RunError
from medframe.manifest import check, trained_content
from medframe.recipe import speaker
from medframe.weights import attach


@dataclass(frozen=True)
class TrainedRun:
    """What is needed to talk to what a run trained."""

    out: Path
    manifest: dict[str, Any]
    backbone: Backbone
    """As it was before training."""
    encoder: Encoder

    def model(self) -> Any:
        """The trained model as it was proven, its adapter not merged, on the GPU where there is one."""
        import torch

        adapter = self.out / "adapter"
        if adapter.is_dir():
            model: Any = attach(self.backbone.load_model(), adapter)
        else:
            model = trained(self.backbone, self.out).load_model()
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def open_run(out: Path, base: Path | None = None, proven: bool = True) -> TrainedRun:
    """The run in `out`; RunError when it has not finished, or when anything it is bound to is not what it was.

    `base` is where the base model lies now, should it have moved. `proven` False opens a run before its last proof.
    """
    manifest = read_manifest(out)
    if proven and manifest["state"] != "finished":
        raise RunError(f"{out}: the run has not finished; go on with medframe run RECIPE --resume")
    hub.pin(manifest.get("hub", {}))
    backbone, prompt = speaker(compose(out / "recipe.yaml"))
    if base is not None:
        backbone = replace(backbone, weights=str(base))
    tokenizer = trained(backbone, out).load_tokenizer()
    check(manifest, backbone, tokenizer, prompt)
    if proven and (found := trained_content(out)) != manifest["trained"]:
        raise RunError(
            f"{out}: the trained weights are not those that the run left: expected fingerprint "
            f"{manifest['trained'][:12]}, found {found[:12]}"
        )
    return TrainedRun(out, manifest, backbone, Encoder(prompt, tokenizer))


def trained(backbone: Backbone, out: Path) -> Backbone:
    """The backbone as the run in `out` trained it; RunError when the run left neither adapter nor model."""
    if (out / "adapter" / "adapter_config.json").exists():
        return replace(backbone, adapters=[*backbone.adapters, str(out / "adapter")])
    if (out / "model" / "config.json").exists():
        return replace(backbone, weights=str(out / "model"), tokenizer=None, adapters=[])
    raise RunError(f"{out} holds neither adapter/ nor model/: the run has not finished; go on with --resume")


def read_manifest(out: Path) -> dict[str, Any]:
    """The manifest of the run directory; RunError when `out` is none."""
    file = out / "manifest.json"
    if not file.is_file():
        raise RunError(f"{out} is no run directory: it has no manifest.json")
    try:
        manifest = json.loads(file.read_text("utf-8"))
        if not isinstance(manifest, dict) or "state" not in manifest or "base" not in manifest:
            raise ValueError("it lacks what a manifest holds")
    except ValueError as error:
        raise RunError(f"{file} is broken: {error}") from None
    return manifest
