"""The Baichuan family: Baichuan-7B and 13B, Baichuan2-7B and 13B."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from medframe import Backbone, BackboneError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(kw_only=True)
class Baichuan(Backbone):
    """Baichuan-7B and 13B, Baichuan2-7B and 13B."""

    positions: Literal["auto", "rope", "alibi"] = "auto"
    """How places are told: rope (the 7B models) | alibi (the 13B models); auto: told from config.json."""
    head: Literal["auto", "linear", "norm"] = "auto"
    """The output layer: linear (Baichuan) | norm, of normalised rows (Baichuan2); auto: told from config.json."""
    alibi: Literal["auto", "relative", "reference"] = "auto"
    """ALiBi's bias: relative | reference, rounded in bfloat16 as published; auto: config.json's, else relative."""

    lora_targets: ClassVar[tuple[str, ...]] = ("W_pack", "o_proj", "gate_proj", "up_proj", "down_proj")
    model_types: ClassVar[tuple[str, ...]] = ("baichuan",)
    tiny_from: ClassVar[str | tuple[str, ...] | None] = (
        "medframe_backbones.baichuan.tiny",
        "medframe_backbones.tiny",
    )

    def load_config(self) -> PretrainedConfig:
        from transformers import PretrainedConfig

        from medframe_backbones.baichuan.config import BaichuanConfig

        self.check_type("baichuan")
        directory = self.directory(small=True)
        chosen = {"positions": self.positions, "head": self.head, "alibi": self.alibi}
        try:
            raw, _ = PretrainedConfig.get_config_dict(directory, local_files_only=True)
            for name in ("positions", "head"):
                if chosen[name] != "auto" and raw.get(name, chosen[name]) != chosen[name]:
                    raise ValueError(f"it was saved with {name}: {raw[name]}, the recipe says {chosen[name]}")
            return BaichuanConfig.from_dict(raw | {name: value for name, value in chosen.items() if value != "auto"})
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise BackboneError(f"backbone.weights: {directory / 'config.json'}: {reason}") from error

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        from medframe_backbones.baichuan.tokenizer import BaichuanTokenizer

        directory = self.tokenizer_directory()
        _check_tokenizer(directory)
        try:
            tokenizer = BaichuanTokenizer.from_pretrained(directory, local_files_only=True)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise BackboneError(f"backbone.tokenizer: {directory} cannot be loaded: {reason}") from error
        if tokenizer.pad_token_id == tokenizer.eos_token_id:
            # The end token is trained, and padding is not.
            tokenizer.pad_token = tokenizer.unk_token
        return tokenizer  # type: ignore[no-any-return]

    def load_model(self) -> PreTrainedModel:
        from medframe_backbones.baichuan.model import BaichuanForCausalLM

        config: Any = self.load_config()
        if config.head == "norm":
            for adapter in self.adapter_directories():
                _check_head(adapter / "adapter_config.json")
        return self.read(BaichuanForCausalLM, config)

    def sizes(self) -> Mapping[str, Mapping[str, Any]]:
        from medframe_backbones.sizes import baichuan

        return baichuan(self.positions, self.head)

    def make_tiny_tokenizer(self, directory: Path) -> None:
        from medframe_backbones.baichuan.tiny import tokenizer_files

        tokenizer_files(directory)

    def make_tiny_weights(self, directory: Path) -> None:
        from medframe_backbones.baichuan.tiny import baichuan_files

        baichuan_files(directory, *self._tiny_kind())

    def _tiny_kind(self) -> tuple[str, str]:
        """(positions, head) of the tiny model: a Baichuan-13B where the recipe does not say."""
        return (
            "alibi" if self.positions == "auto" else self.positions,
            "linear" if self.head == "auto" else self.head,
        )

    def _tiny_name(self) -> str:
        return "-".join((super()._tiny_name(), *self._tiny_kind()))


def _check_tokenizer(directory: Path) -> None:
    if not (directory / "tokenizer.model").is_file():
        raise BackboneError(f"backbone.tokenizer: {directory} has no tokenizer.model")
    config = directory / "tokenizer_config.json"
    try:
        named = json.loads(config.read_text("utf-8")).get("tokenizer_class") if config.is_file() else None
    except (ValueError, AttributeError) as error:
        raise BackboneError(f"backbone.tokenizer: {config} is broken: {error}") from None
    # "BaiChuanTokenizer" is how the 7B spells it.
    if named and named.lower() != "baichuantokenizer":
        raise BackboneError(f"backbone.tokenizer: {directory} holds a {named}, which is no Baichuan tokenizer")


def _check_head(adapter_config: Path) -> None:
    """BackboneError when LoRA adapts a normalised head: normalising W + BA is not normalising W and adding BA."""
    try:
        targets = json.loads(adapter_config.read_text("utf-8")).get("target_modules") or []
        named = re.fullmatch(targets, "lm_head") if isinstance(targets, str) else "lm_head" in targets
    except (OSError, ValueError, AttributeError, re.error):
        return  # said where the adapter is read
    if named:
        raise BackboneError(
            f"backbone.adapters: {adapter_config.parent} adapts lm_head, which this model normalises, so it cannot be "
            "merged; train lm_head whole, in modules_to_save"
        )
