"""The tiny Bloom made on the spot: the same bytes everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medframe_backbones.tiny import random_tensors, write_json
from medframe_backbones.tiny_bpe import bpe_files, pieces

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
"""Bloom's special tokens; their ids are 0 to 3."""

# As BigScience's tokenizer.json has it.
_PRE_TOKENIZER = {
    "type": "Sequence",
    "pretokenizers": [
        {
            "type": "Split",
            "pattern": {"Regex": " ?[^(\\s|[.,!?…。，、।۔،])]+"},
            "behavior": "Isolated",
            "invert": False,
        },
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}
_HIDDEN, _LAYERS, _HEADS = 128, 4, 4


def tokenizer_files(directory: Path, additional: Sequence[str] = ()) -> None:
    """Write a tokenizer as Bloom's, with `additional` special tokens after all others."""
    config = {
        "tokenizer_class": "BloomTokenizerFast",
        "add_prefix_space": False,
        "padding_side": "left",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
    }
    if additional:
        config["additional_special_tokens"] = list(additional)
    bpe_files(directory, pre_tokenizer=_PRE_TOKENIZER, config=config, first=SPECIAL, last=additional)


def model_files(directory: Path, additional: Sequence[str] = ()) -> None:
    """Write the configuration and random weights of a Bloom that fits the tokenizer above."""
    from safetensors.numpy import save_file

    # As in the published models, some rows of the embedding belong to no token.
    rows = -(-(len(SPECIAL) + len(pieces()) + len(additional)) // 128) * 128
    directory.mkdir(parents=True, exist_ok=True)
    write_json(
        directory / "config.json",
        {
            "architectures": ["BloomForCausalLM"],
            "model_type": "bloom",
            "vocab_size": rows,
            "hidden_size": _HIDDEN,
            "n_layer": _LAYERS,
            "n_head": _HEADS,
            "layer_norm_epsilon": 1e-5,
            "initializer_range": 0.02,
            "apply_residual_connection_post_layernorm": False,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            "unk_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            # As published: Huozi, which has additional tokens, names its end token here.
            "pad_token_id": 2 if additional else 3,
            "dtype": "float32",
        },
    )
    save_file(random_tensors(_shapes(rows)), directory / "model.safetensors", metadata={"format": "pt"})


def _shapes(rows: int) -> dict[str, tuple[int, ...]]:
    def norm(name: str) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (_HIDDEN,), f"{name}.bias": (_HIDDEN,)}

    def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}

    shapes: dict[str, tuple[int, ...]] = {"transformer.word_embeddings.weight": (rows, _HIDDEN)}
    shapes |= norm("transformer.word_embeddings_layernorm")
    for i in range(_LAYERS):
        layer = f"transformer.h.{i}."
        shapes |= norm(f"{layer}input_layernorm")
        shapes |= linear(f"{layer}self_attention.query_key_value", _HIDDEN, 3 * _HIDDEN)
        shapes |= linear(f"{layer}self_attention.dense", _HIDDEN, _HIDDEN)
        shapes |= norm(f"{layer}post_attention_layernorm")
        shapes |= linear(f"{layer}mlp.dense_h_to_4h", _HIDDEN, 4 * _HIDDEN)
        shapes |= linear(f"{layer}mlp.dense_4h_to_h", 4 * _HIDDEN, _HIDDEN)
    return shapes | norm("transformer.ln_f")
