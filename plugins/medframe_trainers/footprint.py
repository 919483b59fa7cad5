"""What a run of the Hugging Face Trainer, with or without DeepSpeed, holds of a model."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from medframe import Footprint
from medframe_trainers import zero
from medframe_trainers.zero_check import at

if TYPE_CHECKING:
    import torch

    from medframe import Backbone, Dtype
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
    computes: Dtype | None = "bfloat16" if settings.bf16 else "float16" if settings.fp16 else None
    content = zero.content(settings)
    stage = at(content, "zero_optimization.stage") or 0
    places = {"optimizer": "offload_optimizer", "weights": "offload_param"}
    offloaded = {what for what, key in places.items() if at(content, f"zero_optimization.{key}.device") == "cpu"}
    if "optimizer" in offloaded:
        offloaded.add("gradients")  # they go where the optimizer is
    state = 2.0 if "8bit" in settings.optim else _OPTIMIZER.get(settings.optim, 8.0)
    ways = ["trainer.gradient_checkpointing=true"] if not settings.gradient_checkpointing else []
    # There the weights themselves are in the precision computed in.
    low = "" if settings.bf16 or settings.fp16 else " trainer.bf16=true"
    return Footprint(
        model=model,
        loss=_loss,
        head=partial(_head, model, computes),
        micro_batches=settings.gradient_accumulation_steps,
        computes=None if content and stage else computes,
        # In a half precision DeepSpeed's optimizer holds the weights themselves in float32 as well.
        optimizer=state + (4.0 if computes and stage else 0.0),
        at_once=settings.optim == "adamw_torch",
        checkpointing=settings.gradient_checkpointing,
        shared=_ALL if stage == 3 else _SHARES[stage],
        offloaded=frozenset(offloaded),
        cheaper=(*ways, *cheaper, *(() if offloaded else (f"trainer.deepspeed=zero3-offload{low}",))),
        sharing=tuple(f"trainer.deepspeed=zero{more}{low}" for more in (2, 3) if more > stage),
    )


def _loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    from medframe_trainers.head import head
    from medframe_trainers.loss import token_loss

    found = head(model)
    try:
        return token_loss(model, batch, found)[0]
    finally:
        if found:
            found.release()


def _head(model: Any, computes: Dtype | None, labels: int, gpu: bool) -> float:
    """Bytes of logits and of what is made of them, as `medframe_trainers.head` takes them."""
    from medframe_trainers.head import head, rows_at_a_time

    found = head(model)
    low = computes is not None or model.get_output_embeddings().weight.itemsize < 4
    vocabulary: int = model.config.get_text_config().vocab_size
    if found:
        found.release()
        labels = min(labels, rows_at_a_time(gpu, vocabulary))
    return (10.0 if low else 8.0) * labels * vocabulary
