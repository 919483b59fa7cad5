"""What training keeps for the backward pass: counted on a narrow copy of the model, in the trainer's own code."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from medframe.attention import SHORT, quicken
from medframe.footprint import Footprint
from medframe.live import Live

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from medframe.batch import Kind, MicroBatch

_HEADS = 4
"""At least so many are kept: what does not shrink with the width must stay small beside what does."""
_VOCABULARY = 256
_LONGEST = 1021
"""Tokens of a sample, at most: longer ones would take seconds. A prime: no activation has the shape of a weight."""


@dataclass(frozen=True)
class Activations:
    """Bytes at most, for a number of slots of tokens: `whole` ones, and more for `each`."""

    first_whole: float
    first_each: float
    """With one layer: what lies outside of the layers, and what is there for a moment, included."""
    layer_whole: float
    layer_each: float
    """For each further layer."""

    def first(self, slots: float) -> float:
        return self.first_whole + self.first_each * slots

    def layer(self, slots: float) -> float:
        return self.layer_whole + self.layer_each * slots


def activations(
    model: PreTrainedModel, footprint: Callable[[Any], Footprint | None], kind: Kind, longest: int, gpu: bool
) -> Activations | None:
    """Of this model, of which only class and configuration are looked at; None where it cannot be made narrow.

    Widths are divided by one number, models of two and four layers run forward and backward with one and two rows of
    the `longest` sample, or packs of as many and one more, and what lives at a time is counted tensor by tensor.
    """
    # A GPU keeps no scores of short samples either.
    length = min(max(longest, SHORT + 1) if gpu and kind == "packed" else longest, _LONGEST)
    batches = [_batch(kind, rows, length) for rows in (1, 2)]
    try:
        by = _divisor(model.config.get_text_config())
        (one_two, one_four), (two_two, two_four) = (
            [
                by * _peak(type(model), _narrow(model.config, by, layers), model.dtype, footprint, batch)
                for layers in (2, 4)
            ]
            for batch in batches
        )
    except Exception:  # any architecture may come, and fail in a way of its own
        return None
    slots, more = (batch["input_ids"].numel() for batch in batches)
    layer, layer_more = (one_four - one_two) / 2, (two_four - two_two) / 2
    first, first_more = one_two - layer, two_two - layer_more
    layer_each, first_each = (layer_more - layer) / (more - slots), (first_more - first) / (more - slots)
    return Activations(first - first_each * slots, first_each, layer - layer_each * slots, layer_each)


def _batch(kind: Kind, rows: int, length: int) -> MicroBatch:
    """So many samples, a row each or, beside one more, in a pack."""
    if kind == "packed":
        positions = torch.arange(length).repeat(rows + 1)[None]
        ids = torch.ones_like(positions)
        return {"input_ids": ids, "labels": ids, "position_ids": positions}
    ids = torch.ones(rows, length, dtype=torch.int64)
    mask = ids.clone()
    mask[:, -1] = 0  # without any padding, transformers would do without a mask
    return {"input_ids": ids, "labels": ids, "attention_mask": mask}


def _divisor(config: PretrainedConfig) -> int:
    """By how much the widths can be divided."""
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    sizes = [heads, groups, config.hidden_size, getattr(config, "intermediate_size", None) or config.hidden_size]
    common = math.gcd(*sizes)
    return max(d for d in range(1, common + 1) if common % d == 0 and (heads // d >= _HEADS or d == 1))


def _narrow(config: PretrainedConfig, by: int, layers: int) -> PretrainedConfig:
    narrow = copy.deepcopy(config)
    part = narrow.get_text_config()
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        if isinstance(size := getattr(part, name, None), int):
            setattr(part, name, size // by)
    for name, value in list(vars(part).items()):
        if isinstance(value, list) and len(value) == part.num_hidden_layers:
            setattr(part, name, (value * layers)[:layers])
    part.num_hidden_layers = layers
    part.vocab_size = _VOCABULARY
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(part, name, 0)
    return narrow


def _peak(cls: type[Any], config: PretrainedConfig, dtype: torch.dtype, footprint: Any, batch: MicroBatch) -> int:
    """Bytes of tensors that live at a time, beside parameters, their gradients and what they are cast to."""
    # A CPU multiplies float16 so slowly that it would take minutes.
    same = {torch.float16: torch.bfloat16}
    with torch.random.fork_rng(devices=[]):
        model = cls(config).to(same.get(dtype, dtype))
        if "position_ids" in batch:
            quicken(model)
        made = footprint(model)
        trained = made.model.train()
        if made.checkpointing:
            trained.gradient_checkpointing_enable()
            if not trained.get_input_embeddings().weight.requires_grad:
                trained.enable_input_require_grads()
        computes = getattr(torch, made.computes or "bfloat16")
        autocast = torch.autocast("cpu", same.get(computes, computes), enabled=bool(made.computes))
        # Matrices of a weight's shape are its gradient, or its copy in another precision: they do not go by tokens.
        held = [*trained.parameters(), *trained.buffers()]
        with Live(held, {shape for tensor in held for shape in (tensor.shape, tensor.shape[::-1])}) as live:
            with autocast:
                loss = made.loss(trained, batch)
            loss.backward()
    peak: int = live.peak
    return peak
