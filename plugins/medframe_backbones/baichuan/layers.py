"""A layer of Baichuan: attention from one packed matrix, and the gated feed-forward network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import softmax
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaMLP,
    LlamaRMSNorm,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

if TYPE_CHECKING:
    from transformers.cache_utils import Cache

    from medframe_backbones.baichuan.config import BaichuanConfig


class BaichuanAttention(nn.Module):
    """Attention whose queries, keys and values come from one matrix, `W_pack`, in this order."""

    num_key_value_groups = 1
    is_causal = True

    def __init__(self, config: BaichuanConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.W_pack = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        rotation: tuple[torch.Tensor, torch.Tensor] | None,
        past_key_values: Cache | None,
        lengths: Sequence[int] = (),
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`lengths` are those of a packed row's samples, `attention_mask` then being the longest one's, with ALiBi."""
        batch, length, hidden = hidden_states.shape
        packed = self.W_pack(hidden_states).view(batch, length, 3, -1, self.head_dim)
        query, key, value = packed.permute(2, 0, 3, 1, 4)  # each [batch, heads, length, head_dim]
        if rotation is not None:
            dtype = query.dtype
            query, key = (x.to(dtype) for x in apply_rotary_pos_emb(query, key, *rotation))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend: Callable[..., tuple[torch.Tensor, torch.Tensor | None]] = _reference_attention
        if self.config.positions == "rope" or self.config.alibi == "relative":
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        kwargs |= {"scaling": self.scaling, "dropout": 0.0}
        weights = None
        if lengths:
            assert attention_mask is not None
            samples = zip(lengths, *(each.split(list(lengths), 2) for each in (query, key, value)), strict=True)
            parts = [attend(self, *sample, attention_mask[..., :n, :n], **kwargs)[0] for n, *sample in samples]
            output = torch.cat(parts, 1)
        else:
            output, weights = attend(self, query, key, value, attention_mask, **kwargs)
        return self.o_proj(output.reshape(batch, length, hidden)), weights


def _reference_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention as Baichuan-13B was published: in bfloat16, scores are rounded before and after the bias is added."""
    # Divided, not multiplied by `scaling`: in bfloat16 the two differ.
    scores = torch.matmul(query, key.transpose(2, 3)) / math.sqrt(query.shape[-1]) + bias
    weights = softmax(scores.clamp(min=torch.finfo(scores.dtype).min), dim=-1)
    return torch.matmul(weights, value).transpose(1, 2), weights


class BaichuanLayer(GradientCheckpointingLayer):
    """Attention and the gated feed-forward network, each behind its norm and added to what came in."""

    def __init__(self, config: BaichuanConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = BaichuanAttention(config, layer_idx)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        rotation: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        attended, _ = self.self_attn(
            self.input_layernorm(hidden_states), attention_mask, rotation, past_key_values, **kwargs
        )
        hidden_states = hidden_states + attended
        fed: torch.Tensor = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + fed
