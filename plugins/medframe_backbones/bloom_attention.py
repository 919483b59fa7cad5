"""transformers' Bloom with an attention that keeps packed samples apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
)
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.bloom import modeling_bloom as stock
from transformers.utils.generic import can_return_tuple

from medframe import by_sample, sample_lengths
from medframe_backbones.alibi import biased, dtype_of, slopes


class BloomAttention(stock.BloomAttention):
    """Bloom's attention by `scaled_dot_product_attention`, ALiBi being a part of the mask."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        residual: torch.Tensor,
        alibi: Any,
        attention_mask: torch.Tensor,
        layer_past: Any = None,
        use_cache: bool = False,
        output_attentions: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """As transformers' own, but ALiBi is in `attention_mask`: additive, [batch or 1, heads, queries, keys].

        In the place of ALiBi come the lengths of a packed row's samples: each attends by itself, and the mask is that
        of the longest, [1, heads, longest, longest].
        """
        query, key, value = self._reshape(self.query_key_value(hidden_states))
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_idx)
        dropout = self.attention_dropout.p if self.training else 0.0
        if alibi:
            context = by_sample(query, key, value, alibi, dropout, bias=attention_mask)
        else:
            context = functional.scaled_dot_product_attention(query, key, value, attention_mask, dropout_p=dropout)
        attended = self.dense(context.transpose(1, 2).flatten(2))
        return stock.dropout_add(attended, residual, self.hidden_dropout, self.training), None


class BloomModel(stock.BloomModel):
    """Bloom without its head. It looks at `position_ids` for borders only: ALiBi depends on distance alone."""

    _supports_sdpa = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for index, block in enumerate(self.h):
            block.self_attention = BloomAttention(config, index)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """The hidden states after the last norm, [batch, tokens, hidden]; ValueError where attentions are asked for.

        Where there is neither attention mask nor cache, a sample begins wherever `position_ids` do not go on by one,
        and sees only itself. attention_mask: [batch, keys], 0 for padding on any side.
        """
        if output_attentions or (output_attentions is None and self.config.output_attentions):
            raise ValueError("this Bloom computes no attention weights; transformers' own does")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and not (self.gradient_checkpointing and self.training) and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        lengths = sample_lengths(position_ids) if attention_mask is None and past_key_values is None else []
        allowed: Any
        if lengths:
            allowed = torch.ones(1, 1, max(lengths), max(lengths), dtype=torch.bool, device=inputs_embeds.device).tril()
        else:
            allowed = create_causal_mask(
                self.config,
                inputs_embeds,
                attention_mask,
                past_key_values,
                position_ids=position_ids,
                allow_is_causal_skip=False,
            )
        assert isinstance(allowed, torch.Tensor)
        if allowed.dtype != torch.bool:  # what is asked for as "eager" is additive
            allowed = allowed == 0
        offset = past_key_values.get_seq_length() if past_key_values is not None else 0
        hidden = self.word_embeddings_layernorm(inputs_embeds)
        mask = biased(allowed, torch.tensor(slopes(self.num_heads)), offset, dtype_of(hidden))
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        seen = []
        for block in self.h:
            if output_hidden_states:
                seen.append(hidden)
            hidden, _attentions = block(hidden, alibi=lengths, attention_mask=mask, layer_past=past_key_values)
        hidden = self.ln_f(hidden)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden,
            past_key_values=past_key_values,
            hidden_states=(*seen, hidden) if output_hidden_states else None,
        )


# Of transformers' name, which is what save_pretrained writes down: what is saved is a plain Bloom.
class BloomForCausalLM(stock.BloomForCausalLM):
    """Bloom with its head, the embedding."""

    _supports_sdpa = True

    def __init__(self, config: Any) -> None:
        # Not transformers' own __init__, which would make a whole model of its own first.
        super(stock.BloomForCausalLM, self).__init__(config)
        self.transformer = BloomModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithCrossAttentions:
        """As transformers' own, and with `position_ids` as BloomModel takes them."""
        result = self.transformer(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits = self.lm_head(slice_logits_to_keep(result.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithCrossAttentions(
            loss=loss,
            logits=logits,
            past_key_values=result.past_key_values,
            hidden_states=result.hidden_states,
        )
