"""The `full` trainer: every parameter of the model."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medframe import Job, ProofError
from medframe_trainers.settings import Settings

if TYPE_CHECKING:
    import torch


@dataclass(kw_only=True)
class Full(Settings):
    """Every parameter, by the Hugging Face Trainer.

    Weights are trained in float32, whatever their dtype: in bfloat16 a step of 1e-5 is lost in rounding. The model
    is saved in the dtype that it was loaded in.
    """

    learning_rate: float = 1e-5
    """Peak learning rate."""
    max_shard_size: str = "5GB"
    """Largest file of the saved model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[1-9]\d*[KMG]B", self.max_shard_size):
            raise ValueError(f"max_shard_size must be like 500MB or 5GB, not {self.max_shard_size!r}")

    def fit(self, job: Job) -> None:
        from transformers import set_seed

        from medframe_trainers.huggingface import arguments, fit

        args = arguments(job, self)
        set_seed(job.seed)
        model: Any = job.load_model()
        # Parameters alone: buffers such as the angles of rotary positions keep the precision they are made in.
        dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
        for parameter in model.parameters():
            parameter.data = parameter.data.float()
        start = {name: _mark(parameter) for name, parameter in model.named_parameters()}

        def prove(folder: Path) -> None:
            _prove(job, model, folder)

        fit(job, model, args, self, prove)
        if all(_mark(parameter) == start[name] for name, parameter in model.named_parameters()):
            raise ProofError(
                "trainer: no parameter has changed: nothing was learnt. The first step of a warm-up has a learning "
                "rate of 0: take more steps"
            )
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data.to(dtypes[name])
        with job.saving("model") as folder:
            model.save_pretrained(str(folder), max_shard_size=self.max_shard_size)
            job.tokenizer.save_pretrained(str(folder))
            prove(folder)
        job.finish(model)


def _mark(parameter: torch.Tensor) -> int:
    """A checksum of the fp32 tensor: a copy of a 13-billion-parameter model would not fit beside it."""
    import torch

    # Of integers, a sum is the same in whatever order a device adds them up.
    return int(parameter.detach().view(torch.int32).sum(dtype=torch.int64))


def _prove(job: Job, model: Any, folder: Path) -> None:
    """Every tensor of the model, less those tied to another, must be in the folder as it is; else ProofError."""
    from transformers.core_model_loading import revert_weight_conversion

    tied = set(model.all_tied_weights_keys)
    live = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    # transformers joins the experts of a mixture, or renames parts, when it loads; and undoes that when it saves.
    live = revert_weight_conversion(model, live)
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        job.prove(live, folder / "model.safetensors")
        return
    places = json.loads(index.read_text("utf-8"))["weight_map"]
    if odd := sorted(places.keys() ^ live.keys()):
        raise ProofError(f"{index}: tensors that are missing or too many: {', '.join(odd[:3])}")
    for file in sorted(set(places.values())):
        job.prove({name: live[name] for name in places if places[name] == file}, folder / file)
