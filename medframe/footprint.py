"""What a trainer tells of itself so that its cost can be foretold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from medframe.backbone import Dtype

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a trainer holds of a model, and how it computes."""

    model: PreTrainedModel
    """The model as it is trained, on the meta device: adapters in place, `requires_grad` where something is learnt,

    every parameter in the precision in which it is held.
    """
    loss: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor]
    """The loss of a model and a micro-batch, as `fit` computes it."""
    head: Callable[[int, bool], float]
    """Bytes of logits, and of what is made of them, that are there at a time: for so many labels, on a GPU or not."""
    micro_batches: int | None = None
    """In an optimizer step, over all processes; None: one in each."""
    computes: Dtype | None = None
    """Precision of matrix products under autocast; None: that of the weights."""
    gradient: float | None = None
    """Bytes of gradient for each trained element; None: as the element itself."""
    optimizer: float = 8.0
    """Bytes that the optimizer keeps for each trained element; AdamW: two moments in float32."""
    at_once: bool = False
    """Whether on a GPU the optimizer takes all elements in one step, with another 4 bytes for each for a moment."""
    checkpointing: bool = False
    """Whether the activations of a layer are computed again in the backward pass."""
    shared: frozenset[str] = field(default_factory=frozenset)
    """What each process holds only its share of: optimizer, gradients, weights (ZeRO stages 1, 2, 3)."""
    gathered: float = 1e9
    """Elements of weights that are whole in every process at a time, where each holds only its share of them."""
    offloaded: frozenset[str] = field(default_factory=frozenset)
    """What lies in the machine's memory instead of the device's: optimizer, gradients, weights."""
    cheaper: tuple[str, ...] = ()
    """Changes to the recipe that save memory, `trainer.gradient_checkpointing=true`, those that cost least first.

    Each is one override, or several with spaces between.
    """
    sharing: tuple[str, ...] = ()
    """The same, of changes by which several processes share what each would hold."""
