"""The sizes of the published models, as their config.json has them: what `weights: random:NAME` is made of.

All in bfloat16, whatever was published: random weights are to be measured with, and float16 does not train.
"""

from __future__ import annotations

from typing import Any

Sizes = dict[str, dict[str, Any]]

# Touvron et al. 2023, LLaMA, table 2, and the intermediate sizes of the released weights. 1b is TinyLlama-1.1B
# (Zhang et al. 2024), 3b OpenLLaMA-3B (Geng and Liu 2023).
_LLAMA = {
    # hidden, intermediate, layers, heads, heads of keys and values
    "1b": (2048, 5632, 22, 32, 4),
    "3b": (3200, 8640, 26, 32, 32),
    "7b": (4096, 11008, 32, 32, 32),
    "13b": (5120, 13824, 40, 40, 40),
    "30b": (6656, 17920, 60, 52, 52),
    "33b": (6656, 17920, 60, 52, 52),
    "65b": (8192, 22016, 80, 64, 64),
}
# The vocabularies of ymcui/Chinese-LLaMA-Alpaca, which tokenises Chinese in fewer tokens.
_VOCABULARIES = {"": 32000, "llama": 32000, "chinese-llama": 49953, "chinese-alpaca": 49954}

# BigScience 2022, BLOOM, table 3 and the released configurations.
_BLOOM = {
    # hidden, layers, heads
    "560m": (1024, 24, 16),
    "1b1": (1536, 24, 16),
    "1b7": (2048, 24, 16),
    "3b": (2560, 30, 32),
    "7b1": (4096, 30, 32),
}

# baichuan-inc's Baichuan-7B, Baichuan-13B, Baichuan2-7B and Baichuan2-13B.
_BAICHUAN = {
    # hidden, intermediate, layers, heads, positions
    "7b": (4096, 11008, 32, 32, "rope"),
    "13b": (5120, 13696, 40, 40, "alibi"),
}


def llama() -> Sizes:
    """LLaMA's sizes, by themselves and with the vocabularies of Chinese-LLaMA and Chinese-Alpaca."""
    return {
        f"{family}-{size}".removeprefix("-"): {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": groups,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "dtype": "bfloat16",
        }
        for family, vocabulary in _VOCABULARIES.items()
        for size, (hidden, intermediate, layers, heads, groups) in _LLAMA.items()
        if not (family.startswith("chinese") and size in ("1b", "3b", "30b", "65b"))
    }


def bloom() -> Sizes:
    """BLOOM's sizes; BLOOMZ has the same."""
    return {
        f"{prefix}{size}": _bloom(*numbers, vocabulary=250880)
        for prefix in ("", "bloom-", "bloomz-")
        for size, numbers in _BLOOM.items()
    }


def huozi() -> Sizes:
    """Huozi 1.0, BLOOM-7B1 with a smaller matrix of embeddings (config.json of HIT-SCIR/huozi-7b-rlhf)."""
    return {name: _bloom(*_BLOOM["7b1"], vocabulary=250688) for name in ("7b", "huozi-7b")}


def _bloom(hidden: int, layers: int, heads: int, vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "n_layer": layers,
        "n_head": heads,
        "layer_norm_epsilon": 1e-5,
        "apply_residual_connection_post_layernorm": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "unk_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        "dtype": "bfloat16",
    }


def baichuan(positions: str, head: str) -> Sizes:
    """Baichuan's and Baichuan2's sizes; a size alone goes by the recipe's positions and head."""
    sizes: Sizes = {}
    for size, (hidden, intermediate, layers, heads, published) in _BAICHUAN.items():
        for family in ("", "baichuan-", "baichuan2-"):
            normalised = family == "baichuan2-" or (not family and head == "norm")
            placed = published if family or positions == "auto" else positions
            sizes[f"{family}{size}"] = {
                "architectures": ["BaichuanForCausalLM"],
                "model_type": "baichuan",
                "vocab_size": 125696 if normalised else 64000,
                "hidden_size": hidden,
                "intermediate_size": intermediate,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "hidden_act": "silu",
                "max_position_embeddings" if placed == "rope" else "model_max_length": 4096,
                "positions": placed,
                "head": "norm" if normalised else "linear",
                "rms_norm_eps": 1e-6,
                "tie_word_embeddings": False,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "dtype": "bfloat16",
            }
    return sizes
