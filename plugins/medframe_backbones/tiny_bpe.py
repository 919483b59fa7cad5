"""The byte-level BPE tokenizer of tiny models: the same bytes everywhere, a token for every character of `tiny`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medframe_backbones.tiny import characters, write_json


def bpe_files(
    directory: Path,
    *,
    pre_tokenizer: Mapping[str, Any],
    config: Mapping[str, Any],
    first: Sequence[str] = (),
    last: Sequence[str] = (),
    normalizer: Mapping[str, Any] | None = None,
) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, the latter with the values of `config`.

    The special tokens `first` have the ids from 0, then come the pieces of `pieces()`, then the special tokens
    `last`. `pre_tokenizer`, which must end in ByteLevel, and `normalizer` are as tokenizer.json spells them. Every
    character of `tiny.characters()` is one token; any other text falls back to bytes, and none is lost.
    """
    directory.mkdir(parents=True, exist_ok=True)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    vocabulary = [*first, *pieces()]
    whole = [*vocabulary, *last]
    write_json(
        directory / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [_special(whole.index(token), token) for token in (*first, *last)],
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": byte_level,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": {piece: id_ for id_, piece in enumerate(vocabulary)},
                "merges": _merges(),
            },
        },
    )
    write_json(directory / "tokenizer_config.json", dict(config))


def pieces() -> list[str]:
    """The ordinary pieces in the order of their ids: 256 bytes, then what the merges make."""
    return [*sorted(_BYTES.values()), *(left + right for left, right in _merges())]


def _merges() -> list[tuple[str, str]]:
    """Each character grows from its first byte, one byte at a time.

    What is grown begins with a leading byte and what is added is a continuation byte, so no merge reaches into the
    next character or competes with another one: their order does not matter.
    """
    merges: dict[tuple[str, str], None] = {}
    for character in characters():
        if character == "▁":  # how sentencepiece writes a space, which is a byte here
            continue
        symbols = "".join(_BYTES[byte] for byte in character.encode())
        for end in range(1, len(symbols)):
            merges[symbols[:end], symbols[end]] = None
    return list(merges)


def _byte_symbols() -> dict[int, str]:
    """Byte -> the character that stands for it in byte-level BPE: itself if printable, else one from U+0100 on.

    As GPT-2 has it (Radford et al., 2019), and the ByteLevel of Hugging Face's tokenizers.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(0x100 + n) for n, byte in enumerate(others)}}


_BYTES = _byte_symbols()


def _special(id_: int, token: str) -> dict[str, Any]:
    return {
        "id": id_,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
