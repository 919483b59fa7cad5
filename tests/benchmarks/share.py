"""The share of a large matrix product's speed that the needed operations of training reach, as `medframe bench` says.

    python tests/benchmarks/share.py --data FILE [--hidden 512] [--tokens 8192] [--steps 4]

FILE holds rows as published with BenTsao (llama_data.json). A LLaMA of six layers, every parameter trained, one thread.
Needs a core that nobody else uses.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from processes import model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=8192, help="of a micro-batch")
    parser.add_argument("--steps", type=int, default=4)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model(Path(folder) / "model", told.data, told.hidden)
        line = [sys.executable, "-m", "medframe", "bench", "bentsao-llama", "profile=embedded", "held_out=null"]
        line += [f"backbone={{use: llama, weights: {folder}/model}}", f"data.knowledge.path={told.data}"]
        line += ["trainer={use: full, learning_rate: 1e-5}", f"batching={{kind: packed, tokens: {told.tokens}}}"]
        subprocess.run([*line, "--steps", str(told.steps)], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    main()
