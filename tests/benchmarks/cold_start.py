"""How long `medframe list-plugins` takes from a cold start, as a multiple of `python -c "import click"`.

    python tests/benchmarks/cold_start.py [RUNS]

Both in turn; prints the median of each and the median ratio.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

LISTING = [sys.executable, "-m", "medframe", "list-plugins"]
CLICK = [sys.executable, "-c", "import click"]


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main(runs: int) -> None:
    pairs = [(seconds(LISTING), seconds(CLICK)) for _ in range(runs + 1)][1:]
    listing, click = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    print(f"list-plugins {1000 * listing:.0f} ms, import click {1000 * click:.0f} ms, ratio {ratio:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
