"""A run of 200 steps made in every way that is meant to be the same, and how far apart they end.

    python tests/benchmarks/same_loss.py [--steps 200]

Each step takes all rows, so that packed and padded micro-batches hold the same samples in a step. fp32, no dropout;
one and two processes, packed and padded, the head's loss with and without logits, attention by sample and by mask.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TOKENS, ROWS = 800, 6
WHOLE = """
import sys
import medframe.attention, medframe_trainers.huggingface
medframe.attention.quicken = lambda model: None
medframe_trainers.huggingface.head = lambda model: None
from medframe.cli import main
sys.argv[0] = "medframe"
main()
"""


def run(folder: Path, name: str, steps: int, *overrides: str, whole: bool = False) -> tuple[float, float]:
    """(last loss, last held-out loss) of the run."""
    start = ["-c", WHOLE] if whole else ["-m", "medframe"]
    out = folder / name.replace(" ", "-").replace(",", "")
    settings = [f"out={out}", "compare=0", "held_out={rows: 8}", "data.consult.limit=56", f"trainer.max_steps={steps}"]
    settings += ["trainer.dropout=0", "trainer.warmup_steps=10", "trainer.save_steps=1000", "trainer.logging_steps=1"]
    line = [sys.executable, *start, "run", "chatmed", *settings, *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    found = [[line[value] for line in lines if value in line][-1] for value in ("loss", "held_out_loss")]
    return found[0], found[1]


def count(overrides: list[str]) -> int:
    """Micro-batches in an epoch."""
    from medframe.compose import compose
    from medframe.prepare import prepare
    from medframe.recipe import build
    from medframe.shipped import recipes

    settings = ["out=unused", "held_out={rows: 8}", "data.consult.limit=56"]
    return len(prepare(build(compose(recipes()["chatmed"], [*settings, *overrides]))).train.epoch(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    packed, padded = ([f"batching={{kind: {k}}}"] for k in (f"packed, tokens: {TOKENS}", f"padded, rows: {ROWS}"))
    ways = {
        "packed": (packed, False, 1),
        "packed, logits and masks": (packed, True, 1),
        "padded": (padded, False, 1),
        "packed, two processes": (packed, False, 2),
        "packed, two processes, zero2": ([*packed, "trainer.deepspeed=zero2"], False, 2),
    }
    first: tuple[float, float] | None = None
    with tempfile.TemporaryDirectory() as folder:
        for name, (overrides, whole, processes) in ways.items():
            each = count(overrides)
            if processes == 2 and each % 2:
                sys.exit(f"{each} micro-batches cannot be shared by two processes: change TOKENS")
            settings = [*overrides, f"trainer.gradient_accumulation_steps={each}", f"processes={processes}"]
            found = run(Path(folder), name, steps, *settings, whole=whole)
            first = first or found
            apart = " ".join(f"{abs(a - b):.1e}" for a, b in zip(found, first, strict=True))
            print(f"{name:32} loss {found[0]:.6f}  held-out {found[1]:.6f}  apart {apart}", flush=True)


if __name__ == "__main__":
    main()
