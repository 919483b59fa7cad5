"""Baichuan and Baichuan2, as their published code computes them and with its tensor names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, normalize, softmax
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.models.llama.modeling_llama import (
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from medframe_backbones import alibi
from medframe_backbones.baichuan.config import BaichuanConfig
from medframe_backbones.baichuan.tokenizer import BaichuanTokenizer


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
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch, length, hidden = hidden_states.shape
        packed = self.W_pack(hidden_states).view(batch, length, 3, -1, self.head_dim)
        query, key, value = packed.permute(2, 0, 3, 1, 4)  # each [batch, heads, length, head_dim]
        if rotation is not None:
            dtype = query.dtype
            query, key = (x.to(dtype) for x in apply_rotary_pos_emb(query, key, *rotation))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend: Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        if self.config.positions == "alibi" and self.config.alibi == "reference":
            attend = _reference_attention
        output, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, dropout=0.0, **kwargs)
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


class NormHead(nn.Linear):
    """Scores by the directions of its rows: Baichuan2's head. The weight itself stays as it was trained.

    The published code overwrites the weight when it first evaluates, so that training would go on with another one.
    """

    _normal: tuple[tuple[Any, ...], torch.Tensor] | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and self.weight.requires_grad:
            return linear(input, normalize(self.weight))
        # Once for all tokens of an answer: normalising a real head takes longer than using it.
        key = (self.weight._version, self.weight.data_ptr(), self.weight.dtype, self.weight.device)
        if self._normal is None or self._normal[0] != key:
            self._normal = (key, normalize(self.weight.detach()))
        return linear(input, self._normal[1])


class BaichuanPreTrainedModel(PreTrainedModel):
    """What the model and the model with its head share."""

    config_class = BaichuanConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BaichuanLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _can_record_outputs = {"hidden_states": BaichuanLayer, "attentions": BaichuanAttention}
    # The 7B's checkpoint holds it; it is computed.
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]


class BaichuanModel(BaichuanPreTrainedModel):
    """The layers, without a head."""

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(BaichuanLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config) if config.positions == "rope" else None
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states [batch, length, hidden]; each sample of a packed row, its positions anew from 0, sees itself.

        Packed rows are known by their positions where there is neither an attention mask nor a cache from before.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, one of them")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = torch.arange(hidden.shape[1], device=hidden.device)[None] + past
        mask = create_causal_mask(
            self.config,
            hidden,
            attention_mask,
            past_key_values,
            position_ids=position_ids,
            allow_is_causal_skip=self.config.positions == "rope",
        )
        rotation = None
        if self.rotary_emb is None:
            mask = self._biased(mask, past, hidden.dtype)
        else:
            # In fp32, as Baichuan2 has it: far positions lose their angles in bfloat16.
            rotation = self.rotary_emb(hidden.float(), position_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask=mask, rotation=rotation, past_key_values=past_key_values, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), past_key_values=past_key_values)

    def _biased(self, mask: torch.Tensor, past: int, dtype: torch.dtype) -> torch.Tensor:
        """The additive mask [batch or 1, heads, queries, keys] for a mask [batch or 1, 1, queries, keys]."""
        allowed = mask if mask.dtype == torch.bool else mask == 0
        slopes = torch.tensor(alibi.slopes(self.config.num_attention_heads), device=mask.device)
        if self.config.alibi == "relative":
            return alibi.biased(allowed, slopes, past, dtype)
        bias = slopes[:, None, None] * torch.arange(allowed.shape[-1], device=mask.device)
        return bias.to(dtype).masked_fill(~allowed, torch.finfo(dtype).min)


class BaichuanForCausalLM(BaichuanPreTrainedModel, GenerationMixin):
    """Baichuan with its head, linear or normalised."""

    _tied_weights_keys: dict[str, str] = {}

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        self.model = BaichuanModel(config)
        head = NormHead if config.head == "norm" else nn.Linear
        self.lm_head = head(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        # A change of the vocabulary makes a new head, and always a linear one.
        if self.config.head == "norm" and not isinstance(new_embeddings, NormHead):
            rows, hidden = new_embeddings.weight.shape  # type: ignore[misc, union-attr, operator]
            head = NormHead(hidden, rows, bias=False, device="meta")
            head.weight = new_embeddings.weight  # type: ignore[assignment]
            new_embeddings = head
        self.lm_head = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [batch, length, vocabulary], or of the places in `logits_to_keep` alone; the loss where labels are."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


# Directories whose `auto_map` names remote code load through these, without a prompt and without that code.
AutoConfig.register("baichuan", BaichuanConfig)
AutoModelForCausalLM.register(BaichuanConfig, BaichuanForCausalLM)
AutoTokenizer.register(BaichuanConfig, BaichuanTokenizer)
