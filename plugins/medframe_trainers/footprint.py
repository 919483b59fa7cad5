"""What a run of the Hugging Face Trainer, with or without DeepSpeed, holds of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medframe import Footprint
from medframe_trainers import zero
from medframe_trainers.zero_check import at

if TYPE_CHECKING:
    import torch

    from medframe import Backbone
    from medframe_trainers.settings import Settings

_OPTIMIZER = {"adamw_torch": 8.0, "adamw_torch_fused": 8.0, "sgd": 0.0, "rmsprop": 4.0, "adagrad": 4.0}
"""Bytes of state for each trained element in float32, by transformers' names of optimizers; AdamW's for the rest."""
_SHARES = (frozenset[str](), frozenset({"optimizer"}), frozenset({"optimizer", "gradients"}))
_ALL = frozenset({"optimizer", "gradients", "weights"})


def held(settings: Settings, model: Any, backbone: Backbone) -> Any:
    """The model in the precision in which it is loaded: under DeepSpeed, that in which it computes."""
    import torch

    return model if settings.deepspeed is None else model.to(getattr(torch, zero.dtype(settings, backbone.dtype)))


def footprint(settings: Settings, model: Any, cheaper: tuple[str, ...] = ()) -> Footprint:
    """The footprint of a model that is as it will be trained; `cheaper` are the trainer's own ways to save memory."""
    computes = "bfloat16" if settings.bf16 else "float16" if settings.fp16 else None
    state = _OPTIMIZER.get(settings.optim, 8.0)
    if "8bit" in settings.optim:
        state = 2.0
    ways = () if settings.gradient_checkpointing else ("trainer.gradient_checkpointing=true",)
    if settings.deepspeed is None:
        more = ("trainer.deepspeed=zero2", "trainer.deepspeed=zero3", "trainer.deepspeed=zero3-offload")
        return Footprint(
            model=model,
            loss=_loss,
            head=_head,
            micro_batches=settings.gradient_accumulation_steps,
            computes=computes,
            optimizer=state,
            checkpointing=settings.gradient_checkpointing,
            cheaper=(*ways, *cheaper, *more),
        )
    content = zero.section(settings.deepspeed)
    stage = at(content, "zero_optimization.stage") or 0
    low = computes is not None and stage > 0
    places = {"optimizer": "offload_optimizer", "weights": "offload_param"}
    offloaded = {what for what, key in places.items() if at(content, f"zero_optimization.{key}.device") == "cpu"}
    more = ("trainer.deepspeed=zero3",) if stage < 3 else ()
    return Footprint(
        model=model,
        loss=_loss,
        head=_head,
        micro_batches=settings.gradient_accumulation_steps,
        computes=computes,
        # In a half precision DeepSpeed's optimizer holds the weights themselves in float32 as well.
        optimizer=state + (4.0 if low else 0.0),
        checkpointing=settings.gradient_checkpointing,
        shared=_ALL if stage == 3 else _SHARES[stage],
        offloaded=frozenset(offloaded),
        cheaper=(*ways, *cheaper, *more, *(() if offloaded else ("trainer.deepspeed=zero3-offload",))),
    )


def _loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    from medframe_trainers.loss import token_loss

    return token_loss(model, batch)[0]


def _head(labels: int, vocabulary: int) -> float:
    return 8.0 * labels * vocabulary
