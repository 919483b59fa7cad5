"""The model card of a run, and the table of answers before and after: written from what the run recorded."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from medframe import hub
from medframe.ledger import Ledger
from medframe.recipe import Recipe


def card(recipe: Recipe, manifest: Mapping[str, Any], ledgers: Sequence[Ledger]) -> str:
    """README.md of the run directory; no number in it is typed by hand."""
    result, batching, prompt = manifest["result"], manifest["batching"], manifest["prompt"]
    losses = result["held_out_loss"]
    lines = [
        "---",
        f"library_name: {'peft' if (recipe.out / 'adapter').is_dir() else 'transformers'}",
        "language: zh",
        "tags: [medframe, medical]",
        "---",
        "",
        f"# {recipe.out.name}",
        "",
        "Trained with medframe. Not a medical device; no answer of it replaces a doctor.",
        "",
        f"- base: `{manifest['base']['weights']}`, fingerprint `{manifest['base']['fingerprint'][:16]}`",
        f"- prompt format: `{prompt['use']}`" + (f" (skew: {prompt['skew']})" if prompt["skew"] else ""),
        f"- chat template: {prompt['chat_template']}",
        f"- trainer: `{recipe.components['trainer'].name}`, {result['steps']} optimizer steps, seed {recipe.seed}",
        f"- batches: {batching['kind']}" + (f" ({batching['reason']})" if batching["reason"] else ""),
    ]
    if losses:
        lines.append(f"- held-out loss per supervised token: {shown(losses[0], 4)} before, {losses[1]:.4f} after")
    if recipe.backbone.weights == "tiny":
        lines.append("- the base is a tiny random model: this run proves the pipeline, it knows no medicine")
    lines += ["", "## Data", ""]
    for source, ledger in zip(manifest["data"], ledgers, strict=True):
        lines.append(
            f"- `{source['section']}`: {ledger.rows:,} rows, {ledger.kept:,} kept, {ledger.shortened:,} shortened, "
            f"{ledger.skipped:,} skipped, {ledger.repeated:,} repeating an earlier one; "
            f"{ledger.supervised:,} supervised tokens. "
            f"{_lineage(source['path'])}Licence as published: {source['licence']}. {source['homepage']}".rstrip()
        )
    libraries = ", ".join(f"{name} {version}" for name, version in manifest["libraries"].items())
    lines += ["", "## Made with", "", f"medframe {manifest['medframe']}, {libraries}; {manifest['machine']}"]
    return "\n".join(lines) + "\n"


def _lineage(path: str | list[str]) -> str:
    """Where the rows came from, if others can find it there: a path on this machine tells them nothing."""
    public = [name for name in ([path] if isinstance(path, str) else path) if name.startswith(hub.SCHEME)]
    return f"From {', '.join(f'`{name}`' for name in public)}. " if public else ""


def shown(loss: float | None, digits: int) -> str:
    """The loss for a reader; None is one that was not measured."""
    return "not measured" if loss is None else f"{loss:.{digits}f}"


def comparison(rows: Sequence[Mapping[str, str]], tiny: bool) -> str:
    """Held-out questions with their answers before and after training, for a terminal."""
    title = "Held-out questions, before and after"
    if tiny:
        title += ": a proof of the pipeline, not of medicine"
    parts = [f"\n{title}"]
    for number, row in enumerate(rows, 1):
        parts.append(f"\n{number}. {_one_line(row['prompt'], 400)}")
        parts += [f"   {label:9}{_one_line(row[label], 200)}" for label in ("before", "after", "expected")]
    return "\n".join(parts) + "\n"


def _one_line(text: str, width: int) -> str:
    return textwrap.shorten(" ".join(text.split()), width, placeholder=" ...")
