"""What a prompt format and a tokenizer do to text, as a digest: two with the same one are interchangeable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from medframe.dataset import Turn
from medframe.encode import Encoder
from medframe.errors import PromptError
from medframe.prompt import PromptFormat, Span, Text
from medframe.tokens import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def format_fingerprint(prompt: PromptFormat, tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over the ids and labels of fixed conversations: two formats with the same one lay out alike."""
    encoder = Encoder(prompt, tokenizer)
    seen: list[list[list[int]] | str] = []
    for turns in _PROBES:
        try:
            example = encoder.example(turns)
            seen.append([example.ids, list(example.trained)])
        except PromptError:
            seen.append("refused")
    stop = [resolve(token, tokenizer) for token in encoder.prompt.stop]
    return hashlib.sha256(json.dumps([seen, stop]).encode()).hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over the vocabulary, its rules, the special tokens and how some text is cut up."""
    encoder = Encoder(_Plain(), tokenizer)
    cut = [encoder.example(turns).ids for turns in _PROBES]
    special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    # Which token pads is no part of it: padding is masked, and LLaMA's choice is ours.
    special.pop("pad_token", None)
    content: list[Any] = [sorted(tokenizer.get_vocab().items()), special, cut]
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        whole = json.loads(backend.to_str())
        content += [whole["model"], whole["normalizer"], whole["pre_tokenizer"], whole["added_tokens"]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class _Plain(PromptFormat):
    """The texts alone, one by one."""

    joined = False

    def render(self, turns: Sequence[Turn]) -> list[Span]:
        return [Text(turn.text) for turn in turns]


def _conversation(*texts: str, system: str | None = None) -> tuple[Turn, ...]:
    head = () if system is None else (Turn("system", system),)
    return (*head, *(Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)))


_PROBES = (
    _conversation("头痛三天了怎么办？"),
    _conversation("  发烧 38.5℃\n\n咳嗽 ", " 建议就医。\n多喝水 "),
    _conversation("<s>系统</s>[INST]", "\n1. CT；2. MRI</s>"),
    _conversation("你好", "您好，请讲。", "胃疼", "多久了？", "两天"),
    _conversation("你好", "您好，请讲。", "胃疼", "3天以上请看消化科。"),
    _conversation("你好", "您好。", system="你是一名医生。"),
)
