"""What a reader of a report should know before believing it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from medframe.ledger import LOUD
from medframe.report.record import Record, at
from medframe.report.text import number

CLOSE = 1.02
"""A held-out loss up to this factor above the lowest is as good as the lowest."""


def remarks(record: Record) -> list[str]:
    """Of one run."""
    return [*_on_state(record), *_on_curves(record), *_on_data(record)]


def _on_state(record: Record) -> Iterator[str]:
    metrics = record.metrics
    if not record.finished:
        upto = f" of {record.wanted:,}" if record.wanted else ""
        yield (
            f"The run has not finished: the last step logged is {metrics.last_step:,}{upto}. "
            "Nothing here is proven yet, and it may be training still."
        )
    if at(record.recipe, "backbone", "weights") == "tiny":
        yield "The base is a tiny random model: the run proves the pipeline and knows no medicine."
    if not metrics.series:
        yield "Nothing was logged: metrics.jsonl is missing or holds no values."
    if metrics.damaged:
        yield f"{metrics.damaged:,} of {metrics.lines:,} lines of metrics.jsonl cannot be read and are left out."
    for name, count in sorted(metrics.not_finite.items()):
        are = "value is" if count == 1 else "values are"
        yield f"{name}: {count:,} {are} not finite, or immense, and left out."
    for what in record.unread:
        yield f"{what}."


def _on_curves(record: Record) -> Iterator[str]:
    best, after = record.best, record.after
    if not record.held_out and not best:
        yield "No rows were held out: whether it learnt more than its examples is not measured."
    elif best and after and best[1] > 0 and after > CLOSE * best[1]:
        yield (
            f"The held-out loss was lowest at step {best[0]:,}, {number(best[1])}, and is {number(after)} at the end: "
            "what came after fits the training examples alone."
        )


def _on_data(record: Record) -> Iterator[str]:
    if skew := record.at("prompt", "skew"):
        yield f"The prompt format reproduces a published skew between training and chat: {skew}."
    if reason := record.at("batching", "reason"):
        yield f"Padded, not packed: {reason}."
    ledgers = record.ledgers
    if loud := [each for each in ledgers if each.skipped > LOUD * each.rows]:
        shares = (f"{100 * each.skipped / each.rows:.0f} % of {each.source}" for each in loud)
        yield f"Many rows are skipped: {', '.join(shares)}."
    if cut := [each for each in ledgers if each.lost]:
        tokens = (f"{each.lost:,} of {each.source}" for each in cut)
        yield f"Supervised tokens were lost by shortening: {', '.join(tokens)}."


def not_alike(records: Sequence[Record]) -> list[str]:
    """Why the losses of these runs cannot be compared as they stand; nothing where they can."""
    reasons = {
        "they hold out other rows": [sorted(record.held_out) for record in records],
        "the data is other": [[at(source, "content") for source in record.sources] for record in records],
        "the tokenizers differ, and a loss is per token": [record.at("tokenizer") for record in records],
        "the prompt formats differ": [record.at("prompt", "fingerprint") for record in records],
    }
    return [why for why, values in reasons.items() if any(value != values[0] for value in values)]
