"""The page: what is drawn and told of one run, or of several side by side, as HTML."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from statistics import median_high
from typing import TYPE_CHECKING, Any

from medframe.report.charts import Chart, lines
from medframe.report.fates import fates
from medframe.report.histograms import histogram, shares
from medframe.report.labels import labels, shorter
from medframe.report.metrics import Series
from medframe.report.particulars import differences, lead, particulars
from medframe.report.record import Record
from medframe.report.remarks import not_alike, remarks
from medframe.report.text import count, cut, number, plain, short, shown

if TYPE_CHECKING:
    from jinja2 import Environment

MARK = '<meta name="generator" content="medframe report">'
"""By this a page is known to be a report."""
ANSWERS = 40
"""Questions shown."""
LONGEST = 2000
"""Characters shown of a question or an answer."""
POINTS = 240
"""Points of a line."""
COLORS = 6
"""Colors of lines; after them come the same again, dashed, then dotted."""

_THROUGHPUT = "supervised_tokens_per_second"
_PLACED = {"loss", "held_out_loss", "learning_rate", "grad_norm", _THROUGHPUT}
"""Values with a chart of their own; any others that a trainer logs follow them."""


def page(records: Sequence[Record]) -> str:
    """One HTML page that needs no other file: of one run, or of several beside each other."""
    environment = _environment()
    shared = {
        "number": number,
        "count": count,
        "short": short,
        "written": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        "style": _text("style.css"),
        "script": _text("script.js"),
    }
    shared |= {f"{name}_hash": _hash(shared[name]) for name in ("style", "script")}
    if len(records) == 1:
        return environment.get_template("one.html").render(**shared, **_one(records[0]))
    return environment.get_template("several.html").render(**shared, **_several(records))


def _one(record: Record) -> dict[str, Any]:
    curve = record.metrics.get
    losses = [("training", 0, curve("loss")), ("held-out", 1, curve("held_out_loss"))]
    until = record.metrics.last_step
    hero = lines("Loss", "per supervised token", losses, until, height=280, may_be_log=True, most=POINTS)
    charts = _charts([("", 0, record)], until, POINTS)
    if training := record.training:
        charts.insert(3, histogram(training.width, training.sources, height=170))
    answers, more = _answers([record])
    return {
        **_told(record),
        "title": record.name,
        "lead": lead(record),
        "processes": shown(record.at("processes") or 1),
        "hero": hero,
        "charts": [chart for chart in charts if chart.lines or chart.bars],
        "summed": max(chart.summed for chart in [hero, *charts]),
        "answers": answers,
        "more_answers": more,
    }


def _several(records: Sequence[Record]) -> dict[str, Any]:
    names = labels([record.folder for record in records])
    named = list(zip(shorter(names), range(len(records)), records, strict=True))
    until = max(record.metrics.last_step for record in records)
    most = max(40, min(POINTS, 3 * POINTS // len(records)))
    losses = [
        lines(
            title,
            "per supervised token",
            [(label, color, record.metrics.get(name)) for label, color, record in named],
            until,
            height=260,
            may_be_log=True,
            most=most,
        )
        for title, name in (("Held-out loss", "held_out_loss"), ("Training loss", "loss"))
    ]
    charts = _charts(named, until, most)
    recorded = [(label, color, record.training) for label, color, record in named if record.training]
    outlines = [(label, color, t.width, _together(t.sources)) for label, color, t in recorded]
    if len(outlines) > 1 and all(outline[2:] == outlines[0][2:] for outline in outlines):
        outlines = [("every run" if len(outlines) == len(records) else "each", COLORS - 1, *outlines[0][2:])]
    charts.insert(3, shares(outlines, height=170))
    answers, more = _answers(records)
    afters = {record.after for record in records if record.after is not None}
    return {
        "title": f"{len(records)} runs",
        "runs": [
            {**_told(record), "label": label, "color": color}
            for label, color, record in zip(names, range(len(records)), records, strict=True)
        ],
        "best": min(afters) if len(afters) > 1 else None,
        "not_alike": not_alike(records),
        "losses": [chart for chart in losses if chart.lines],
        "charts": [chart for chart in charts if chart.lines],
        "summed": max(chart.summed for chart in [*losses, *charts]),
        "differences": differences(records),
        "answers": answers,
        "more_answers": more,
    }


def _told(record: Record) -> dict[str, Any]:
    """What the page says of a run, beside its curves."""
    rates = [rate for _, rate in record.metrics.get(_THROUGHPUT)]
    loss = record.metrics.get("loss")
    ledgers = [(ledger, *fates(ledger.entries)) for ledger in record.ledgers]
    return {
        "run": record,
        "remarks": remarks(record),
        "particulars": particulars(record),
        "recipe": cut(record.recipe_text, 20_000),
        "rate": median_high(rates) if rates else None,
        "last_loss": loss[-1][1] if loss else None,
        "ledgers": ledgers,
        "sampled": _sampled(record),
    }


def _charts(named: Sequence[tuple[str, int, Record]], until: int, most: int) -> list[Chart]:
    """The smaller charts: those that every run has, then whatever else was logged."""

    def curves(name: str) -> list[tuple[str, int, Series]]:
        return [(label or "", color, record.metrics.get(name)) for label, color, record in named]

    charts = [
        lines("Learning rate", "", curves("learning_rate"), until, zero=True, most=most),
        lines("Gradient norm", "before clipping", curves("grad_norm"), until, zero=True, may_be_log=True, most=most),
        lines("Throughput", "supervised tokens a second", curves(_THROUGHPUT), until, zero=True, most=most),
    ]
    others = dict.fromkeys(name for _, _, record in named for name in record.metrics.series if name not in _PLACED)
    return charts + [lines(short(name, 40), "as logged", curves(name), until, most=most) for name in list(others)[:24]]


def _sampled(record: Record) -> list[tuple[int, list[str]]]:
    """Some steps, the first and the last among them, and what was logged there under `_COLUMNS`."""
    series = {name: dict(record.metrics.get(name)) for name, _ in _COLUMNS}
    steps = sorted({step for by_step in series.values() for step in by_step})
    if len(steps) > _ROWS:
        steps = [steps[at * (len(steps) - 1) // (_ROWS - 1)] for at in range(_ROWS)]
    return [
        (step, [number(series[name][step]) if step in series[name] else "" for name, _ in _COLUMNS]) for step in steps
    ]


_ROWS = 24
_COLUMNS = (
    ("loss", "training loss"),
    ("held_out_loss", "held-out loss"),
    ("learning_rate", "learning rate"),
    ("grad_norm", "gradient norm"),
    (_THROUGHPUT, "supervised tokens/s"),
)
"""Of the table of values: what was logged, and its heading."""


def _answers(records: Sequence[Record]) -> tuple[list[dict[str, Any]], int]:
    """Each question once, with what every run answered before and after; and how many questions are not shown."""
    asked: dict[tuple[str, str], list[dict[str, str] | None]] = {}
    for which, record in enumerate(records):
        for row in record.answers:
            given = asked.setdefault((row["prompt"], row["expected"]), [None] * len(records))
            given[which] = {name: cut(row[name], LONGEST) for name in ("before", "after")}
    shown = [
        {"prompt": cut(prompt, LONGEST), "expected": cut(expected, LONGEST), "given": given}
        for (prompt, expected), given in list(asked.items())[:ANSWERS]
    ]
    return shown, max(0, len(asked) - ANSWERS)


def _together(sources: Mapping[str, Mapping[int, int]]) -> Counter[int]:
    counts: Counter[int] = Counter()
    for each in sources.values():
        counts.update(each)
    return counts


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        """Whatever the page shows: texts of rows, answers and paths may hold anything."""
        return plain(str(value)) if not isinstance(value, Markup) else value

    return Environment(
        loader=PackageLoader("medframe", "templates/report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _text(name: str) -> Any:
    """A file of the page's own, which is put into it as it is."""
    from markupsafe import Markup

    return Markup((files("medframe") / "templates" / "report" / name).read_text("utf-8"))


def _hash(text: str) -> str:
    """What the page's policy knows a text by: no other script or style is ever run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
