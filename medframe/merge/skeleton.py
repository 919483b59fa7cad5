"""What a model is made of, told from its configuration: modules, parameters, ties; and where each is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medframe.backbone import Backbone, shapes
from medframe.errors import BackboneError
from medframe.merge.tensors import Stored


@dataclass(frozen=True)
class Skeleton:
    """A model without weights, its vocabulary as large as the adapters make it."""

    architecture: str
    """The class of transformers, as config.json names it."""
    dtype: str
    """Of its parameters, by torch's name."""
    kinds: Mapping[str, str]
    """Module -> linear, conv1d, embedding, or the name of its class."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of every parameter, and of every buffer that is stored."""
    tied: Mapping[str, str]
    """Parameter -> the one that it is the same as."""
    embedding: str
    """The parameter with a row for each token that is read."""
    head: str | None
    """The parameter with a row for each token that is written."""
    model: Any
    """The model itself, on the meta device."""

    @property
    def rows(self) -> int:
        """Rows of the embedding."""
        return self.shapes[self.embedding][0]

    def places(self, stored: Mapping[str, Stored]) -> dict[str, str]:
        """Stored name -> the parameter that it is, of those that are stored as they are computed with.

        BackboneError when parameters are not stored.
        """
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, rename_source_key

        transforms = get_model_conversion_mapping(self.model)
        converters: list[Any] = [each for each in transforms if isinstance(each, WeightConverter)]
        renamings: list[Any] = [each for each in transforms if not isinstance(each, WeightConverter)]
        state, prefix = self.model.state_dict(), self.model.base_model_prefix
        found: dict[str, str] = {}
        converted = False
        for name in stored:
            parameter, by = rename_source_key(name, renamings, converters, prefix, state)
            if by is not None:
                converted = True  # several are joined into one, or one is cut up
            elif parameter in self.shapes:
                found[name] = parameter
        missing = self.shapes.keys() - set(found.values())
        missing = {name for name in missing if self.tied.get(name) not in found.values()}
        # A tie holds in both directions: of the two, either may be the one that is stored.
        missing -= {self.tied[name] for name in found.values() if name in self.tied}
        if missing and not converted:
            raise BackboneError(f"the base lacks {len(missing)} tensors that its config.json asks for: {min(missing)}")
        return found


def skeleton(backbone: Backbone) -> Skeleton:
    """The skeleton of the backbone's model; BackboneError as `Backbone.load_model`."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    model: Any = shapes(backbone)
    kinds = {}
    for name, module in model.named_modules():
        # A class of its own computes something of its own: a normalised head is not what adding to its weight gives.
        exact = {nn.Linear: "linear", Conv1D: "conv1d"}.get(type(module))
        kinds[name] = exact or ("embedding" if isinstance(module, nn.Embedding) else type(module).__name__)
    names = {module: name for name, module in model.named_modules()}
    head = model.get_output_embeddings()
    return Skeleton(
        architecture=type(model).__name__,
        dtype=str(model.dtype).removeprefix("torch."),
        kinds=kinds,
        shapes={name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        tied=dict(model.all_tied_weights_keys),
        embedding=f"{names[model.get_input_embeddings()]}.weight",
        head=None if head is None else f"{names[head]}.weight",
        model=model,
    )
