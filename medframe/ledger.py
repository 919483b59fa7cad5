"""What happened to every row of one source: kept, shortened or skipped, where and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from medframe.dataset import BadRow, Where
from medframe.encode import Encoded, Example, Limits, Unlearnable
from medframe.errors import DataError

LOUD = 0.05
"""Above this share of skipped rows, the summary says so on a line of its own."""
REPEATS = "repeats an earlier row"


@dataclass(frozen=True)
class Entry:
    """One row that was not simply kept."""

    file: str
    line: int
    fate: Literal["kept", "shortened", "skipped"]
    why: str
    element: int | None = None
    """Which element of an array, where the line alone does not tell."""
    bad: bool = False
    """It could not be read, as against read and of no use."""
    lost: int = 0
    """Supervised tokens left out of what was kept."""

    @property
    def where(self) -> Where:
        """The place of the row."""
        return Where(self.file, self.line, self.element)


@dataclass
class Ledger:
    """The account of one source; rows = kept + shortened + skipped, always."""

    source: str
    rows: int = 0
    kept: int = 0
    shortened: int = 0
    skipped: int = 0
    repeated: int = 0
    """Of those kept or shortened, rows that became the same as an earlier one."""
    examples: int = 0
    tokens: int = 0
    supervised: int = 0
    lost: int = 0
    entries: list[Entry] = field(default_factory=list)

    def add(self, outcome: Encoded | Unlearnable | BadRow, limits: Limits) -> tuple[Example, ...]:
        """Count one row and return what stays of it; DataError where the limits say that such a row stops the run."""
        where = outcome.where
        if isinstance(outcome, Encoded) and not (outcome.repeats and limits.on_repeat == "skip"):
            self._keep(outcome)
            return outcome.examples
        bad = isinstance(outcome, BadRow)
        why = REPEATS if isinstance(outcome, Encoded) else outcome.why
        if bad and limits.on_bad_row == "stop":
            raise DataError(f"{where}: {why} (limits.on_bad_row: skip leaves such rows out)")
        if isinstance(outcome, Unlearnable) and limits.on_unlearnable == "stop":
            raise DataError(f"{where}: {why} (limits.on_unlearnable: skip leaves such rows out)")
        self.rows += 1
        self.skipped += 1
        self.entries.append(Entry(where.file, where.line, "skipped", why, where.element, bad=bad))
        return ()

    def _keep(self, outcome: Encoded) -> None:
        self.rows += 1
        self.examples += len(outcome.examples)
        for example in outcome.examples:
            self.tokens += len(example.ids)
            self.supervised += example.supervised
        self.repeated += outcome.repeats
        self.lost += outcome.lost
        if outcome.shortened:
            self.shortened += 1
        else:
            self.kept += 1
        if outcome.shortened or outcome.repeats:
            notes = [note for note in (outcome.shortened, REPEATS if outcome.repeats else None) if note]
            fate: Literal["kept", "shortened"] = "shortened" if outcome.shortened else "kept"
            where = outcome.where
            entry = Entry(where.file, where.line, fate, "; ".join(notes), where.element, lost=outcome.lost)
            self.entries.append(entry)

    def summary(self) -> list[str]:
        """The account in a few lines for a terminal."""
        parts = [f"{self.kept:,} kept", f"{self.shortened:,} shortened", f"{self.skipped:,} skipped"]
        lines = [
            f"{self.source}: {self.rows:,} rows: {', '.join(parts)}; "
            f"{self.tokens:,} tokens, {self.supervised:,} supervised"
        ]
        if self.repeated:
            lines.append(f"{self.source}: {self.repeated:,} rows repeat an earlier one (limits.on_repeat: skip)")
        if self.lost:
            lines.append(f"{self.source}: {self.lost:,} supervised tokens lost by shortening")
        if self.skipped > LOUD * self.rows:
            share = 100 * self.skipped / self.rows
            first = next(e for e in self.entries if e.fate == "skipped")
            lines.append(
                f"WARNING {self.source}: {share:.0f} % of the rows are skipped, first {first.where}: {first.why}"
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """The account as written to ledger.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Ledger:
        """The account that `to_json` wrote."""
        return cls(**{**value, "entries": [Entry(**entry) for entry in value["entries"]]})
