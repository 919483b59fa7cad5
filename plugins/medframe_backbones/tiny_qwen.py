"""The tiny Qwen3 made on the spot, with a chat template like Qwen3's: the same bytes everywhere."""

from __future__ import annotations

from pathlib import Path

from medframe_backbones.tiny import random_tensors, write_json
from medframe_backbones.tiny_bpe import bpe_files, pieces

_HIDDEN, _INTERMEDIATE, _LAYERS, _HEADS, _KEY_VALUE_HEADS, _HEAD = 128, 352, 4, 4, 2, 32
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
# Qwen's: words, single digits, punctuation and line ends apart.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# As Qwen3's template does: an answer after the last question is written with its thoughts, earlier ones without, and
# who turns thinking off is asked after an empty thought.
_CHAT_TEMPLATE = """\
{%- set last = namespace(question=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- set last.question = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- set text = message.content %}
    {%- if message.role == 'assistant' %}
        {%- set thoughts = '' %}
        {%- if '</think>' in text %}
            {%- set thoughts = text.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set text = text.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > last.question %}
            {{- '<think>\\n' + thoughts + '\\n</think>\\n\\n' }}
            {%- set text = text.lstrip('\\n') %}
        {%- endif %}
    {%- endif %}
    {{- text + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""


def tokenizer_files(directory: Path) -> None:
    """Write a byte-level BPE tokenizer that cuts text as Qwen's does, and the chat template."""
    split = {"type": "Split", "pattern": {"Regex": _WORDS}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    bpe_files(
        directory,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [split, byte_level]},
        normalizer={"type": "NFC"},
        last=_SPECIAL,
        config={
            "tokenizer_class": "Qwen2Tokenizer",
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "model_max_length": 2048,
        },
    )
    (directory / "chat_template.jinja").write_text(_CHAT_TEMPLATE, "utf-8", newline="\n")


def model_files(directory: Path) -> None:
    """Write the configuration and random weights of a Qwen3 that fits the tokenizer above."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    first = len(pieces())
    write_json(
        directory / "config.json",
        {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "vocab_size": _vocab_size(),
            "hidden_size": _HIDDEN,
            "intermediate_size": _INTERMEDIATE,
            "num_hidden_layers": _LAYERS,
            "num_attention_heads": _HEADS,
            "num_key_value_heads": _KEY_VALUE_HEADS,
            "head_dim": _HEAD,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "tie_word_embeddings": False,
            "eos_token_id": first + _SPECIAL.index("<|im_end|>"),
            "pad_token_id": first + _SPECIAL.index("<|endoftext|>"),
            "dtype": "float32",
        },
    )
    save_file(random_tensors(_shapes()), directory / "model.safetensors", metadata={"format": "pt"})


def _vocab_size() -> int:
    return len(pieces()) + len(_SPECIAL)


def _shapes() -> dict[str, tuple[int, ...]]:
    heads, key_values = _HEADS * _HEAD, _KEY_VALUE_HEADS * _HEAD
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (_vocab_size(), _HIDDEN)}
    for i in range(_LAYERS):
        layer = f"model.layers.{i}."
        shapes[f"{layer}self_attn.q_proj.weight"] = (heads, _HIDDEN)
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (key_values, _HIDDEN) for name in "kv"}
        shapes[f"{layer}self_attn.o_proj.weight"] = (_HIDDEN, heads)
        shapes |= {f"{layer}self_attn.{name}_norm.weight": (_HEAD,) for name in "qk"}
        shapes |= {f"{layer}mlp.{name}_proj.weight": (_INTERMEDIATE, _HIDDEN) for name in ("gate", "up")}
        shapes[f"{layer}mlp.down_proj.weight"] = (_HIDDEN, _INTERMEDIATE)
        shapes |= {f"{layer}{name}_layernorm.weight": (_HIDDEN,) for name in ("input", "post_attention")}
    return shapes | {"model.norm.weight": (_HIDDEN,), "lm_head.weight": (_vocab_size(), _HIDDEN)}
