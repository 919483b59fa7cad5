"""Baichuan and Baichuan2, as their published code computes them and with its tensor names."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from medframe import sample_lengths
from medframe_backbones import alibi
from medframe_backbones.baichuan.config import BaichuanConfig
from medframe_backbones.baichuan.head import NormHead
from medframe_backbones.baichuan.layers import BaichuanAttention, BaichuanLayer
from medframe_backbones.baichuan.tokenizer import BaiChuanTokenizer, BaichuanTokenizer


class BaichuanPreTrainedModel(PreTrainedModel):
    """What the model and the model with its head share."""

    config_class = BaichuanConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["BaichuanLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _can_record_outputs = {"hidden_states": BaichuanLayer, "attentions": BaichuanAttention}  # noqa: RUF012
    # The 7B's checkpoint holds it; it is computed.
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]  # noqa: RUF012


class BaichuanModel(BaichuanPreTrainedModel):
    """The layers, without a head."""

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(BaichuanLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = None
        if config.positions == "rope":
            self.rotary_emb = LlamaRotaryEmbedding(config)  # type: ignore[arg-type]
        self.gradient_checkpointing = False
        # Whether attention is one that can be registered with transformers: there, biases have no place.
        self._supports_attention_backend = config.positions == "rope"
        self.post_init()  # type: ignore[no-untyped-call]

    @merge_with_config_defaults  # type: ignore[untyped-decorator]
    @capture_outputs  # type: ignore[untyped-decorator]
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
        unmasked = self.rotary_emb is None and attention_mask is None and past_key_values is None
        lengths = sample_lengths(position_ids) if unmasked else []
        if lengths:
            mask: Any = torch.ones(1, 1, max(lengths), max(lengths), dtype=torch.bool, device=hidden.device).tril()
        else:
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
            mask = self._biased(mask, past, alibi.dtype_of(hidden))
        else:
            # In fp32, as Baichuan2 has it: far positions lose their angles in bfloat16.
            rotation = self.rotary_emb(hidden.float(), position_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        kwargs |= {"position_ids": position_ids, "lengths": lengths}
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

    _tied_weights_keys = {}  # noqa: RUF012

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        self.model = BaichuanModel(config)
        self._supports_attention_backend = config.positions == "rope"
        head = NormHead if config.head == "norm" else nn.Linear
        self.lm_head = head(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        # A change of the vocabulary makes a new head, and always a linear one.
        if self.config.head == "norm" and not isinstance(new_embeddings, NormHead):
            rows, hidden = new_embeddings.weight.shape  # type: ignore[misc]
            head = NormHead(hidden, rows, bias=False, device="meta")
            head.weight = new_embeddings.weight  # type: ignore[assignment]
            new_embeddings = head
        self.lm_head = new_embeddings

    @can_return_tuple  # type: ignore[untyped-decorator]
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
AutoTokenizer.register(BaichuanConfig, BaichuanTokenizer, slow_tokenizer_class=BaiChuanTokenizer)
