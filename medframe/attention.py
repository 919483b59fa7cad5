"""Attention of packed rows sample by sample: no mask is made, and none of one sample's work is for another."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from transformers import PreTrainedModel

NAME = "medframe"
"""The attention implementation's name in transformers."""
SHORT = 256
"""Tokens up to which a CPU is quicker by plain products, three times at 100, than by torch's flash attention."""
_TOLERANCE = 1e-4
_last: tuple[torch.Tensor | None, list[int]] = (None, [])
"""The positions that were looked at last, and what was found: every layer of a model asks for the same."""


def sample_lengths(position_ids: torch.Tensor | None) -> list[int]:
    """The lengths of the samples in a packed row; empty where `position_ids` [1, tokens] tell of no more than one.

    A sample begins wherever a position is not the one before it plus 1.
    """
    global _last
    if position_ids is None or position_ids.ndim != 2 or len(position_ids) != 1:
        return []
    if _last[0] is not position_ids:
        row = position_ids[0]
        borders = (row[1:] != row[:-1] + 1).nonzero().flatten().add(1).tolist()
        lengths = [end - start for start, end in pairwise([0, *borders, len(row)])]
        _last = (position_ids, lengths if borders else [])
    return _last[1]


def quicken(model: PreTrainedModel) -> None:
    """Have the model attend sample by sample in packed rows, where it is shown to compute what it computed before.

    Shown in a small fp32 copy of the same class and configuration; any other model is left as it is.
    """
    import torch

    from medframe.isolation import logits, small

    if not model._supports_attention_backend or model.config._attn_implementation != "sdpa":
        return
    _register()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            copy = small(model)
            copy.set_attn_implementation("sdpa")
            vocabulary = copy.config.get_text_config(decoder=True).vocab_size
            samples = [torch.randint(1, vocabulary, (length,)) for length in (5, 1, 7)]
            before = logits(copy, samples)
            copy.set_attn_implementation(NAME)
            apart = float((logits(copy, samples) - before).abs().max())
        if apart <= _TOLERANCE:
            model.set_attn_implementation(NAME)
    except Exception:  # any architecture may come, and fail in a way of its own: it stays as it was
        return


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)


def _mask(
    batch_size: int, q_length: int, kv_length: int, q_offset: int = 0, kv_offset: int = 0, **rest: Any
) -> torch.Tensor | None:
    """No mask for a row that may be packed, which `_attention` takes apart; else the one of SDPA."""
    from transformers.masking_utils import sdpa_mask

    whole = batch_size == 1 and q_length == kv_length and isinstance(q_offset, int) and q_offset == kv_offset == 0
    if whole and rest.get("attention_mask") is None and rest.get("local_size") is None:
        return None
    return sdpa_mask(batch_size, q_length, kv_length, q_offset, kv_offset, **rest)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """[batch, tokens, heads, size] of query, key and value, each [batch, heads, tokens, size]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    causal = rest.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    alone = attention_mask is None and causal and query.shape[2] == key.shape[2]
    lengths = sample_lengths(rest.get("position_ids")) if alone else []
    if not lengths:
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **rest)
        return found
    dropout = rest.get("dropout") or 0.0
    grouped = query.shape[1] != key.shape[1]
    return by_sample(query, key, value, lengths, dropout, rest.get("scaling"), grouped).transpose(1, 2), None


def by_sample(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    dropout: float = 0.0,
    scale: float | None = None,
    grouped: bool = False,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention within each sample of a packed row: [1, heads, tokens, size], as query, key and value are.

    `bias`, additive, [1, heads, longest, longest], holds what a sample's scores are changed by, and what they may not
    see. `grouped`: several heads of the query share one of key and value.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    if bias is None and not dropout and (kernel := _kernel(query)):
        return kernel(query, key, value, lengths, scale)
    plain = query.device.type == "cpu" and not dropout
    attended = []
    for q, k, v in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True):
        length = q.shape[2]
        own = None if bias is None else bias[..., :length, :length]
        if plain and length <= SHORT:
            attended.append(_by_products(q, k, v, own, scale))
            continue
        causal = own is None
        found = scaled_dot_product_attention(q, k, v, own, dropout, causal, scale=scale, enable_gqa=grouped)
        attended.append(found)
    return torch.cat(attended, 2)


def _by_products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, scale: float | None
) -> torch.Tensor:
    """Attention of one sample by two matrix products."""
    import torch

    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (each.repeat_interleave(groups, 1) for each in (key, value))
    if bias is None:
        bias = query.new_full((1, 1, query.shape[2], query.shape[2]), -math.inf).triu(1)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.baddbmm(bias[0], query[0], key[0].transpose(1, 2), alpha=scale)
    return torch.bmm(torch.softmax(scores, -1), value[0])[None]


def _kernel(query: torch.Tensor) -> Callable[..., torch.Tensor] | None:
    """A kernel for all samples of a row at once, where one is here that is shown to compute the same."""
    import torch

    if not query.is_cuda or query.dtype not in (torch.bfloat16, torch.float16):
        return None
    return _at_once if _at_once_is_right(query.shape[-1], query.dtype) else None


def _at_once(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], scale: float | None
) -> torch.Tensor:
    """`by_sample` by torch's flash attention of variable length."""
    import torch
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.tensor([0, *lengths], device=query.device).cumsum(0, dtype=torch.int32)
    q, k, v = (whole[0].transpose(0, 1).contiguous() for whole in (query, key, value))  # each [tokens, heads, size]
    grouped, longest = query.shape[1] != key.shape[1], max(lengths)
    causal = (-1, 0)
    attended = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scale, window_size=causal, enable_gqa=grouped)
    assert isinstance(attended, torch.Tensor)
    return attended.transpose(0, 1)[None]


@cache
def _at_once_is_right(size: int, dtype: torch.dtype) -> bool:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    with torch.random.fork_rng():
        query, key, value = (torch.randn(1, 2, 12, size, device="cuda", dtype=dtype) for _ in range(3))
        lengths = [5, 7]
        samples = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
        expected = torch.cat([scaled_dot_product_attention(q, k, v, is_causal=True) for q, k, v in samples], 2)
        try:
            found = _at_once(query, key, value, lengths, None)
        except Exception:  # a GPU, or a torch, that has no such kernel
            return False
    return bool((found - expected).abs().max() < 2e-2)
