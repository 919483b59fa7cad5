"""The loss over supervised tokens, computed only where there is a label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medframe_trainers.stream import shared

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from medframe_trainers.head import Head


def token_loss(model: Any, batch: dict[str, torch.Tensor], head: Head | None = None) -> tuple[torch.Tensor, int]:
    """The sum of the token losses of a micro-batch, fp32, and how many tokens it is a sum over.

    Dividing by the supervised tokens of the whole optimizer step, not by those of the micro-batch, is what makes
    packed, padded and accumulated batches give the same gradient. By the model's `head` it takes no logits.
    """
    import torch

    inputs = dict(batch)
    targets = inputs.pop("labels")[:, 1:]
    keep = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    keep[:, :-1] = targets != -100
    targets = targets[targets != -100]
    if head is not None:
        with head.giving(targets, keep):
            return model(**inputs, logits_to_keep=keep, use_cache=False).logits, len(targets)
    # With a cache, transformers does not look at the positions of a packed row for borders.
    logits = model(**inputs, logits_to_keep=keep, use_cache=False).logits
    if logits.shape[:-1] == keep.shape:  # a model without logits_to_keep computes them all
        logits = logits[keep]
    loss = torch.nn.functional.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets, reduction="sum")
    return loss, len(targets)


def mean_loss(
    model: Any,
    epoch: Sequence[dict[str, torch.Tensor]],
    rank: int = 0,
    world: int = 1,
    progress: Callable[[], None] = lambda: None,
    head: Head | None = None,
) -> float:
    """The loss per supervised token over an epoch, without gradients, each process computing its share.

    The model's mode is left as it was. `progress` is called after every micro-batch.
    """
    import torch

    was_training = model.training
    device = next(model.parameters()).device
    model.eval()
    total = torch.zeros(2, dtype=torch.float64)  # on the CPU: not every device has this precision
    with torch.no_grad():
        for batch in shared(epoch, rank, world):
            loss, tokens = token_loss(model, {name: tensor.to(device) for name, tensor in batch.items()}, head)
            total += torch.tensor([float(loss), tokens], dtype=torch.float64)
            progress()
    model.train(was_training)
    if world > 1:
        torch.distributed.all_reduce(total)
    return float(total[0] / total[1].clamp(min=1))
