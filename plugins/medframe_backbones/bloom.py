"""The Bloom family: BLOOM and BLOOMZ, and Huozi."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from medframe import Backbone, BackboneError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_TOKENS = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3}


@dataclass(kw_only=True)
class Bloom(Backbone):
    """BLOOM and BLOOMZ, with an attention that keeps packed samples apart."""

    lora_targets: ClassVar[tuple[str, ...]] = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
    model_types: ClassVar[tuple[str, ...]] = ("bloom",)
    tiny_from: ClassVar[tuple[str, ...]] = (
        "medframe_backbones.tiny",
        "medframe_backbones.tiny_bpe",
        "medframe_backbones.tiny_bloom",
    )
    additional: ClassVar[tuple[str, ...]] = ()
    """Special tokens beside Bloom's own."""
    context: ClassVar[int | None] = None
    """Tokens that the model was trained to hold; None: ALiBi is left to go on beyond them."""

    def load_config(self) -> PretrainedConfig:
        from transformers import BloomConfig

        self.check_type("bloom")
        try:
            config = BloomConfig.from_pretrained(self.directory(small=True), local_files_only=True)
        except Exception as error:
            raise BackboneError(f"backbone.weights: {' '.join(str(error).split())[:300]}") from error
        return self._completed(config)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        directory = self.tokenizer_directory()
        _check_class(directory)
        try:
            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise BackboneError(f"backbone.tokenizer: {directory} cannot be loaded: {reason}") from error
        vocabulary = tokenizer.get_vocab()
        if wrong := [f"{token} as {id_}" for token, id_ in _TOKENS.items() if vocabulary.get(token) != id_]:
            raise BackboneError(f"backbone.tokenizer: {directory} is no Bloom tokenizer: it lacks {', '.join(wrong)}")
        if missing := [token for token in self.additional if token not in vocabulary]:
            raise BackboneError(
                f"backbone.tokenizer: {directory} is no tokenizer of {type(self).__name__}: it lacks "
                f"{', '.join(missing)}; for a plain Bloom, use the backbone bloom"
            )
        # A directory with tokenizer.json alone names none of them.
        for name, token in (("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")):
            if getattr(tokenizer, name) is None:
                setattr(tokenizer, name, token)
        # Never the end token, which some give: it is trained.
        tokenizer.pad_token = "<pad>"
        return tokenizer

    def load_model(self) -> PreTrainedModel:
        from medframe_backbones.bloom_attention import BloomForCausalLM

        model = self.read(BloomForCausalLM)
        self._completed(model.config)
        if model.generation_config is not None:
            model.generation_config.pad_token_id = _TOKENS["<pad>"]
        return model

    def sizes(self) -> Mapping[str, Mapping[str, Any]]:
        from medframe_backbones.sizes import bloom

        return bloom()

    def make_tiny_tokenizer(self, directory: Path) -> None:
        from medframe_backbones.tiny_bloom import tokenizer_files

        tokenizer_files(directory, self.additional)

    def make_tiny_weights(self, directory: Path) -> None:
        from medframe_backbones.tiny_bloom import model_files

        model_files(directory, self.additional)

    def _completed(self, config: PretrainedConfig) -> PretrainedConfig:
        """With what the tokenizer pads with, and with the context, which Bloom's configuration has no place for."""
        config.pad_token_id = _TOKENS["<pad>"]
        if self.context is not None:
            config.max_position_embeddings = self.context
        return config


@dataclass(kw_only=True)
class Huozi(Bloom):
    """Huozi 1.0: Bloom's architecture with tokens of its own and a context of 2048."""

    # Its config.json is Bloom's: what opens with it, a recipe says.
    model_types: ClassVar[tuple[str, ...]] = ()
    additional: ClassVar[tuple[str, ...]] = ("<|beginofutterance|>", "<|endofutterance|>", "<|endoftext|>")
    context: ClassVar[int | None] = 2048

    def sizes(self) -> Mapping[str, Mapping[str, Any]]:
        from medframe_backbones.sizes import huozi

        return huozi()


def _check_class(directory: Path) -> None:
    if not (directory / "tokenizer.json").is_file():
        raise BackboneError(f"backbone.tokenizer: {directory} has no tokenizer.json")
    config = directory / "tokenizer_config.json"
    try:
        named = json.loads(config.read_text("utf-8")).get("tokenizer_class") if config.is_file() else None
    except (ValueError, AttributeError) as error:
        raise BackboneError(f"backbone.tokenizer: {config} is broken: {error}") from None
    # The latter two are transformers' names for any tokenizer.json.
    if named and named.lower().removesuffix("fast") not in (
        "bloomtokenizer",
        "pretrainedtokenizer",
        "tokenizersbackend",
    ):
        raise BackboneError(f"backbone.tokenizer: {directory} holds a {named}, which is no Bloom tokenizer")
