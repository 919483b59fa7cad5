"""What rounding a run's weights costs in loss and gains in memory.

    python tests/benchmarks/quantised.py RUN [RUN ...]

For each run as it is, in 8 and in 4 bits: bytes of the model's tensors, of its linear layers alone, and the loss per
supervised token on the rows that the run held out.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from medframe import quiet
from medframe.compose import compose
from medframe.prepare import prepare
from medframe.recipe import build
from medframe.trained import open_run
from medframe_trainers.loss import mean_loss


def main() -> None:
    quiet.libraries()
    for name in sys.argv[1:]:
        recipe = build(compose(Path(name) / "recipe.yaml"))
        held_out = prepare(replace(recipe, out=Path("unused"))).held_out
        assert held_out
        for bits in (None, "int8", "int4"):
            model = open_run(Path(name)).rounded(bits).model()  # type: ignore[arg-type]
            sizes = {n: p.numel() * p.element_size() for n, p in model.named_parameters()}
            layers = sum(size for n, size in sizes.items() if "layers." in n or ".h." in n)
            with torch.no_grad():
                loss = mean_loss(model, held_out.epoch(0))
            size = f"{sum(sizes.values()) / 2**20:6.2f} MB, layers {layers / 2**20:6.2f} MB"
            print(f"{name} {bits or 'as it is':9} {size}, held-out loss {loss:.4f}", flush=True)


if __name__ == "__main__":
    main()
