"""What a run directory tells of its run: read with nothing else at hand, and with nothing taken for granted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from medframe.ledger import Ledger
from medframe.report import metrics
from medframe.report.metrics import Metrics
from medframe.trained import read_manifest

NUMBERS = ("rows", "kept", "shortened", "skipped", "repeated", "examples", "tokens", "supervised", "lost")


@dataclass(frozen=True)
class Training:
    """The training examples: how many, how long. See `medframe.lengths`."""

    examples: int
    tokens: int
    supervised: int
    median: float
    longest: int
    width: int
    sources: dict[str, dict[int, int]]
    """By source, the examples of each bin by the length at which it begins."""


@dataclass
class Record:
    """A run, as far as its directory tells of it."""

    folder: Path
    name: str
    manifest: Mapping[str, Any]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    metrics: Metrics = field(default_factory=Metrics)
    ledgers: list[Ledger] = field(default_factory=list)
    training: Training | None = None
    held_out: list[str] = field(default_factory=list)
    """The rows held out."""
    answers: list[dict[str, str]] = field(default_factory=list)
    """prompt, expected, before, after."""
    unread: list[str] = field(default_factory=list)
    """What could not be read, in words."""

    def at(self, *keys: str) -> Any:
        """What the manifest holds there; None where it holds nothing."""
        return at(self.manifest, *keys)

    @property
    def sources(self) -> list[Any]:
        """What the manifest says of each source of data."""
        sources = self.at("data")
        return sources if isinstance(sources, list) else []

    @property
    def libraries(self) -> dict[str, Any]:
        """Their versions, medframe's and Python's among them, by name."""
        libraries = self.at("libraries")
        named = {"medframe": self.at("medframe"), **(libraries if isinstance(libraries, dict) else {})}
        return {**named, "Python": self.at("python")}

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end, and what it saved was proven."""
        return bool(self.manifest["state"] == "finished")

    @property
    def before(self) -> float | None:
        """The held-out loss before training, where it was measured."""
        series = self.metrics.get("held_out_loss")
        return series[0][1] if series and series[0][0] == 0 else self._result(0)

    @property
    def after(self) -> float | None:
        """The last held-out loss."""
        series = self.metrics.get("held_out_loss")
        return series[-1][1] if series and series[-1][0] else self._result(1)

    @property
    def best(self) -> tuple[int, float] | None:
        """The step of the lowest held-out loss, and that loss."""
        series = self.metrics.get("held_out_loss")
        return min(series, key=lambda entry: entry[1]) if series else None

    @property
    def steps(self) -> int:
        """Optimizer steps taken, as far as they were logged."""
        steps = self.at("result", "steps")
        return steps if isinstance(steps, int) else self.metrics.last_step

    @property
    def wanted(self) -> int | None:
        """Optimizer steps that the recipe asks for, where it names them."""
        steps = at(self.recipe, "trainer", "max_steps")
        return steps if isinstance(steps, int) else None

    def _result(self, which: int) -> float | None:
        losses = self.at("result", "held_out_loss")
        value = losses[which] if isinstance(losses, list) and len(losses) == 2 else None
        return float(value) if isinstance(value, int | float) and abs(value) < metrics.LARGEST else None


def at(value: Any, *keys: str) -> Any:
    """What nested mappings hold there; None where they hold nothing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def read(folder: Path) -> Record:
    """The record of the run in the folder; RunError where it holds none.

    A file that is missing, or is not what a run writes, is named in `unread`: the rest is shown.
    """
    record = Record(folder, folder.resolve().name, read_manifest(folder))
    record.metrics = metrics.read(folder / "metrics.jsonl")
    _part(record, "recipe.yaml", _recipe)
    _part(record, "ledger.json", _ledger)
    if record.finished or (folder / "comparison.json").exists():
        _part(record, "comparison.json", _comparison)
    return record


def _part(record: Record, name: str, take: Callable[[Record, str], None]) -> None:
    try:
        take(record, (record.folder / name).read_text("utf-8"))
    except FileNotFoundError:
        record.unread.append(f"{name} is missing")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, yaml.YAMLError):
        record.unread.append(f"{name} is not what a run writes, and is left out")


def _recipe(record: Record, text: str) -> None:
    recipe = yaml.safe_load(text)
    if not isinstance(recipe, dict):
        raise TypeError
    record.recipe, record.recipe_text = recipe, text


def _ledger(record: Record, text: str) -> None:
    content = json.loads(text)
    ledgers = [Ledger.from_json(source) for source in content["sources"]]
    for ledger in ledgers:
        _whole(*(getattr(ledger, name) for name in NUMBERS), *(entry.line for entry in ledger.entries))
        _text(ledger.source, *(part for entry in ledger.entries for part in (entry.file, entry.fate, entry.why)))
    held_out = content["held_out"]
    _text(*held_out)
    # Runs of earlier versions have not recorded the lengths.
    record.training = _training(content["training"]) if "training" in content else None
    record.ledgers, record.held_out = ledgers, list(held_out)


def _training(content: Mapping[str, Any]) -> Training:
    sources = {
        name: {int(start): count for start, count in counts.items()} for name, counts in content["sources"].items()
    }
    training = Training(**{**content, "sources": sources})
    _whole(training.examples, training.tokens, training.supervised, training.longest, training.width)
    _whole(*(count for counts in sources.values() for count in counts.values()))
    if not isinstance(training.median, int | float) or not training.width or not any(sources.values()):
        raise TypeError
    return training


def _comparison(record: Record, text: str) -> None:
    rows = [{name: row[name] for name in ("prompt", "expected", "before", "after")} for row in json.loads(text)]
    _text(*(part for row in rows for part in row.values()))
    record.answers = rows


def _whole(*values: Any) -> None:
    if not all(isinstance(value, int) and 0 <= value < 1 << 62 for value in values):
        raise TypeError


def _text(*values: Any) -> None:
    if not all(isinstance(value, str) for value in values):
        raise TypeError
