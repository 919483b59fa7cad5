"""Control tokens -> ids, and the tokenizer for text, which knows none of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from medframe.errors import PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def text_only(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The Rust tokenizer behind this one, for text alone: it knows no control token, cuts nothing and pads nothing.

    None where there is none. Used directly, because transformers' wrapper around the same call takes twice the time.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    content = json.loads(backend.to_str())
    # A file may say that texts are cut or padded, as save_pretrained writes it after such a call.
    content["truncation"] = content["padding"] = None
    for token in content["added_tokens"]:
        token["special"] = is_control(token["content"], token["special"])
    # Where only a string's beginning has the dummy prefix (Llama-2 and Mistral as they load today), what follows a
    # control token has none; and every published template of these begins with one.
    steps = content["pre_tokenizer"] or {}
    for step in steps.get("pretokenizers", [steps]):
        if step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "never"
    text_only = type(backend).from_str(json.dumps(content))
    text_only.encode_special_tokens = True
    return text_only


def is_control(content: str, special: bool) -> bool:
    """Whether an added token is a control token: Qwen's <think> is, though not declared so; an added word is not."""
    return special or not content[:1].isalnum()


def control_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids that no text becomes."""
    added = tokenizer.added_tokens_decoder.items()
    return {i for i, token in added if is_control(token.content, token.special)}


def resolve(token: str | int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a control token: one, or none for "bos" where the tokenizer adds none; else PromptError."""
    if isinstance(token, int):
        if not 0 <= token < len(tokenizer):
            raise PromptError(f"control token {token} is not in the vocabulary of {len(tokenizer)}")
        return [token]
    if token == "bos":
        start = tokenizer("a")["input_ids"][:1]
        return [int(start[0])] if list(start) == [tokenizer.bos_token_id] else []
    if token == "eos":
        if tokenizer.eos_token_id is None:
            raise PromptError("the tokenizer has no end-of-sequence token")
        return [int(tokenizer.eos_token_id)]
    found = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(found, int) or tokenizer.convert_ids_to_tokens(found) != token:
        raise PromptError(f"{token!r} is no token of this tokenizer; the format does not suit the backbone")
    return [found]
