"""The Backbone contract: a base model and its tokenizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from medframe.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
RANDOM = "random:"
"""What `weights` begins with where they are random, before a published size, a directory or a hub id."""


@dataclass(kw_only=True)
class Backbone(ABC):
    """A base model. Everything that a trainer or a chat needs to know of an architecture is here."""

    weights: str = "tiny"
    """Directory, hub id OWNER/NAME[@REVISION], `tiny` (a small model made on the spot), or, to measure with,

    random:SIZE, random:DIRECTORY, random:OWNER/NAME: a model of full size whose weights are random.
    """
    tokenizer: str | None = None
    """Directory or hub id of the tokenizer, where it is not the weights'."""
    adapters: list[str] = field(default_factory=list)
    """Directories or hub ids of adapters, merged into the weights in this order; the last one's tokenizer is used."""
    dtype: Dtype = "auto"
    """Precision of the weights in memory; auto: as they are stored."""
    weights_dtype: Literal["int8", "int4"] | None = None
    """Round linear layers to so many bits in memory; LoRA may be trained beside them (QLoRA)."""

    path_fields: ClassVar[tuple[str, ...]] = ("weights", "tokenizer", "adapters")
    lora_targets: ClassVar[tuple[str, ...]] = ()
    """Names of the linear modules that LoRA adapts by default; `all-linear`: every one of the model's but its head."""
    model_types: ClassVar[tuple[str, ...]] = ()
    """What config.json calls the models (`model_type`) that open with this backbone where nothing names one; `*`: any.

    A class that inherits another's says anew which: two that open the same are asked in the order of the plugins.
    """
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

    def sizes(self) -> Mapping[str, Mapping[str, Any]]:
        """What config.json says of each published model that `weights: random:NAME` can stand for, by its name."""
        return {}

    def directory(self, small: bool = False) -> Path:
        """The local directory of the weights, else BackboneError. Of a hub model, `small` fetches no weights.

        Of random weights it holds config.json alone.
        """
        from medframe import cache
        from medframe.weights import locate

        def make(folder: Path) -> None:
            self.make_tiny_tokenizer(folder)
            self.make_tiny_weights(folder)

        if self.weights == "tiny":
            return cache.made(f"tiny/{self._tiny_name()}", make)
        if self.is_random:
            return self._random_directory()
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
        if self.weights == "tiny" or self._size() is not None:
            return cache.made(f"tiny/{self._tiny_name()}-tokenizer", self.make_tiny_tokenizer)
        return self.directory(small=True)

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
        of the recipe change it. Within `torch.device("meta")` nothing is read: the model has shapes alone.
        """
        import torch

        from medframe import random_weights, vocabulary, weights
        from medframe.quantised import quantise

        if torch.get_default_device().type == "meta":
            config = config or self.load_config()
            config.get_text_config().vocab_size = vocabulary.rows(self)
            return random_weights.empty(cls, config, self.dtype)
        vocabulary.check(self)
        if self.is_random:
            model = random_weights.filled(cls, config or self.load_config(), self.dtype)
        else:
            model = weights.load(cls, self.directory(), self.dtype, config)
        model = weights.merge(model, self.adapters)
        return quantise(model, self.weights_dtype) if self.weights_dtype else model

    @property
    def is_random(self) -> bool:
        """Whether the weights are random, and the model is one to measure with."""
        return self.weights.startswith(RANDOM)

    def _size(self) -> Mapping[str, Any] | None:
        """What config.json says where the weights are of a published size, made random."""
        return self.sizes().get(self.weights.removeprefix(RANDOM)) if self.is_random else None

    def _random_directory(self) -> Path:
        """A directory that holds the configuration of the random model; BackboneError for one that is not known."""
        import hashlib
        import json

        from medframe import cache
        from medframe.weights import locate

        name, size = self.weights.removeprefix(RANDOM), self._size()
        if size is not None:
            content = json.dumps(size, indent=2)
            digest = hashlib.sha256(content.encode()).hexdigest()[:16]

            def write(folder: Path) -> None:
                (folder / "config.json").write_text(content + "\n", "utf-8")

            return cache.made(f"random/{type(self).__qualname__.lower()}-{name}-{digest}", write)
        try:
            return locate(name, small=True)
        except BackboneError as error:
            known = ", ".join(self.sizes()) or "none"
            raise BackboneError(
                f"backbone.weights: random:{name}: {type(self).__qualname__} knows the sizes {known}; else give a "
                f"directory or a hub model whose config.json to take ({error.args[0].partition(': ')[2]})"
            ) from error

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


def shapes(backbone: Backbone) -> PreTrainedModel:
    """The backbone's model on the meta device, adapters merged: names, shapes and precisions, no weights."""
    import torch

    with torch.device("meta"):
        return backbone.load_model()
