"""The tiny Baichuan made on the spot: the same bytes everywhere."""

from __future__ import annotations

from pathlib import Path

from medframe_backbones.tiny import characters, random_tensors, sentencepiece_file, write_json

# As in the published vocabularies, the ids that open a turn are reserved pieces.
_RESERVED = {195: "<reserved_102>", 196: "<reserved_103>"}

# Five heads: like the 13B's forty no power of two, where ALiBi's slopes take another turn.
_HIDDEN, _INTERMEDIATE, _LAYERS, _HEADS = 160, 432, 4, 5
_CONTEXT = 2048


def vocab_size() -> int:
    """How many pieces the tiny tokenizer has: three special ones, two reserved, 256 bytes, the characters."""
    return 3 + len(_RESERVED) + 256 + len(characters())


def tokenizer_files(directory: Path) -> None:
    """Write a sentencepiece tokenizer as Baichuan has it: no space before the text, digits one by one, bytes."""
    sentencepiece_file(directory, dummy_prefix=False, reserved=_RESERVED)
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "BaichuanTokenizer",
            "add_bos_token": False,
            "add_eos_token": False,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<unk>",
            "model_max_length": _CONTEXT,
        },
    )


def baichuan_files(directory: Path, positions: str, head: str) -> None:
    """Write the configuration and random weights of a Baichuan of this kind that fits the tokenizer above."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    write_json(
        directory / "config.json",
        {
            "architectures": ["BaichuanForCausalLM"],
            "model_type": "baichuan",
            "vocab_size": vocab_size(),
            "hidden_size": _HIDDEN,
            "intermediate_size": _INTERMEDIATE,
            "num_hidden_layers": _LAYERS,
            "num_attention_heads": _HEADS,
            "hidden_act": "silu",
            "max_position_embeddings" if positions == "rope" else "model_max_length": _CONTEXT,
            "positions": positions,
            "head": head,
            "rms_norm_eps": 1e-6,
            "initializer_range": 0.02,
            "tie_word_embeddings": False,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "dtype": "float32",
        },
    )
    save_file(random_tensors(_shapes()), directory / "model.safetensors", metadata={"format": "pt"})


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab_size(), _HIDDEN)}
    for i in range(_LAYERS):
        layer = f"model.layers.{i}."
        shapes |= {
            f"{layer}self_attn.W_pack.weight": (3 * _HIDDEN, _HIDDEN),
            f"{layer}self_attn.o_proj.weight": (_HIDDEN, _HIDDEN),
            f"{layer}mlp.gate_proj.weight": (_INTERMEDIATE, _HIDDEN),
            f"{layer}mlp.up_proj.weight": (_INTERMEDIATE, _HIDDEN),
            f"{layer}mlp.down_proj.weight": (_HIDDEN, _INTERMEDIATE),
            f"{layer}input_layernorm.weight": (_HIDDEN,),
            f"{layer}post_attention_layernorm.weight": (_HIDDEN,),
        }
    return shapes | {"model.norm.weight": (_HIDDEN,), "lm_head.weight": (vocab_size(), _HIDDEN)}
