"""The `full` trainer: every parameter of the model, or those that are named."""

from __future__ import annotations

import fnmatch
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medframe import Backbone, Footprint, Job, ProofError, RecipeError
from medframe_trainers.settings import Settings
from medframe_trainers.whole import copied

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from medframe_trainers.training import Training


@dataclass(kw_only=True)
class Full(Settings):
    """Every parameter, or those matched by patterns, by the Hugging Face Trainer.

    Weights are trained in float32, whatever their dtype: in bfloat16 a step of 1e-5 is lost in rounding. The model
    is saved in the dtype that it was loaded in. DeepSpeed keeps the float32 weights in its optimizer, and the model
    computes and is saved in bfloat16 where `bf16` is on, else in float32.
    """

    learning_rate: float = 1e-5
    """Peak learning rate."""
    parameters: list[str] | None = None
    """Parameters to train, by shell patterns of their names such as model.layers.3[01].*; null: all."""
    max_shard_size: str = "5GB"
    """Largest file of the saved model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parameters == []:
            raise ValueError("parameters is empty: name some, or give null for all")
        if not re.fullmatch(r"[1-9]\d*[KMG]B", self.max_shard_size):
            raise ValueError(f"max_shard_size must be like 500MB or 5GB, not {self.max_shard_size!r}")

    def footprint(self, model: PreTrainedModel, backbone: Backbone) -> Footprint:
        from medframe_trainers.footprint import footprint, held

        model = held(self, model, backbone)
        self._freeze(model)
        if self.deepspeed is None:
            self._widen(model)
        return footprint(self, model, cheaper=("trainer.use=lora",))

    def fit(self, job: Job) -> None:
        from medframe_trainers.training import Training

        with Training(job, self) as training:
            self._fit(job, training)

    def _fit(self, job: Job, training: Training) -> None:
        model = training.load(adapted=False)
        self._freeze(model)
        # Parameters alone: buffers such as the angles of rotary positions keep the precision they are made in.
        dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
        if self.deepspeed is None:
            self._widen(model)
        start = _marks(model)

        def save(folder: Path) -> None:
            live = _state(model, keep=job.rank == 0)
            if job.rank == 0:
                model.save_pretrained(str(folder), state_dict=live, max_shard_size=self.max_shard_size)
                _prove(job, model, live, folder)

        training.fit(model, save)
        if _marks(model) == start:
            raise ProofError(
                "trainer: no parameter has changed: nothing was learnt. The first step of a warm-up has a learning "
                "rate of 0: take more steps"
            )
        if self.deepspeed is None:
            for name, parameter in model.named_parameters():
                parameter.data = parameter.data.to(dtypes[name])
        with job.saving("model") as folder:
            save(folder)
            if job.rank == 0:
                job.tokenizer.save_pretrained(str(folder))
        job.finish(model)

    def _widen(self, model: Any) -> None:
        """Have the weights in float32, all of them but those that are frozen and used under autocast."""
        for parameter in model.parameters():
            if parameter.requires_grad or not (self.bf16 or self.fp16):
                parameter.data = parameter.data.float()

    def _freeze(self, model: Any) -> None:
        """Leave only the chosen parameters to be trained; RecipeError for a pattern that matches none."""
        names = [name for name, _ in model.named_parameters()]
        for pattern in self.parameters or ():
            if not fnmatch.filter(names, pattern):
                raise RecipeError(
                    f"trainer.parameters: {pattern!r} matches no parameter; the model has {names[0]} ... {names[-1]}"
                )
        if self.parameters is not None:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(any(fnmatch.fnmatchcase(name, pattern) for pattern in self.parameters))


def _marks(model: Any) -> dict[str, int]:
    """A checksum of every tensor that is trained: a copy of a 13-billion-parameter model would not fit beside it."""
    import torch

    # Of integers, a sum is the same in whatever order a device adds them up.
    return {
        name: int(tensor.float().view(torch.int32).sum(dtype=torch.int64))
        for name, tensor in copied({name: p for name, p in model.named_parameters() if p.requires_grad})
    }


def _state(model: Any, keep: bool) -> dict[str, Any]:
    """Every tensor of the model, less those tied to another, whole; nothing in a process that does not `keep` them."""
    tied = set(model.all_tied_weights_keys)
    state = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name not in tied}
    if not any(hasattr(tensor, "ds_id") for tensor in state.values()):
        return {name: tensor.detach() for name, tensor in state.items()}
    return {name: tensor for name, tensor in copied(state) if keep}


def _prove(job: Job, model: Any, live: dict[str, Any], folder: Path) -> None:
    """Every tensor of the live state must be in the folder as it is; else ProofError."""
    from transformers.core_model_loading import revert_weight_conversion

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
