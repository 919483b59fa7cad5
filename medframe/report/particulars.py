"""What a run is: its recipe and what it is bound to, in a reader's words; and in what several differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from medframe.report.record import Record, at
from medframe.report.text import shown

ABSENT = "–"


def particulars(record: Record) -> list[tuple[str, list[str]]]:
    """What it is called, and what it is, in lines."""
    found = [
        ("State", ["finished and proven" if record.finished else "not finished"]),
        ("Directory", [str(record.folder.resolve())]),
        ("Recipe", [_profile(record), f"seed {shown(record.at('seed'))}"]),
        ("Base", list(_base(record))),
        ("Data", list(_data(record))),
        ("Prompt format", list(_prompt(record))),
        ("Limits", _settings(record.recipe.get("limits"))),
        ("Trainer", _settings(record.recipe.get("trainer"))),
        ("Batching", list(_batching(record))),
        ("Processes", [shown(record.at("processes") or 1)]),
        ("Machine", [str(record.at("machine") or "")]),
        ("Software", [", ".join(f"{name} {version}" for name, version in record.libraries.items())]),
        ("Commit", [f"{record.at('commit')}, of the working directory"] if record.at("commit") else []),
        ("Trained weights", [f"fingerprint {record.at('trained')}"] if record.at("trained") else []),
    ]
    return [(term, [line for line in lines if line]) for term, lines in found if any(lines)]


def lead(record: Record) -> str:
    """The run in one line."""
    recipe = record.recipe
    weights = at(recipe, "backbone", "weights")
    base = f"{shown(at(recipe, 'backbone', 'use'))} ({shown(weights)})"
    sections = ", ".join(str(at(source, "section")) for source in record.sources)
    trainer = shown(at(recipe, "trainer", "use"))
    parts = [f"{trainer} on {base}", sections, f"format {shown(record.at('prompt', 'use'))}", record.at("machine")]
    return " · ".join(str(part) for part in parts if part)


def _profile(record: Record) -> str:
    profile = record.at("profile")
    return f"profile {profile}" if profile else "no profile"


def _base(record: Record) -> Iterator[str]:
    backbone = record.recipe.get("backbone")
    use, asked, lies = at(backbone, "use"), at(backbone, "weights"), record.at("base", "weights")
    yield f"{shown(use)}: {shown(asked)}" + (f", in {lies}" if lies and lies != asked else "")
    yield f"fingerprint {record.at('base', 'fingerprint')}"
    for name in ("tokenizer", "adapters", "dtype"):
        if value := at(backbone, name):
            yield f"{name} {shown(value)}"
    for name, commit in (record.at("hub") or {}).items() if isinstance(record.at("hub"), dict) else ():
        yield f"{name} at {shown(commit)}"
    yield f"tokenizer's fingerprint {record.at('tokenizer')}"


def _data(record: Record) -> Iterator[str]:
    for source in record.sources:
        name = at(source, "section")
        section = at(record.recipe, "data", str(name))
        mix = [f"{key} {shown(at(section, key))}" for key in ("weight", "limit") if at(section, key) not in (None, 1)]
        yield ", ".join([f"{name}: {shown(at(source, 'path'))}", *mix])
        about = [at(source, "licence"), at(source, "homepage")]
        yield "; ".join(str(each) for each in about if each)
        yield f"content {at(source, 'content') or 'without a fingerprint'}"
    held_out = record.recipe.get("held_out")
    yield f"held out: {_inline(held_out)}" if held_out else "held out: none"


def _prompt(record: Record) -> Iterator[str]:
    prompt = record.at("prompt")
    fields = at(prompt, "fields")
    yield f"{at(prompt, 'use')}" + (f" ({_inline(fields)})" if fields else "")
    yield f"skew: {at(prompt, 'skew') or 'none, it lays out chat as training'}"
    yield f"chat template: {at(prompt, 'chat_template')}"
    yield f"fingerprint {at(prompt, 'fingerprint')}"


def _batching(record: Record) -> Iterator[str]:
    asked, used = record.recipe.get("batching"), record.at("batching")
    yield f"asked for: {_inline(asked)}"
    if used:
        yield f"used: {at(used, 'kind')}" + (f", for {at(used, 'reason')}" if at(used, "reason") else "")


def _settings(section: Any) -> list[str]:
    """The section on one line, less what is not set."""
    return [_inline(section)] if isinstance(section, Mapping) else []


def _inline(section: Any) -> str:
    if not isinstance(section, Mapping):
        return shown(section)
    return ", ".join(f"{key} {shown(value)}" for key, value in section.items() if value not in (None, {}, []))


def differences(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """The keys in which the runs differ, with each run's value: first of the recipe, then of what they are bound to."""
    recipes = [dict(_flat(record.recipe)) for record in records]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    rows = [(key, [recipe.get(key, _NOTHING) for recipe in recipes]) for key in keys if key != "out"]
    for name, path in _BOUND.items():
        rows.append((name, [_known(record.at(*path)) for record in records]))
    contents = [dict(_contents(record)) for record in records]
    for section in dict.fromkeys(name for each in contents for name in each):
        rows.append((f"content of {section}", [each.get(section, _NOTHING) for each in contents]))
    for library in dict.fromkeys(name for record in records for name in record.libraries):
        rows.append((library, [_known(record.libraries.get(library)) for record in records]))
    return [
        (key, [ABSENT if value is _NOTHING else shown(value) for value in values])
        for key, values in rows
        if any(value != values[0] for value in values)
    ]


def _known(value: Any) -> Any:
    return _NOTHING if value is None else value


_NOTHING = object()
_BOUND = {
    "base model's fingerprint": ("base", "fingerprint"),
    "tokenizer's fingerprint": ("tokenizer",),
    "prompt format's fingerprint": ("prompt", "fingerprint"),
    "batching used": ("batching", "kind"),
    "processes that trained": ("processes",),
    "machine": ("machine",),
    "commit": ("commit",),
}
"""What of the manifest is compared."""


def _contents(record: Record) -> Iterator[tuple[str, Any]]:
    for source in record.sources:
        yield f"data.{at(source, 'section')}", at(source, "content")


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from _flat(part, f"{prefix}{key}.")
    else:
        yield prefix.removesuffix("."), value
