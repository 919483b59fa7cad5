"""The model card of a merged model: where it came from, written from its manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from medframe.card import shown


def card(name: str, manifest: Mapping[str, Any]) -> str:
    """README.md of the model directory; no number in it is typed by hand."""
    prompt, proof, merged = manifest["prompt"], manifest["proof"], manifest["merged"]
    lines = [
        "---",
        "library_name: transformers",
        "language: zh",
        "tags: [medframe, medical]",
        "---",
        "",
        f"# {name}",
        "",
        "Merged with medframe. Not a medical device; no answer of it replaces a doctor.",
        "",
        f"- fingerprint: `{manifest['fingerprint'][:16]}`; content of its tensors, sha256: `{proof['content'][:16]}`",
        f"- {proof['tensors']} tensors in {merged['dtype']}, of which adapters changed {proof['changed']}; rounded "
        + ("after each adapter, as peft does" if merged["rounding"] == "each" else "once, after the sum of all"),
    ]
    if prompt is None:
        lines.append("- prompt format: not recorded; whoever uses it must know how it was trained to be spoken to")
    else:
        lines.append(f"- prompt format: `{prompt['use']}`" + (f" (skew: {prompt['skew']})" if prompt["skew"] else ""))
        lines.append(f"- chat template: {prompt['chat_template']}")
    if merged["trained_beside"]:
        lines.append(f"- trained beside {merged['trained_beside']} weights, and merged into those that are stored")
    if manifest["tiny"]:
        lines.append("- the base is a tiny random model: it proves the pipeline, and knows no medicine")
    lines += ["", "## Lineage", "", *_lineage(manifest["lineage"]), "", "## Made with", ""]
    libraries = ", ".join(f"{library} {version}" for library, version in manifest["libraries"].items())
    return "\n".join([*lines, f"medframe {manifest['medframe']}, {libraries}"]) + "\n"


def _lineage(lineage: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    yield from _entry("base", lineage["base"], indent)
    for number, adapter in enumerate(lineage["adapters"], 1):
        yield from _entry(f"adapter {number}", adapter, indent)


def _entry(what: str, entry: Mapping[str, Any], indent: str) -> Iterator[str]:
    yield f"{indent}- {what}: `{entry['name']}`, fingerprint `{entry['fingerprint'][:16]}`"
    if run := entry.get("run"):
        result = run.get("result") or {}
        trained = f"trained by medframe {run['medframe']}, {result.get('steps')} optimizer steps, seed {run['seed']}"
        if losses := result.get("held_out_loss"):
            trained += f"; held-out loss per supervised token {shown(losses[0], 4)} before, {losses[1]:.4f} after"
        yield f"{indent}  {trained}"
        for data in run["data"]:
            found = " ".join(["from", *(f"`{path}`" for path in data["path"])]) if data["path"] else ""
            licence = f"licence as published: {data['licence']}. {data['homepage']}".rstrip()
            yield f"{indent}  - data `{data['section']}`, {found + '; ' if found else ''}{licence}"
    if entry.get("lineage"):
        yield from _lineage(entry["lineage"], indent + "  ")
