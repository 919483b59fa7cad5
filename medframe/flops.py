"""The floating-point operations that a training step needs: what must be computed, however it is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medframe.attention import sample_lengths

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from medframe.batch import MicroBatch


@dataclass(frozen=True)
class Load:
    """What some micro-batches ask of a model."""

    tokens: float = 0
    """Real ones, without padding."""
    slots: float = 0
    """Tokens with padding."""
    supervised: float = 0
    pairs: float = 0
    """Pairs of a token and one that it attends to, itself included: L (L + 1) / 2 of a sample of length L."""

    def __add__(self, other: Load) -> Load:
        return Load(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def __mul__(self, factor: float) -> Load:
        return Load(*(getattr(self, name) * factor for name in self.__dataclass_fields__))

    @property
    def padding(self) -> float:
        """The share of the slots that holds nothing."""
        return 1 - self.tokens / self.slots if self.slots else 0.0


def load_of(batch: MicroBatch) -> Load:
    """What a micro-batch asks for: samples packed in a row are told by their positions, padding by the mask."""
    from medframe.batch import supervised

    slots = batch["input_ids"].numel()
    if "position_ids" in batch:
        lengths = np.array(sample_lengths(batch["position_ids"]) or [slots])
    else:
        lengths = batch["attention_mask"].sum(1).numpy()
    return Load(int(lengths.sum()), slots, supervised(batch), int((lengths * (lengths + 1) // 2).sum()))


@dataclass(frozen=True)
class Work:
    """Operations of a model's forward and backward pass, for each unit of `Load`."""

    token: float
    """For a token: the products with the matrices of the layers."""
    supervised: float
    """For a token with a label: the product with the head."""
    pair: float
    """For a pair of tokens: its score and its part in the sum."""

    def of(self, load: Load) -> float:
        """Operations for so much."""
        return self.token * load.tokens + self.supervised * load.supervised + self.pair * load.pairs


def work(model: PreTrainedModel) -> tuple[Work, Work] | None:
    """What the model asks for in the forward pass, and in the backward pass; None for experts, as not all compute.

    Only shapes and `requires_grad` are looked at. A product costs 2 operations for an element of its matrix in the
    forward pass; in the backward pass 2 for what came in, where anything before it is trained, and 2 for the matrix,
    where that is trained. Norms and activation functions are left out (Narayanan et al. 2021, appendix).
    """
    embedding, head = (_in_use(module) for module in (model.get_input_embeddings(), model.get_output_embeddings()))
    ends = {*embedding, *head}
    forward, backward = 0, 0
    reached = any(parameter.requires_grad for parameter in embedding)
    for name, parameter in model.named_parameters():
        if "original_module" in name or parameter in ends:
            continue  # peft trains a copy of it, or it is an embedding or the head
        if parameter.ndim > 2:
            return None
        if parameter.ndim == 2:
            forward += 2 * parameter.numel()
            backward += 2 * parameter.numel() * (reached + parameter.requires_grad)
        reached |= parameter.requires_grad
    matrices = [parameter for parameter in head if parameter.ndim == 2]
    pair = 4 * _attended(model.config)
    return (
        Work(forward, sum(2 * p.numel() for p in matrices), pair),
        Work(backward, sum(2 * p.numel() * (reached + p.requires_grad) for p in matrices), 2 * pair * reached),
    )


def _in_use(module: Any) -> list[Any]:
    """The parameters that a module computes with: peft keeps the original of one that it trains whole."""
    return [p for name, p in module.named_parameters() if "original_module" not in name] if module else []


def _attended(config: Any) -> int:
    """Width of the queries of all heads, summed over the layers."""
    config = config.get_text_config()
    heads = config.num_attention_heads
    width: int = (getattr(config, "head_dim", None) or config.hidden_size // heads) * heads
    return width * int(config.num_hidden_layers)
