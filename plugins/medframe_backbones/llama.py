"""The LLaMA family: LLaMA-1 and 2, Chinese-LLaMA, Chinese-Alpaca."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from medframe import Backbone, BackboneError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(kw_only=True)
class Llama(Backbone):
    """LLaMA-1 and 2, Chinese-LLaMA and Chinese-Alpaca."""

    lora_targets: ClassVar[tuple[str, ...]] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    model_types: ClassVar[tuple[str, ...]] = ("llama",)
    tiny_from: ClassVar[str | None] = "medframe_backbones.tiny"

    def load_config(self) -> PretrainedConfig:
        from transformers import LlamaConfig

        self.check_type("llama")
        try:
            return LlamaConfig.from_pretrained(self.directory(small=True), local_files_only=True)
        except Exception as error:
            raise BackboneError(f"backbone.weights: {' '.join(str(error).split())[:300]}") from error

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        from transformers import LlamaTokenizer

        directory = self.tokenizer_directory()
        _check_tokenizer(directory)
        try:
            # legacy=True is how every published LLaMA system was tokenised: text after a special token begins with
            # the dummy prefix. save_pretrained writes only what is in init_kwargs, and without the key a reload
            # would fall back to legacy=False.
            tokenizer = LlamaTokenizer.from_pretrained(directory, legacy=True, local_files_only=True)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise BackboneError(f"backbone.tokenizer: {directory} cannot be loaded: {reason}") from error
        probe = "头痛三天，怎么办？ CT"
        if tokenizer.decode(tokenizer(probe, add_special_tokens=False)["input_ids"]).strip() != probe:
            raise BackboneError(
                f"backbone.tokenizer: {directory} is no LLaMA tokenizer: it loses text when it is read as one"
            )
        tokenizer.init_kwargs["legacy"] = True
        if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
            # LLaMA has no pad token. Never the end token: it is trained.
            tokenizer.pad_token = tokenizer.unk_token
        return tokenizer  # type: ignore[no-any-return]

    def load_model(self) -> PreTrainedModel:
        from transformers import LlamaForCausalLM

        return self.read(LlamaForCausalLM)

    def sizes(self) -> Mapping[str, Mapping[str, Any]]:
        from medframe_backbones.sizes import llama

        return llama()

    def make_tiny_tokenizer(self, directory: Path) -> None:
        from medframe_backbones.tiny import tokenizer_files

        tokenizer_files(directory)

    def make_tiny_weights(self, directory: Path) -> None:
        from medframe_backbones.tiny import llama_files

        llama_files(directory)


def _check_tokenizer(directory: Path) -> None:
    if not any((directory / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        raise BackboneError(f"backbone.tokenizer: {directory} has neither tokenizer.model nor tokenizer.json")
    config = directory / "tokenizer_config.json"
    try:
        named = json.loads(config.read_text("utf-8")).get("tokenizer_class") if config.is_file() else None
    except (ValueError, AttributeError) as error:
        raise BackboneError(f"backbone.tokenizer: {config} is broken: {error}") from None
    # "LLaMATokenizer" is how the first conversions spelt it.
    if named and named.lower().removesuffix("fast") not in ("llamatokenizer", "tokenizersbackend"):
        raise BackboneError(f"backbone.tokenizer: {directory} holds a {named}, which is no LLaMA tokenizer")
