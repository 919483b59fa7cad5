"""Any causal language model that the installed transformers has itself."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from medframe import Backbone, BackboneError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


_PROBE = "头痛三天，怎么办？ CT"


@dataclass(kw_only=True)
class Auto(Backbone):
    """Any causal language model of the installed transformers: Qwen3, Llama-3, MedGemma, GLM, Mistral, ...

    The architecture is the one that config.json names. Code that comes with the weights is never run. Of a model that
    also sees or hears, the language model is what is trained and asked.
    """

    pad_token: str | None = None
    """The token that pads, by its text; null: the tokenizer's own, else one that is there for it or unused."""

    lora_targets: ClassVar[tuple[str, ...]] = ("all-linear",)
    model_types: ClassVar[tuple[str, ...]] = ("*",)
    tiny_from: ClassVar[tuple[str, ...]] = (
        "medframe_backbones.tiny",
        "medframe_backbones.tiny_bpe",
        "medframe_backbones.tiny_qwen",
    )

    def load_config(self) -> PretrainedConfig:
        from transformers import CONFIG_MAPPING
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

        directory = self.directory(small=True)
        cls = CONFIG_MAPPING[_architecture(directory)]
        try:
            config: PretrainedConfig = cls.from_pretrained(directory, local_files_only=True)
        except Exception as error:
            raise BackboneError(f"backbone.weights: {directory}: {' '.join(str(error).split())[:300]}") from error
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise BackboneError(f"backbone.weights: {directory} holds a {config.model_type}, no causal language model")
        return config

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        directory = self.tokenizer_directory()
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise BackboneError(f"backbone.tokenizer: {directory} cannot be loaded: {reason}") from error
        # Where the files are missing, transformers makes an empty tokenizer of the right class without a word.
        read = tokenizer.decode(tokenizer(_PROBE, add_special_tokens=False)["input_ids"])
        if _essence(str(read)) != _essence(_PROBE):
            raise BackboneError(f"backbone.tokenizer: {directory} holds none, or one that loses Chinese text")
        if tokenizer.eos_token_id is None:
            raise BackboneError(f"backbone.tokenizer: {directory} names no end token (eos_token)")
        if self.pad_token is not None or tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
            tokenizer.pad_token = self._padding(tokenizer)
        return tokenizer

    def load_model(self) -> PreTrainedModel:
        from transformers import AutoModelForCausalLM

        self.load_config()  # says what is wrong with it
        return self.read(AutoModelForCausalLM)

    def make_tiny_tokenizer(self, directory: Path) -> None:
        from medframe_backbones.tiny_qwen import tokenizer_files

        tokenizer_files(directory)

    def make_tiny_weights(self, directory: Path) -> None:
        from medframe_backbones.tiny_qwen import model_files

        model_files(directory)

    def _padding(self, tokenizer: Any) -> str:
        """A token of the vocabulary that can pad. Never the end token: it is trained."""
        if self.pad_token is not None:
            if self.pad_token not in tokenizer.get_vocab() or self.pad_token == tokenizer.eos_token:
                raise BackboneError(f"backbone.pad_token: {self.pad_token!r} must be a token, and not the end token")
            return self.pad_token
        if tokenizer.unk_token is not None and tokenizer.unk_token != tokenizer.eos_token:
            return str(tokenizer.unk_token)
        # Llama-3 has <|finetune_right_pad_id|>, or reserved tokens; Qwen's base models pad with their end token, and
        # beside it have <|fim_pad|>.
        special = [str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
        spoken = f"{tokenizer.chat_template} {tokenizer.bos_token} {tokenizer.eos_token}"
        for kind in ("pad", "reserved|unused|extra|dummy"):
            for token in special:
                # A token that stands for a picture or a sound means something to the model.
                means = token in spoken or re.search("image|video|vision|audio", token)
                if re.search(kind, token, re.IGNORECASE) and not means:
                    return token
        raise BackboneError(
            "backbone.tokenizer: it has no pad token, nor one that could serve: name an unused token in "
            f"backbone.pad_token, any but the end token {tokenizer.eos_token}; its special tokens: {', '.join(special)}"
        )


def _essence(text: str) -> str:
    """The text but for spaces and widths of characters, which some tokenizers change."""
    return "".join(unicodedata.normalize("NFKC", text).split())


def _architecture(directory: Path) -> str:
    """The architecture that config.json names; BackboneError unless transformers itself has it."""
    from transformers import CONFIG_MAPPING

    file = directory / "config.json"
    try:
        content = json.loads(file.read_text("utf-8"))
        named = str(content["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackboneError(f"backbone.weights: {file} does not say what model this is: {error!r}") from None
    if named in CONFIG_MAPPING:
        return named
    own = ": its code comes with the weights, and medframe runs none that does" if "auto_map" in content else ""
    raise BackboneError(
        f"backbone.weights: {directory} holds a {named} model, which the installed transformers does not have{own}; "
        "take a version of the model that transformers has (often named ...-hf), or a backbone made for it"
    )
