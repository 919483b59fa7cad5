"""Two processes on two cores against one on one core: supervised tokens a second of the same recipe, in turn.

    python tests/benchmarks/processes.py [--rounds 3]

Every way takes the same steps on the same samples: plain data parallel and ZeRO-2, every parameter trained. The speed
is the median of the logged ones, the first left out. Needs two cores that nobody else uses.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WAYS = {
    "one process": ["processes=1"],
    "two, plain": ["processes=2"],
    "one process, zero2": ["processes=1", "trainer.deepspeed=zero2"],
    "two, zero2": ["processes=2", "trainer.deepspeed=zero2"],
}


def speed(out: Path, overrides: list[str]) -> float:
    """Supervised tokens a second, over all processes."""
    settings = ["trainer={use: full, max_steps: 12, learning_rate: 1e-5, logging_steps: 2, save_steps: 1000}"]
    settings += ["trainer.gradient_accumulation_steps=8", "batching={kind: packed, tokens: 1024}", "held_out=null"]
    line = [sys.executable, "-m", "medframe", "run", "chatmed", f"out={out}", "compare=0", *settings, *overrides]
    ended = subprocess.run(line, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    return statistics.median([line["supervised_tokens_per_second"] for line in lines if "loss" in line][1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for name, overrides in WAYS.items():
                found[name].append(
                    speed(Path(folder) / f"{name}-{number}".replace(" ", "-").replace(",", ""), overrides)
                )
    one = statistics.median(found["one process"])
    for name, speeds in found.items():
        print(
            f"{name:20} {statistics.median(speeds):8,.0f} supervised tokens/s = {statistics.median(speeds) / one:.2f} x"
        )


if __name__ == "__main__":
    main()
