"""The state of a training under DeepSpeed, by the names of the parameters: for any number of processes.

DeepSpeed's own checkpoints are the partitions of each process, and are converted to what it calls universal ones when
the number of processes changes. These are universal as they are saved: each parameter's float32 weight and optimizer
states are whole, through DeepSpeed's documented `safe_get_full_...` functions, each process writing its share of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

_WEIGHT = "weight"
_NUMBERS = "optimizer.json"
"""The file of what the optimizer keeps beside tensors: its count of steps, the scale of the loss."""
_LARGEST = 2 << 30
"""Bytes after which a process begins another file: it holds as much in memory."""


def save(engine: Any, folder: Path, prove: Callable[[Mapping[str, torch.Tensor], Path], None]) -> None:
    """Write the engine's state to the folder; every process takes part. Each file is handed to `prove`, as it is."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    _link(engine)
    kept: dict[str, torch.Tensor] = {}
    files = 0

    def write() -> None:
        nonlocal files
        file = folder / f"state-{rank:05}-{files:05}.safetensors"
        save_file(kept, file)
        prove(kept, file)
        kept.clear()
        files += 1

    for number, (name, parameter) in enumerate(_trained(engine.module)):
        state = _state(engine, parameter)  # every process gets them: DeepSpeed collects them from all
        if number % world == rank:
            kept |= {f"{key}|{name}": tensor.to("cpu", copy=True).contiguous() for key, tensor in state.items()}
        if sum(tensor.nbytes for tensor in kept.values()) > _LARGEST:
            write()
    if kept:
        write()
    if rank == 0:
        optimizer = engine.basic_optimizer
        steps = {key: float(value) for key, value in optimizer.state[_flat(engine)[0]].items() if _is_count(value)}
        numbers = {"state": steps, "loss_scaler": _scaler(engine)}
        (folder / _NUMBERS).write_text(json.dumps(numbers), "utf-8")


def load_weights(model: Any, folder: Path) -> None:
    """Put the saved weights into the model, whole or spread by ZeRO-3, before DeepSpeed takes it."""
    from deepspeed import zero

    with ExitStack() as stack, torch.no_grad():
        saved = _Saved(folder, stack)
        for name, parameter in _trained(model):
            spread = [parameter] if hasattr(parameter, "ds_id") else []
            with zero.GatheredParameters(spread, modifier_rank=0, enabled=bool(spread)):
                if parameter.numel():
                    parameter.copy_(saved(_WEIGHT, name))


def load(engine: Any, folder: Path) -> None:
    """Put the saved float32 weights and optimizer states into the engine, made of a model with the saved weights."""
    from deepspeed import utils

    numbers = json.loads((folder / _NUMBERS).read_text("utf-8"))
    stage = engine.zero_optimization_stage()
    optimizer = engine.basic_optimizer
    with ExitStack() as stack, torch.no_grad():
        saved = _Saved(folder, stack)
        for flat in _flat(engine):
            optimizer.state[flat] = {key: torch.zeros_like(flat) for key in saved.keys}
            # A fused step counts on the device that it steps on.
            device = flat.device if optimizer.defaults.get("fused") or optimizer.defaults.get("capturable") else "cpu"
            counts = {key: torch.tensor(value, device=device) for key, value in numbers["state"].items()}
            optimizer.state[flat] |= counts
        _link(engine)
        for name, parameter in _trained(engine.module):
            weight = saved(_WEIGHT, name)
            states = {key: saved(key, name) for key in saved.keys}
            if stage == 0:
                for key, tensor in states.items():
                    optimizer.state[parameter][key].copy_(tensor)
            elif stage == 3:
                utils.safe_set_local_fp32_param(parameter, _part(parameter, weight))
                for key, tensor in states.items():
                    utils.safe_set_local_optimizer_state(parameter, _part(parameter, tensor), key)
            else:
                utils.safe_set_full_fp32_param(parameter, weight)
                for key, tensor in states.items():
                    utils.safe_set_full_optimizer_state(parameter, tensor, key)
    for name, value in numbers["loss_scaler"].items():
        setattr(engine.optimizer.loss_scaler, name, value)


def _trained(model: Any) -> list[tuple[str, Any]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _state(engine: Any, parameter: Any) -> dict[str, torch.Tensor]:
    """The parameter's float32 weight and optimizer states, whole."""
    from deepspeed import utils

    keys = [key for key, value in engine.basic_optimizer.state[_flat(engine)[0]].items() if not _is_count(value)]
    if engine.zero_optimization_stage() == 0:
        state = engine.basic_optimizer.state[parameter]
        return {_WEIGHT: parameter.detach(), **{key: state[key] for key in keys}}
    states = {key: utils.safe_get_full_optimizer_state(parameter, key) for key in keys}
    return {_WEIGHT: utils.safe_get_full_fp32_param(parameter), **states}


def _flat(engine: Any) -> list[Any]:
    """The tensors that the optimizer steps: this process's partitions, at stage 0 the parameters themselves."""
    if engine.zero_optimization_stage() == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return [parameter for group in engine.basic_optimizer.param_groups for parameter in group["params"]]


def _link(engine: Any) -> None:
    """Have DeepSpeed know the states of every parameter.

    At stages 1 and 2 it looks for them after the step of the first group, when the other groups have none yet.
    """
    if engine.zero_optimization_stage() in (1, 2):
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        zero = engine.optimizer
        for parameters, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            lazy_init_hp_params_optimizer_state(parameters, flat, zero.optimizer.state)


def _part(parameter: Any, tensor: torch.Tensor) -> torch.Tensor:
    """This process's partition of the whole tensor, padded as DeepSpeed pads it."""
    size, rank = parameter.ds_tensor.numel(), torch.distributed.get_rank()
    part = tensor.flatten()[rank * size : (rank + 1) * size]
    return torch.nn.functional.pad(part, (0, size - part.numel()))


def _is_count(value: Any) -> bool:
    return not torch.is_tensor(value) or value.dim() == 0


def _scaler(engine: Any) -> dict[str, float]:
    """What float16's loss scaler has come to; in other precisions nothing."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if not getattr(scaler, "dynamic", False):
        return {}
    return {name: value for name, value in vars(scaler).items() if type(value) in (int, float)}


class _Saved:
    """The tensors of a folder by name, from whichever file they are in."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._places: dict[str, Any] = {}
        for file in sorted(folder.glob("state-*.safetensors")):
            opened = stack.enter_context(safe_open(file, "pt"))
            self._places |= dict.fromkeys(opened.keys(), opened)
        self.keys = sorted({name.partition("|")[0] for name in self._places} - {_WEIGHT})
        """The names of the optimizer's states."""

    def __call__(self, key: str, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._places[f"{key}|{name}"].get_tensor(f"{key}|{name}")
        return tensor
