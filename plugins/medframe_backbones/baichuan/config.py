"""The configuration of Baichuan, and what tells its four kinds apart."""

# Annotations stay types here, not strings: `strict` checks values against them.
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import PretrainedConfig

CONTEXT = 4096
"""What every published Baichuan was trained on."""
NORM_HEAD_VOCABULARY = 125696
"""The vocabulary of Baichuan2, whose head is normalised."""


@strict
class BaichuanConfig(PretrainedConfig):
    """The configuration of Baichuan-7B, Baichuan-13B, Baichuan2-7B or Baichuan2-13B.

    `positions` and `head` are told from the other keys where they are not given, and are always saved: after a change
    of the vocabulary they could no longer be told. An ALiBi model has no `max_position_embeddings`: what it was
    trained on, its `model_max_length`, is no limit.
    """

    model_type: ClassVar[str] = "baichuan"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    mlp_bias: ClassVar[bool] = False

    vocab_size: int = 64000
    hidden_size: int = 5120
    intermediate_size: int = 13696
    num_hidden_layers: int = 40
    num_attention_heads: int = 40
    hidden_act: str = "silu"
    max_position_embeddings: int | None = None
    model_max_length: int | None = None
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    positions: Literal["rope", "alibi"] | None = None
    head: Literal["linear", "norm"] | None = None
    """norm: a token is scored by the direction of its row alone, not by its length."""
    alibi: Literal["relative", "reference"] = "relative"
    """relative: the bias from the distance; reference: from the key's place alone and rounded as it was published."""

    def __post_init__(self, **kwargs: Any) -> None:
        if self.positions is None:
            self.positions = "rope" if self._has_rope() else "alibi"
        if self.head is None:
            self.head = "norm" if self.vocab_size >= NORM_HEAD_VOCABULARY else "linear"
        if self.positions == "rope":
            self.max_position_embeddings = self.max_position_embeddings or self.model_max_length or CONTEXT
        else:
            self.model_max_length = self.model_max_length or self.max_position_embeddings or CONTEXT
            self.max_position_embeddings = None
        # Names Python files, which are never run and which a saved directory does not hold.
        kwargs.pop("auto_map", None)
        # The 13B's code saved it as a tuple of one, which is true whatever it holds.
        kwargs.pop("gradient_checkpointing", None)
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        if self.positions == "alibi":
            self.rope_parameters = None

    def _has_rope(self) -> bool:
        # The published code spells the class of the 7B, and only that, with a capital C.
        named = (self.architectures or [""])[0] == "BaiChuanForCausalLM"
        return named or self.max_position_embeddings is not None or self.hidden_size == 4096

    def validate_architecture(self) -> None:
        """ValueError where the heads do not divide the hidden size."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads {self.num_attention_heads}"
            )
