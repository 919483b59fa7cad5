"""Weights and adapters on disk -> a model, every tensor accounted for."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medframe import hub
from medframe.errors import BackboneError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel


PICKLES = ("adapter_model.bin", "pytorch_model.bin")
"""What an adapter's file is called where it is no safetensors file."""
_NO_TENSORS = "is damaged or holds something other than tensors, which is not read: it could be made to run anything"


def locate(name: str, what: str = "weights", small: bool = False) -> Path:
    """The local directory of `name`, a directory or a `hub.ID`; BackboneError about the field `what` without one.

    Of a hub model, only the `small` files are fetched, configuration and tokenizer, or the weights as well.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise BackboneError(f"backbone.{what}: {path} is a file; give the directory it lies in")
    if "://" in name:
        raise BackboneError(f"backbone.{what}: {name}: a hub model is named OWNER/NAME or OWNER/NAME@REVISION")
    if not re.fullmatch(hub.ID, name):
        raise BackboneError(f"backbone.{what}: no directory {path}")
    try:
        return hub.model(name, small)
    except hub.HubError as error:
        raise BackboneError(f"backbone.{what}: no directory {name} is here, and {error}") from error


def load(cls: type[Any], directory: Path, dtype: str, config: PretrainedConfig | None = None) -> PreTrainedModel:
    """A model of this transformers class with every weight read from the directory, on the CPU.

    It is configured as the directory says, or as `config` does.

    BackboneError names tensors that are missing or have another shape, and files that cannot be read.
    """
    if not (directory / "config.json").is_file():
        raise BackboneError(f"backbone.weights: {directory} has no config.json")
    if config_class := getattr(cls, "config_class", None):  # AutoModelForCausalLM is of no one type
        check_type(directory, config_class.model_type)
    try:
        model, report = cls.from_pretrained(
            directory, config=config, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except pickle.UnpicklingError:
        raise BackboneError(f"backbone.weights: a .bin file in {directory} {_NO_TENSORS}") from None
    except Exception as error:
        reason = " ".join(str(error).split())
        raise BackboneError(f"backbone.weights: {directory} cannot be loaded: {reason[:300]}") from error
    if missing := sorted(report["missing_keys"]):
        raise BackboneError(f"backbone.weights: {directory} lacks {len(missing)} tensors: {_some(missing)}")
    # A part of a module that the model has, such as a bias, would change what it computes. Whole modules beyond it,
    # such as heads for other tasks, would not.
    modules = {name for name, _ in model.named_modules()}
    ignored = ("inv_freq", "masked_bias")
    unplaced = sorted(name for name in report["unexpected_keys"] if name.rpartition(".")[0] in modules)
    if unplaced := [name for name in unplaced if not name.endswith(ignored)]:
        raise BackboneError(
            f"backbone.weights: {directory} has {len(unplaced)} tensors that {cls.__name__} has no place for: "
            f"{_some(unplaced)}; does config.json belong to these weights?"
        )
    return model  # type: ignore[no-any-return]


def check_type(directory: Path, wanted: str) -> None:
    """BackboneError when the directory's config.json is of another kind of model."""
    try:
        found = json.loads((directory / "config.json").read_text("utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise BackboneError(f"backbone.weights: {directory / 'config.json'} cannot be read: {error}") from None
    if found is None:
        raise BackboneError(f"backbone.weights: {directory / 'config.json'} names no model_type, {wanted} is expected")
    if found != wanted:
        raise BackboneError(f"backbone.weights: {directory} holds a {found} model, this backbone is for {wanted}")


def merge(model: PreTrainedModel, adapters: Sequence[str]) -> PreTrainedModel:
    """The model with peft's adapters merged into it in order, its vocabulary grown where an adapter brings rows.

    BackboneError when an adapter's tensors are not exactly those that its configuration asks for: peft itself
    ignores tensors too many, and only warns of those missing.
    """
    for adapter in adapters:
        directory = locate(adapter, "adapters")
        grow(model, directory)
        wrapped: Any = attach(model, directory)
        model = wrapped.merge_and_unload()
    return model


def grow(model: PreTrainedModel, directory: Path) -> None:
    """Give the model as many rows of embeddings as the adapter of the directory brings, where it brings them."""
    rows = embedding_rows(directory)
    if rows and rows != _rows(model):
        model.resize_token_embeddings(rows, mean_resizing=False)


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
    stored = set(adapter_tensors(directory))
    wanted = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    # A grown embedding may be stored though nothing asks for it: it is loaded by its full name.
    unused, lacking = stored - wanted - set(wrapped.state_dict()), wanted - stored
    if wrong := sorted(unused | lacking):
        raise BackboneError(
            f"backbone.adapters: {directory} holds {len(unused)} tensors that are not used and lacks "
            f"{len(lacking)} that are: {_some(wrong)}"
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
    # Checkpoints of early Trainers have an adapter under the second name.
    old = next((file for file in map(directory.joinpath, PICKLES) if file.is_file()), None)
    if old is None:
        raise BackboneError(f"backbone.adapters: {directory} has no adapter_model.safetensors")
    return {name: tuple(tensor.shape) for name, tensor in pickled(old, "adapters").items()}


def pickled(file: Path, what: str = "weights") -> dict[str, torch.Tensor]:
    """The tensors of a `.bin` file, a pickle of which nothing is run; BackboneError when it holds anything else."""
    import torch

    try:
        # torch before 1.6 wrote no zip file, and only of those is a part read without the whole.
        state = torch.load(file, map_location="cpu", mmap=zipfile.is_zipfile(file), weights_only=True)
        if not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
            raise pickle.UnpicklingError
    except (pickle.UnpicklingError, AttributeError):
        raise BackboneError(f"backbone.{what}: {file} {_NO_TENSORS}") from None
    except Exception as error:
        raise BackboneError(f"backbone.{what}: {file} cannot be read: {str(error)[:200]}") from None
    return state  # type: ignore[no-any-return]


def embedding_rows(adapter: Path) -> int | None:
    """Rows of the embedding matrix that the adapter's directory brings, read from its header; None without one."""
    for name, shape in adapter_tensors(adapter).items():
        if name.endswith(("embed_tokens.weight", "word_embeddings.weight")):
            return shape[0]
    return None


def _rows(model: PreTrainedModel) -> int:
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
