"""Proofs that what was saved is what was trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medframe.errors import ProofError
from medframe.saving import refusals_told
from medframe.world import LAUNCH

if TYPE_CHECKING:
    import torch

    from medframe.batch import Batches

WITNESS = "proof.safetensors"
"""The file that `record` leaves in a run directory until `reloaded` has used it."""


def record(model: torch.nn.Module, batches: Batches, out: Path | None) -> None:
    """Write the logits of the live model for the first examples to `out`; `reloaded` compares with them.

    Without `out` they are computed and not written: a model that is spread over processes needs all of them for it.
    """
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    was_training = model.training
    model.eval()
    for number in range(min(3, len(batches))):
        examples, index = batches.example(number)
        ids = _tensor(examples.ids(index)[:256])
        tensors[f"ids.{number}"] = ids
        tensors[f"logits.{number}"] = logits(model, ids)
    model.train(was_training)
    if out:
        with refusals_told(out / WITNESS, "what was trained is saved"):
            save_file(tensors, out / WITNESS)


def reloaded(out: Path, prompts: Sequence[Sequence[int]]) -> list[tuple[str, str]]:
    """Load the run in a fresh process and compare its logits with those recorded; ProofError when they differ.

    Returns what the base model and the trained one answer to each prompt, a list of ids, in that process.
    """
    if not (out / WITNESS).is_file():
        raise ProofError(f"{out}: the trainer did not call job.finish(model), so nothing proves what it saved")
    _free_the_gpu()
    child = subprocess.run(
        [sys.executable, "-P", "-m", "medframe.witness", str(out.resolve()), str(os.getpid())],
        input=json.dumps([list(map(int, prompt)) for prompt in prompts]),
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,  # Ctrl-C reaches us alone, and ends it by ending us
        env={name: value for name, value in os.environ.items() if name not in LAUNCH},  # it is alone
    )
    if child.returncode:
        raise ProofError(f"{out}: the saved weights could not be loaded and run in a fresh process (above)")
    result = json.loads(child.stdout.splitlines()[-1])
    if result["differs"]:
        raise ProofError(
            f"{out}: loaded in a fresh process, what was saved computes something else: {result['differs']}"
        )
    (out / WITNESS).unlink()
    return [(before, after) for before, after in result["answers"]]


def _free_the_gpu() -> None:
    """Give back what the training held, so that the fresh process finds room."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def saved(live: Mapping[str, torch.Tensor], file: Path) -> None:
    """Reopen a safetensors file: names, shapes and bytes as the live tensors', all finite; else ProofError."""
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as tensors:
            names = set(tensors.keys())
            if names != set(live) or not names:
                odd = sorted(names ^ set(live))[:3]
                raise ProofError(f"{file}: {len(names)} tensors saved of {len(live)}; differing: {', '.join(odd)}")
            for name, tensor in live.items():
                stored, expected = tensors.get_tensor(name), tensor.detach().cpu()
                if stored.shape != expected.shape or stored.dtype != expected.dtype:
                    raise ProofError(f"{file}: {name} is {tuple(stored.shape)}, not {tuple(expected.shape)}")
                if not torch.isfinite(stored).all():
                    raise ProofError(f"{file}: {name} is not finite: the training has diverged")
                if not torch.equal(stored, expected):
                    raise ProofError(f"{file}: {name} does not hold what was trained")
    except (SafetensorError, OSError) as error:
        raise ProofError(f"{file} cannot be read back: {error}") from None


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The model's logits for one sequence, fp32 on the CPU: [tokens, vocabulary]."""
    import torch

    device = next(model.parameters()).device
    with torch.no_grad():
        result: Any = model(input_ids=ids[None].to(device), use_cache=False)
    computed: torch.Tensor = result.logits[0].float().cpu()
    return computed


def _tensor(ids: Any) -> torch.Tensor:
    import torch

    return torch.from_numpy(ids.astype("int64"))
