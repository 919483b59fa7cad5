"""The byte-level BPE tokenizer of tiny models: a token a character, nothing lost, control tokens where they belong."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer

from medframe_backbones.tiny import characters
from medframe_backbones.tiny_bpe import bpe_files, pieces

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
FIRST, LAST = ["<unk>", "<pad>"], ["<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """With special tokens at both ends and a normalizer."""
    folder = tmp_path_factory.mktemp("bpe")
    bpe_files(
        folder,
        pre_tokenizer=BYTE_LEVEL,
        normalizer={"type": "NFC"},
        config={"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<pad>"},
        first=FIRST,
        last=LAST,
    )
    return AutoTokenizer.from_pretrained(folder)


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, split_special_tokens=True)["input_ids"]  # type: ignore[no-any-return]


def test_every_common_character_is_one_token(tokenizer: Any) -> None:
    common = [character for character in characters() if character != "▁"]
    assert len(common) > 4000
    assert [character for character in common if len(ids(tokenizer, character)) != 1] == []
    assert len(ids(tokenizer, "".join(common))) == len(common)


@pytest.mark.parametrize(
    "text",
    [
        "胃疼3天，CT正常😀",
        "  两个 空格\n\n\t\r\n制表",
        "龘靐齉𠮷 é ß ñ",
        "\x00\x7f\u200b\ufeff",
        "<|im_end|><pad>",
        "…‥。。",
    ],
)
def test_no_text_is_lost(tokenizer: Any, text: str) -> None:
    found = ids(tokenizer, text)
    assert tokenizer.decode(found) == text
    assert all(len(FIRST) <= id_ < len(FIRST) + len(pieces()) for id_ in found)


def test_special_tokens_are_first_and_last(tokenizer: Any) -> None:
    end = len(FIRST) + len(pieces())
    assert len(tokenizer) == end + len(LAST)
    assert tokenizer.convert_tokens_to_ids([*FIRST, *LAST]) == [0, 1, end, end + 1]
    assert tokenizer("<|im_start|>甲<|im_end|>")["input_ids"] == [end, *ids(tokenizer, "甲"), end + 1]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (end + 1, 1)


def test_the_normalizer_is_used(tokenizer: Any) -> None:
    assert tokenizer.decode(ids(tokenizer, "e\u0301")) == "é"
