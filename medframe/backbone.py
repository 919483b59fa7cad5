"""The Backbone contract: a base model and its tokenizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(kw_only=True)
class Backbone(ABC):
    """A base model. Everything that a trainer or a chat needs to know of an architecture is here."""

    weights: str = "tiny"
    """Directory, hub id OWNER/NAME[@REVISION], or `tiny`: a small model of the same architecture, made on the spot."""
    tokenizer: str | None = None
    """Directory or hub id of the tokenizer, where it is not the weights'."""
    adapters: list[str] = field(default_factory=list)
    """Directories or hub ids of adapters, merged into the weights in this order; the last one's tokenizer is used."""
    dtype: Dtype = "auto"
    """Precision of the weights in memory; auto: as they are stored."""

    path_fields: ClassVar[tuple[str, ...]] = ("weights", "tokenizer", "adapters")
    lora_targets: ClassVar[tuple[str, ...]] = ()
    """Names of the linear modules that LoRA adapts by default; `all-linear`: every one of the model's but its head."""
    tiny_from: ClassVar[str | tuple[str, ...] | None] = None
    """The modules that make the tiny model, where it is not the component's own: the cache goes by their content."""

    @abstractmethod
    def load_config(self) -> PretrainedConfig:
        """The model's configuration, read without its weights."""

    @abstractmethod
    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of `tokenizer_directory()`, with a pad token, read without the weights."""

    @abstractmethod
    def load_model(self) -> PreTrainedModel:
        """The model on the CPU, every weight read and the adapters merged: `read(cls)` for a transformers class."""

    @abstractmethod
    def make_tiny_tokenizer(self, directory: Path) -> None:
        """Write the tokenizer of the tiny model there, the same bytes on every machine."""

    @abstractmethod
    def make_tiny_weights(self, directory: Path) -> None:
        """Write config.json and the weights of the tiny model there, the same bytes on every machine."""

    def directory(self, small: bool = False) -> Path:
        """The local directory of the weights, else BackboneError. Of a hub model, `small` fetches no weights."""
        from medframe import cache
        from medframe.weights import locate

        def make(folder: Path) -> None:
            self.make_tiny_tokenizer(folder)
            self.make_tiny_weights(folder)

        if self.weights == "tiny":
            return cache.made(f"tiny/{self._tiny_name()}", make)
        return locate(self.weights, small=small)

    def tokenizer_directory(self) -> Path:
        """The local directory that holds the tokenizer: the recipe's, else the last adapter's, else the weights'."""
        from medframe import cache
        from medframe.weights import locate

        if self.tokenizer is not None:
            return locate(self.tokenizer, "tokenizer", small=True)
        for adapter in reversed(self.adapters):
            if (found := locate(adapter, "adapters")) and (found / "tokenizer_config.json").is_file():
                return found
        if self.weights == "tiny":
            return cache.made(f"tiny/{self._tiny_name()}-tokenizer", self.make_tiny_tokenizer)
        return locate(self.weights, small=True)

    def adapter_directories(self) -> list[Path]:
        """The local directories of the adapters, in order; BackboneError for one that is not there."""
        from medframe.weights import locate

        return [locate(adapter, "adapters") for adapter in self.adapters]

    def check_type(self, wanted: str) -> None:
        """BackboneError unless the weights' config.json is of this model type, such as llama."""
        from medframe.weights import check_type

        check_type(self.directory(small=True), wanted)

    def read(self, cls: type[Any], config: PretrainedConfig | None = None) -> PreTrainedModel:
        """The model of this transformers class from `directory()`, with the adapters merged; else BackboneError.

        Vocabularies are compared before a tensor is read. A `config` stands in for the directory's own, where fields
        of the recipe change it.
        """
        from medframe import vocabulary, weights

        vocabulary.check(self)
        return weights.merge(weights.load(cls, self.directory(), self.dtype, config), self.adapters)

    def _tiny_name(self) -> str:
        import hashlib
        import importlib.util

        named = self.tiny_from or type(self).__module__
        content = hashlib.sha256()
        for module in (named,) if isinstance(named, str) else named:
            spec = importlib.util.find_spec(module)
            assert spec is not None and spec.origin is not None
            content.update(Path(spec.origin).read_bytes())
        return f"{type(self).__qualname__.lower()}-{content.hexdigest()[:16]}"
