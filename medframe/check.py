"""Everything about a recipe that can be known before training, and every problem found on the way."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medframe import hub, manifest, vocabulary
from medframe.batch import Batches
from medframe.compose import Composed
from medframe.dataset import BadRow
from medframe.errors import MedframeError, RecipeError
from medframe.ledger import REPEATS, Ledger
from medframe.lengths import totals
from medframe.prepare import Prepared, check_context, prepare
from medframe.recipe import Recipe, build
from medframe.run import check_free
from medframe.source import Source


@dataclass
class Report:
    """What `check` found. It is good to run when `problems` is empty."""

    profile: str | None
    out: str | None = None
    problems: list[str] = field(default_factory=list)
    to_give: list[str] = field(default_factory=list)
    """Keys that are still ???, where that is expected: a profile to be completed on the command line."""
    notes: list[str] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)
    tokens: dict[str, float] = field(default_factory=dict)
    """Of the training examples: examples, tokens, supervised, mean, median, longest."""
    micro_batches: int | None = None
    """In the first epoch."""
    steps: int | None = None
    processes: int = 1
    forecast: dict[str, Any] | None = None
    """Memory, operations and hours, as `foretold` has them; None where they are not known,

    and for a tiny model unless a device is named.
    """


def check(composed: Composed, open_ended: bool = False, device: str | None = None) -> Report:
    """Read everything that the recipe names but the weights. With `open_ended`, a `???` is no problem.

    The forecast is for the `device` of this name, else for those that there are.
    """
    report = Report(composed.profile)
    try:
        recipe = build(composed, require_all=not open_ended)
    except RecipeError as error:
        report.problems += error.args
        return report
    report.out = str(recipe.out)
    report.to_give = list(_open(recipe.config))
    if report.to_give:
        return report
    _note(report, lambda: check_free(recipe.out, resume=False, overwrite=False))
    # A tiny model would be made, a hub model fetched: neither is looked at here.
    weights = recipe.backbone.weights
    if recipe.backbone.is_random:
        report.notes.append(f"{weights} is there to measure with: medframe bench trains it, medframe run does not")
    if Path(weights).is_dir() or recipe.backbone.is_random:
        _note(report, lambda: vocabulary.check(recipe.backbone))
        _note(report, lambda: manifest.check_adapters(recipe.backbone))
    elif weights != "tiny" and not re.fullmatch(hub.ID, weights):
        _note(report, recipe.backbone.directory)
    # Every row is read here: one that would stop the run is one problem among others.
    tolerant = replace(recipe, limits=replace(recipe.limits, on_bad_row="skip", on_unlearnable="skip"))
    try:
        prepared = prepare(tolerant)
    except MedframeError as error:
        found = [*report.problems, *error.args, *_bad_rows_without_store(recipe)]
        report.problems = list(dict.fromkeys(found))
        return report
    for ledger in prepared.ledgers:
        report.problems += _stopping(ledger, recipe)
        report.notes += ledger.summary()[1:]
        report.sources.append(ledger.to_json())
    report.notes += _imitations(recipe)
    if weights != "tiny":
        _note(report, lambda: check_context(recipe, prepared))
    _measure(report, recipe, prepared)
    # A tiny model, which would have to be made, fits anywhere.
    if not report.problems and (weights != "tiny" or device):
        _note(report, lambda: _foretell(report, composed, recipe, prepared, device))
    return report


def _note(report: Report, act: Callable[[], object]) -> None:
    try:
        act()
    except MedframeError as error:
        report.problems += error.args


def _foretell(report: Report, composed: Composed, recipe: Recipe, prepared: Prepared, device: str | None) -> None:
    from medframe.forecast.forecast import Unknown
    from medframe.forecast.told import foretold

    try:
        report.forecast = foretold(composed, recipe, prepared.train, device)
    except Unknown as why:
        report.notes.append(f"memory and time are unknown: {why}")


def _measure(report: Report, recipe: Recipe, prepared: Prepared) -> None:
    train = prepared.train
    told = totals(train)
    report.tokens = {**told, "mean": round(told["tokens"] / told["examples"], 1)}
    report.micro_batches = len(train.epoch(0))
    report.processes = recipe.processes
    try:
        report.steps = recipe.trainer.steps(train, recipe.processes)
    except RecipeError as error:
        report.problems += error.args
    if dropped := train.dropped():
        report.notes.append(f"batching.map_batch drops {dropped:,} tokens from every epoch, as published")
    for what, hashes in (("questions are asked", _questions(train)), ("answers are given", _answers(train))):
        if again := sum(count > 1 for count in Counter(hashes).values()):
            report.notes.append(f"{again:,} {what} more than once in training")
    if prepared.held_out and (again := asked_again(train, prepared.held_out)):
        report.notes.append(f"{again:,} held-out questions are also asked in training: the held-out loss flatters")


def _stopping(ledger: Ledger, recipe: Recipe) -> Iterator[str]:
    for entry in ledger.entries:
        policy = recipe.limits.on_bad_row if entry.bad else recipe.limits.on_unlearnable
        if entry.fate == "skipped" and entry.why != REPEATS and policy == "stop":
            yield f"{entry.where}: {entry.why}"


def _bad_rows_without_store(recipe: Recipe) -> Iterator[str]:
    """The rows that cannot be read, where the data could not be encoded at all."""
    if recipe.limits.on_bad_row == "skip":
        return
    for source in recipe.data:
        try:
            yield from (f"{row.where}: {row.why}" for row in source.rows() if isinstance(row, BadRow))
        except MedframeError:
            continue  # said already, as what kept the data from being encoded


def _imitations(recipe: Recipe) -> Iterator[str]:
    markers = recipe.prompt.markers
    sources = [*recipe.data, *([recipe.held_out] if isinstance(recipe.held_out, Source) else [])]
    for source in sources if markers else ():
        found, first = 0, None
        for row in source.rows():
            texts = () if isinstance(row, BadRow) else [turn.text for turn in row.turns]
            if any(marker in text for text in texts for marker in markers):
                found, first = found + 1, first or row.where
        if found:
            wording = ", ".join(map(repr, markers))
            yield f"{source.name}: {found:,} rows hold the format's own wording ({wording}), first {first}"


def asked_again(train: Batches, held_out: Batches) -> int:
    """How many of the questions held out are asked in training too."""
    known = set(_questions(train))
    return sum(question in known for question in _questions(held_out))


def _questions(batches: Batches) -> Iterator[int]:
    """A hash of what stands before the first answer, of every example that has something there."""
    for examples, index in map(batches.example, range(len(batches))):
        question = examples.ids(index)[: examples.trained(index).argmax()]
        if len(question):
            yield hash(question.tobytes())


def _answers(batches: Batches) -> Iterator[int]:
    """A hash of what is trained, of every example."""
    for examples, index in map(batches.example, range(len(batches))):
        yield hash(examples.ids(index)[examples.trained(index)].tobytes())


def _open(config: Any, prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _open(value, f"{prefix}{key}.")
        elif value == "???":
            yield f"{prefix}{key}"


def written(out: str) -> list[str]:
    """What a run will write, for a reader."""
    folder = Path(out)
    return [
        f"{folder}/recipe.yaml, manifest.json, ledger.json, metrics.jsonl, comparison.json, README.md",
        f"{folder}/checkpoints/checkpoint-STEP/",
        f"{folder}/adapter/ or model/",
    ]
