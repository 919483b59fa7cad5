"""Held-out loss per supervised token of what was trained, and of its base; and how sure these are."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import medframe
from medframe.backbone import Backbone
from medframe.errors import RunError
from medframe.evaluate.interval import METHOD, interval
from medframe.evaluate.loss import Losses, losses
from medframe.evaluate.rows import held_out, of_file
from medframe.manifest import libraries, machine
from medframe.quantised import Bits
from medframe.saving import write
from medframe.trained import kind_of, open_run

FILE = "evaluation.json"
"""Where a run or a model directory keeps what was measured of it."""


@dataclass(frozen=True)
class Asked:
    """What is to be measured."""

    run: Path
    base: Path | None = None
    """Where the base model of a run lies now; of a whole model, what to compare it with."""
    prompt: str | None = None
    """The format of a model that is bound to none."""
    data: Path | None = None
    """The rows; None: those that the run held out."""
    reads: str | None = None
    """What explains them: a data section of the run, or a component."""
    bits: Bits | None = None
    """What linear layers are rounded to in memory."""


def evaluate(asked: Asked, say: Callable[[str], None], done: Callable[[int, int], None]) -> dict[str, Any]:
    """Measure what lies in `asked.run`, and its base: the loss per supervised token, with intervals.

    RunError where there is nothing to measure on, DataError for rows that cannot be read. `done` is told how many of
    how many examples are measured.
    """
    run, base = asked.run, asked.base
    of_run = kind_of(run) == "run"
    opened = open_run(run, base if of_run else None, prompt=asked.prompt).rounded(asked.bits)
    rows = of_file(opened, asked.data, asked.reads, say) if asked.data else held_out(opened, base, say)
    before = opened.backbone if of_run else None
    if base is not None and not of_run:
        # It reads the same ids: what the other model's tokenizer makes of a text would be another measure.
        before = replace(opened.backbone, weights=str(base), tokenizer=str(opened.out))
    measured, total = 0, len(rows) * (2 if before else 1)

    def told(more: int) -> None:
        nonlocal measured
        measured += more
        done(measured, total)

    untrained = losses(_loaded(before), rows.batches(opened), told) if before else None
    gc.collect()
    trained = losses(opened.model(), rows.batches(opened), told)
    found: dict[str, Any] = {
        "data": {
            "what": rows.what,
            "content": rows.content,
            "rows": len(trained.tokens),
            "examples": len(rows),
            "supervised_tokens": int(trained.tokens.sum()),
            "skipped": rows.skipped,
        },
        "base": None,
        "tuned": {"fingerprint": opened.fingerprint, **_told(trained)},
        "less_by": None,
        "intervals": METHOD,
        "prompt": opened.manifest["prompt"]["use"],
        "weights_dtype": opened.backbone.weights_dtype,
        "medframe": medframe.__version__,
        "libraries": libraries(),
        "machine": machine(),
    }
    if untrained is not None:
        found["base"] = {"model": "as before training" if of_run else str(base), **_told(untrained)}
        less = untrained.mean - trained.mean
        found["less_by"] = {"loss": less, "interval": interval(trained, untrained)}
    return found


def keep(found: dict[str, Any], file: Path) -> None:
    """Write what was measured into the file, beside what was measured on other rows or against another base."""
    try:
        before = json.loads(file.read_text("utf-8"))
        others = [each for each in before if _measured(each) != _measured(found)]
    except FileNotFoundError:
        others = []
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{file} is not what medframe evaluate writes ({error!r}); name another with --out") from None
    write(file, json.dumps([*others, found], ensure_ascii=False, indent=1) + "\n")


def _measured(found: dict[str, Any]) -> tuple[Any, ...]:
    """What of what on what."""
    against = (found["base"] or {}).get("model")
    of = (found["tuned"]["fingerprint"], found["prompt"], found["weights_dtype"])
    return found["data"]["content"], against, *of


def _loaded(backbone: Backbone) -> Any:
    import torch

    model: Any = backbone.load_model()
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _told(found: Losses) -> dict[str, Any]:
    return {"loss": found.mean, "interval": interval(found)}
