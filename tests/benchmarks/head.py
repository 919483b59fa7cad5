"""Memory and gradients of the loss without logits against the library's way, at vocabularies of published sizes.

    python tests/benchmarks/head.py [--hidden 256] [--rows 2048] [--supervised 0.4] [--frozen]

The library's way: logits of all rows, its cross-entropy. Ours: `medframe_trainers.head`, of the supervised rows alone.
Each in a process of its own, on one thread, forward and backward; peak memory above what was there before (VmHWM).
"""

from __future__ import annotations

import argparse
import subprocess
import sys

CHILD = """
import sys, torch
from pathlib import Path
from medframe_trainers.head import LinearCrossEntropy
way, vocabulary, hidden, rows, labels, frozen = sys.argv[1], *map(int, sys.argv[2:])

def status(key):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if key in line)

torch.set_num_threads(1)
torch.manual_seed(0)
weight = torch.randn(vocabulary, hidden).mul_(0.02).requires_grad_(not frozen)
states = torch.randn(rows, hidden, requires_grad=True)
targets = torch.full((rows,), -100)
targets[:labels] = torch.randint(vocabulary, (labels,))
Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
before = status("VmRSS")
if way == "library":
    torch.nn.functional.cross_entropy(states @ weight.T, targets, reduction="sum").backward()
else:
    kept = targets != -100
    LinearCrossEntropy.apply(states[kept], weight, None, targets[kept], weight.detach()).backward()
peak = status("VmHWM")
print(peak - before, float(states.grad.norm()), 0.0 if frozen else float(weight.grad.norm()))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--supervised", type=float, default=0.4, help="their share")
    parser.add_argument("--frozen", action="store_true", help="the head is not trained")
    told = parser.parse_args()
    for vocabulary in (8000, 49954, 250880):
        sizes = [vocabulary, told.hidden, told.rows, int(told.rows * told.supervised), int(told.frozen)]
        found = {}
        for way in ("library", "ours"):
            line = [sys.executable, "-c", CHILD, way, *map(str, sizes)]
            ended = subprocess.run(line, capture_output=True, text=True, check=True)
            found[way] = [float(value) for value in ended.stdout.split()]
        (theirs, *norms), (mine, *same) = found["library"], found["ours"]
        apart = max(abs(a - b) / a for a, b in zip(norms, same, strict=True) if a)
        print(
            f"{vocabulary:8,}  {theirs / 2**20:6.2f} GB  {mine / 2**20:6.2f} GB = 1/{theirs / mine:.1f}"
            f"  norms of gradients {apart:.0e} apart"
        )


if __name__ == "__main__":
    main()
