"""Rows of embeddings against tokenizers, compared before a tensor is read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from medframe.errors import BackboneError
from medframe.weights import embedding_rows, locate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from medframe.backbone import Backbone

PADDED = 64
"""Rows are sometimes rounded up to a multiple, of at most this many, for speed."""


def check(backbone: Backbone) -> None:
    """BackboneError, with the likely cause, unless weights, adapters and tokenizers have vocabularies that fit.

    An adapter that grows the vocabulary must bring a row for each token of its tokenizer, none may shrink it, and no
    tokenizer may have more tokens than there are rows.
    """
    rows: int = backbone.load_config().get_text_config().vocab_size
    name = backbone.weights
    for number, adapter in enumerate(backbone.adapters, 1):
        brought = embedding_rows(locate(adapter, "adapters"))
        if brought is not None and brought < rows:
            raise BackboneError(
                f"backbone.adapters: {adapter} has {brought:,} rows of embeddings and is applied to {name}, which has "
                f"{rows:,}; are the adapters in the wrong order?"
            )
        tokenizer = _tokenizer(backbone, number)
        tokens = None if tokenizer is None else len(tokenizer)
        if brought is not None and brought > rows and tokens is not None and brought != tokens:
            padded = 1 < brought - tokens < PADDED and brought % 8 == 0
            if not padded:
                raise BackboneError(
                    f"backbone.adapters: {adapter} has {brought:,} rows of embeddings, its tokenizer {tokens:,} "
                    f"tokens: {_cause(brought, tokens)}"
                )
        name = adapter
        if brought is not None:
            rows = brought
        if tokenizer is not None and tokens is not None and _needed(tokenizer) > rows:
            raise BackboneError(
                f"backbone.adapters: the tokenizer of {adapter} has {tokens:,} tokens, the model only {rows:,} rows "
                f"of embeddings: {_cause(rows, tokens)}"
            )
    whole = None if backbone.adapters else _loaded(backbone)
    if whole is not None and _needed(whole) > rows:
        raise BackboneError(
            f"backbone.tokenizer: {backbone.tokenizer_directory()} has {len(whole):,} tokens, {name} only {rows:,} "
            f"rows of embeddings: {_cause(rows, len(whole))}"
        )


def rows(backbone: Backbone) -> int:
    """Rows of the embeddings once the adapters are merged, read from headers alone."""
    brought = (embedding_rows(directory) for directory in backbone.adapter_directories())
    own: int = backbone.load_config().get_text_config().vocab_size
    return max((count for count in brought if count is not None), default=own)


def _needed(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows that its tokens need, less control tokens that no text training writes, such as Gemma's for pictures."""
    named = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    added = tokenizer.added_tokens_decoder.items()
    unwritten = {i for i, token in added if token.special and i not in named}
    return 1 + max(i for i in tokenizer.get_vocab().values() if i not in unwritten)


def _tokenizer(backbone: Backbone, number: int) -> PreTrainedTokenizerBase | None:
    """The tokenizer that goes with the first `number` adapters; None where the last of them has no own."""
    if number == len(backbone.adapters):
        return _loaded(backbone)
    until = replace(backbone, tokenizer=None, adapters=backbone.adapters[:number])
    own = until.tokenizer_directory() == locate(backbone.adapters[number - 1], "adapters")
    return _loaded(until) if own else None


def _loaded(backbone: Backbone) -> PreTrainedTokenizerBase | None:
    """The tokenizer; None where there is none to compare with: who needs it is told what is wrong with it."""
    try:
        return backbone.load_tokenizer()
    except BackboneError:
        return None


def _cause(rows: int, tokens: int) -> str:
    if abs(rows - tokens) == 1:
        return (
            "one apart are models of which one was given a pad token, such as Chinese-LLaMA (49,953) and "
            "Chinese-Alpaca (49,954); most likely this is the tokenizer of the other"
        )
    if tokens < rows:
        return (
            "most likely this is the tokenizer from before the vocabulary grew; the adapter's own belongs into its "
            "directory, or into backbone.tokenizer"
        )
    return (
        "most likely this tokenizer is of a model whose vocabulary has grown; name the adapter that grew it in "
        "backbone.adapters, before any other"
    )
