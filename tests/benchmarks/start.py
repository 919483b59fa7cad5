"""How long the second start of a recipe takes until its first step, and how much of that is imports.

    python tests/benchmarks/start.py [--rounds 5] [RECIPE] [KEY=VALUE ...]

The recipe is run once, so that its data is in the store; then it starts again, in turn with a process that imports
torch, transformers, peft and DeepSpeed and does nothing else. Both are timed from the moment they are launched; a step
has been taken when its line is in metrics.jsonl, so the step itself counts.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIBRARIES = """
import gc
gc.set_threshold(10_000)  # as the command line does
import deepspeed, peft, torch
from transformers import AutoTokenizer, LlamaForCausalLM, Trainer
"""
"""What a run of these recipes cannot do without; accelerate imports DeepSpeed wherever it is installed."""


def started(out: Path, command: list[str]) -> float:
    """Seconds from launch to the first logged step; the run is then stopped."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    metrics = out / "metrics.jsonl"
    try:
        while not (metrics.exists() and '"loss"' in metrics.read_text("utf-8")):
            assert process.poll() is None, "it ended before its first step"
            time.sleep(0.005)
        return time.perf_counter() - began
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="chatmed")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        line = [sys.executable, "-m", "medframe", "run", told.recipe, "trainer.logging_steps=1", "compare=0"]
        line += told.overrides
        subprocess.run([*line, "trainer.max_steps=2", f"out={folder}/0"], check=True, stdout=subprocess.DEVNULL)
        starts, imports = [], []
        for number in range(1, told.rounds + 1):
            out = folder / str(number)
            starts.append(started(out, [*line, f"out={out}"]))
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", LIBRARIES], check=True, stderr=subprocess.DEVNULL)
            imports.append(time.perf_counter() - began)
    first, imported = statistics.median(starts), statistics.median(imports)
    print(f"first step after {first:.2f} s, imports alone {imported:.2f} s, the rest {first - imported:.2f} s")


if __name__ == "__main__":
    main()
