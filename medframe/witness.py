"""`python -m medframe.witness RUN PARENT`: a fresh process that loads a run and says what it computes.

Reads prompts, a list of lists of ids, as JSON from standard input. Prints one line of JSON: {differs: null or how the
logits differ from those recorded, answers: [before, after] for each prompt}. `medframe.proof.reloaded` starts it; it
ends when the process PARENT does.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medframe import quiet, worker
from medframe.answer import Answerer
from medframe.decoding import Decoding
from medframe.proof import WITNESS, logits
from medframe.trained import open_run

if TYPE_CHECKING:
    from medframe.encode import Encoder


def main(out: Path, prompts: list[list[int]]) -> dict[str, Any]:
    """Compare and answer, as the module says."""
    import torch

    quiet.libraries()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    run = open_run(out, proven=False)
    before = []
    if prompts:
        base: Any = run.backbone.load_model()
        before = [_answer(base.to(device), run.encoder, ids) for ids in prompts]
        del base
    model = run.model()
    after = [_answer(model, run.encoder, ids) for ids in prompts]
    low = run.backbone.weights_dtype is not None or any(
        p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters()
    )
    return {"differs": _differs(model, out / WITNESS, low), "answers": list(zip(before, after, strict=True))}


def _differs(model: Any, recorded: Path, low: bool) -> str | None:
    from safetensors.torch import load_file

    tensors = load_file(recorded)
    for name in [name for name in tensors if name.startswith("ids.")]:
        expected = tensors[name.replace("ids.", "logits.")]
        apart = float((logits(model, tensors[name]) - expected).abs().max())
        # The order of sums may differ between two processes; a wrong tensor shows in the first digits.
        allowed = (2e-2 if low else 1e-4) * max(1.0, float(expected.abs().max()))
        if not apart <= allowed:
            return f"logits differ by {apart:.2e}, more than {allowed:.2e}"
    return None


def _answer(model: Any, encoder: Encoder, ids: list[int]) -> str:
    return Answerer(model, encoder).continued(ids, Decoding(max_new_tokens=128)).strip()


if __name__ == "__main__":
    gc.set_threshold(10_000)  # as the command line does
    worker.end_with(int(sys.argv[2]))
    print(json.dumps(main(Path(sys.argv[1]), json.load(sys.stdin))))
