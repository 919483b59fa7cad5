"""What training keeps for the backward pass: counted on a narrow copy of the model, in the trainer's own code."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medframe.footprint import Footprint

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_TOKENS = 61
"""A prime: no activation has the shape of a weight."""
_HEADS = 4
"""At least so many are kept: what does not shrink with the width must stay small beside what does."""


@dataclass(frozen=True)
class Activations:
    """Bytes for each token of a micro-batch."""

    first: float
    """With one layer, at most: what lies outside of the layers, and what is there for a moment, included."""
    layer: float
    """For each further layer."""

    def of(self, tokens: int, layers: int) -> float:
        """Bytes at most."""
        return tokens * (self.first + (layers - 1) * self.layer)


def activations(model: PreTrainedModel, footprint: Callable[[Any], Footprint | None]) -> Activations | None:
    """Of this model, of which only class and configuration are looked at; None where it cannot be made narrow.

    Widths are divided by one number, models of two and four layers run forward and backward, and what lives at a
    time is counted tensor by tensor.
    """
    config = model.config
    text = config.get_text_config()
    by = _divisor(text)
    try:
        peaks = [_peak(type(model), _narrow(config, by, layers), model.dtype, footprint) for layers in (2, 4)]
    except Exception:  # any architecture may come, and fail in a way of its own
        return None
    two, four = (by * peak / _TOKENS for peak in peaks)
    return Activations(two - (four - two) / 2, (four - two) / 2)


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
            setattr(part, name, value[:layers])
    part.num_hidden_layers = layers
    part.vocab_size = 256
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(part, name, 0)
    return narrow


def _peak(cls: type[Any], config: PretrainedConfig, dtype: torch.dtype, footprint: Any) -> float:
    """Bytes of tensors that live at a time, beside parameters, their gradients and what they are cast to."""
    with torch.random.fork_rng(devices=[]):
        made = footprint(cls(config).to(dtype))
        model = made.model.train()
        if made.checkpointing:
            model.gradient_checkpointing_enable()
            if not model.get_input_embeddings().weight.requires_grad:
                model.enable_input_require_grads()
        ids = torch.randint(0, 256, (1, _TOKENS))
        batch = {"input_ids": ids, "labels": ids, "position_ids": torch.arange(_TOKENS)[None]}
        autocast = torch.autocast("cpu", getattr(torch, made.computes or "bfloat16"), enabled=bool(made.computes))
        with _Live([*model.parameters(), *model.buffers()]) as live, autocast:
            made.loss(model, batch).backward()
    return live.peak


class _Live(TorchDispatchMode):
    """Counts the bytes of all tensors that come to be within it, as long as they live."""

    def __init__(self, before: Sequence[torch.Tensor]) -> None:
        """Those `before` are not counted, nor what is of the shape of one: a gradient, or a copy in another precision."""
        super().__init__()
        self.peak = 0
        self._now = 0
        self._known = {tensor.untyped_storage()._cdata: 0 for tensor in before}
        self._shapes = {shape for tensor in before for shape in (tensor.shape, tensor.shape[::-1])}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.shape not in self._shapes:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known[key] = storage.nbytes()
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self._now -= self._known.pop(key)
