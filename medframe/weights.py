"""Weights and adapters on disk -> a model, every tensor accounted for."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medframe.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


HUB_ID = r"[\w-][\w.-]*/[\w-][\w.-]*"


def locate(name: str, what: str = "weights", small: bool = False) -> Path:
    """The local directory of `name`, a directory or a hub id; BackboneError about the field `what` when there is none.

    Of a hub model, only the `small` files are fetched, configuration and tokenizer, or the weights as well.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise BackboneError(f"backbone.{what}: {path} is a file; give the directory it lies in")
    if not re.fullmatch(HUB_ID, name):
        raise BackboneError(f"backbone.{what}: no directory {path}")
    from huggingface_hub import snapshot_download

    kinds = ["*.json", "*.model", "*.jinja", "*.txt"]
    try:
        found = Path(snapshot_download(name, allow_patterns=kinds))
        for weights in () if small else ("*.safetensors", "*.bin"):
            if not any(found.glob("*.safetensors")):
                snapshot_download(name, allow_patterns=[weights])
        return found
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise BackboneError(f"backbone.{what}: no directory {name!r}, and no such hub model: {reason}") from error


def load(cls: type[Any], directory: Path, dtype: str) -> PreTrainedModel:
    """A model of this transformers class with every weight read from the directory, on the CPU.

    BackboneError names tensors that are missing or have another shape, and files that cannot be read.
    """
    if not (directory / "config.json").is_file():
        raise BackboneError(f"backbone.weights: {directory} has no config.json")
    if config_class := getattr(cls, "config_class", None):  # AutoModelForCausalLM is of no one type
        check_type(directory, config_class.model_type)
    try:
        model, report = cls.from_pretrained(directory, dtype=dtype, local_files_only=True, output_loading_info=True)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise BackboneError(f"backbone.weights: {directory} cannot be loaded: {reason[:300]}") from error
    if missing := sorted(report["missing_keys"]):
        raise BackboneError(f"backbone.weights: {directory} lacks {len(missing)} tensors: {_some(missing)}")
    return model  # type: ignore[no-any-return]


def check_type(directory: Path, wanted: str) -> None:
    """BackboneError when the directory's config.json is of another kind of model."""
    try:
        found = json.loads((directory / "config.json").read_text("utf-8")).get("model_type", wanted)
    except (OSError, ValueError, AttributeError) as error:
        raise BackboneError(f"backbone.weights: {directory / 'config.json'} cannot be read: {error}") from None
    if found != wanted:
        raise BackboneError(f"backbone.weights: {directory} holds a {found} model, this backbone is for {wanted}")


def merge(model: PreTrainedModel, adapters: Sequence[str]) -> PreTrainedModel:
    """The model with peft's adapters merged into it in order, its vocabulary grown where an adapter brings rows.

    BackboneError when an adapter's tensors are not exactly those that its configuration asks for: peft itself
    ignores tensors too many, and only warns of those missing.
    """
    for adapter in adapters:
        directory = locate(adapter, "adapters")
        rows = _embedding_rows(directory)
        if rows and rows != _rows(model):
            model.resize_token_embeddings(rows, mean_resizing=False)
        wrapped: Any = attach(model, directory)
        model = wrapped.merge_and_unload()
    return model


def attach(model: PreTrainedModel, directory: Path) -> Any:
    """The model wrapped by the peft adapter of the directory, not merged; BackboneError as `merge`."""
    from peft import PeftModel, get_peft_model_state_dict

    if not (directory / "adapter_config.json").is_file():
        raise BackboneError(f"backbone.adapters: {directory} has no adapter_config.json")
    try:
        wrapped = PeftModel.from_pretrained(model, str(directory))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise BackboneError(f"backbone.adapters: {directory} does not fit: {reason[:300]}") from error
    stored, wanted = set(adapter_tensors(directory)), set(get_peft_model_state_dict(wrapped))
    if wrong := sorted(stored ^ wanted):
        raise BackboneError(
            f"backbone.adapters: {directory} holds {len(stored - wanted)} tensors that are not used and lacks "
            f"{len(wanted - stored)} that are: {_some(wrong)}"
        )
    return wrapped


def adapter_tensors(directory: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of an adapter, read from its header where the format has one."""
    file = directory / "adapter_model.safetensors"
    if file.is_file():
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, "pt") as tensors:
                return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise BackboneError(f"backbone.adapters: {file} cannot be read: {error}") from None
    old = directory / "adapter_model.bin"
    if not old.is_file():
        raise BackboneError(f"backbone.adapters: {directory} has no adapter_model.safetensors")
    import torch

    try:
        state = torch.load(old, map_location="cpu", weights_only=True)
    except Exception as error:
        raise BackboneError(f"backbone.adapters: {old} cannot be read: {str(error)[:200]}") from None
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _rows(model: PreTrainedModel) -> int:
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def _embedding_rows(directory: Path) -> int | None:
    for name, shape in adapter_tensors(directory).items():
        if name.endswith(("embed_tokens.weight", "word_embeddings.weight")):
            return shape[0]
    return None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
