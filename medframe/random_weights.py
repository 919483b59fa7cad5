"""Models of full size without a download: the shapes of a configuration, empty or filled with random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medframe.errors import BackboneError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

_STD = 0.02
_BLOCK = 1_000_003
"""Random numbers that are made, and repeated. A prime: rows of a matrix that begin at a multiple would be alike."""


def empty(cls: type[Any], config: PretrainedConfig, dtype: str) -> PreTrainedModel:
    """The model on the meta device: its modules and the shapes of its parameters, which take no memory.

    In the precision that is asked for, `auto` being the configuration's.
    """
    import torch

    wanted = getattr(torch, dtype) if dtype != "auto" else config.dtype or torch.float32
    if hasattr(cls, "_model_mapping"):  # AutoModelForCausalLM is of no one architecture
        cls = cls._model_mapping[type(config)]
    try:
        # Not by `from_config`, which would spread it over processes where DeepSpeed is to load a model.
        with torch.device("meta"):
            model: PreTrainedModel = cls(config).to(wanted)
    except Exception as error:  # a configuration can be wrong in as many ways as there are architectures
        raise BackboneError(f"backbone.weights: {' '.join(str(error).split())[:300]}") from error
    return model


def filled(cls: type[Any], config: PretrainedConfig, dtype: str) -> PreTrainedModel:
    """The model on the CPU with random weights, the same ones each time; norms are 1, biases 0.

    They are made in the precision of `empty`, and nothing is held twice.
    """
    import torch

    shapes = empty(cls, config, dtype)
    wanted = shapes.dtype
    block = torch.empty(_BLOCK).normal_(0, _STD, generator=torch.Generator().manual_seed(0)).to(wanted)
    made = {name: _tensor(name, tensor, block) for name, tensor in shapes.state_dict().items()}
    for name, of in shapes.all_tied_weights_keys.items():
        made[name] = made[of]
    # As from files, so that what is not stored, such as the angles of rotary positions, is computed.
    model: PreTrainedModel = type(shapes).from_pretrained(
        None, config=shapes.config, state_dict=made, dtype=wanted, local_files_only=True
    )
    return model


def _tensor(name: str, like: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    import torch

    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    if like.ndim < 2:
        return torch.full(like.shape, 0.0 if name.endswith("bias") else 1.0, dtype=block.dtype)
    tensor = torch.empty(like.shape, dtype=block.dtype)
    flat = tensor.view(-1)
    for start in range(0, len(flat), len(block)):
        flat[start : start + len(block)] = block[: len(flat) - start]
    return tensor
