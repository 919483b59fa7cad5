"""An adapter on disk -> what it does to each tensor of a model; whatever of it is not understood is refused by name."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medframe.errors import BackboneError
from medframe.merge.skeleton import Skeleton
from medframe.merge.tensors import Stored, in_pickle, in_safetensors
from medframe.weights import PICKLES

FILES = ("adapter_model.safetensors", *PICKLES)
"""Where an adapter's tensors may be."""
_READ = {
    "peft_type",
    "r",
    "lora_alpha",
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "bias",
    "lora_bias",
    "init_lora_weights",
    "ensure_weight_tying",
}
"""Keys of adapter_config.json that are honoured here."""
_NEUTRAL = {
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "peft_version",
    "lora_dropout",
    "fan_in_fan_out",  # what the layer is tells it, as peft has it
    "eva_config",
    "megatron_core",
    "megatron_config",
    "qalora_group_size",
    "loftq_config",
    "runtime_config",
    "ephemeral_gpu_offload",
}
"""Keys that say nothing of what the tensors mean. Any other must be empty or false."""
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Ways to begin an adapter that leave the base model's weights as they were."""
_KEY = re.compile(
    r"(?P<module>.+)\."
    r"(?:(?P<low>lora_(?:embedding_)?[AB])(?:\.default)?(?:\.(?P<part>weight|bias))?"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.default)?(?:\.weight)?)"
)


@dataclass(frozen=True)
class Whole:
    """A tensor in place of the model's own."""

    tensor: Stored
    copied: bool
    """Of a module that was trained as a copy: one that is tied to it stays as it was."""


@dataclass(frozen=True)
class LowRank:
    """A product of two small matrices, scaled and added; with a magnitude, the sum's columns then get that length."""

    a: Stored
    """[rank, in]; of an embedding [rank, rows]."""
    b: Stored
    """[out, rank]; of an embedding [width, rank]."""
    scaling: float
    embedding: bool
    transposed: bool
    """Whether the model keeps the matrix as [in, out]."""
    magnitude: Stored | None
    """DoRA's lengths, by row of [out, in]; of an embedding, by column of [rows, width]."""


@dataclass(frozen=True)
class Shift:
    """A vector, scaled and added to a bias."""

    tensor: Stored
    scaling: float


Change = Whole | LowRank | Shift


@dataclass
class Group:
    """The tensors by which an adapter changes one module."""

    parts: dict[str, Stored] = field(default_factory=dict)

    @property
    def of_embedding(self) -> bool:
        return "lora_embedding_A" in self.parts


@dataclass(frozen=True)
class Adapter:
    """An adapter as it is stored."""

    directory: Path
    config: Mapping[str, Any]
    groups: Mapping[str, Group]
    """Module -> what is added to it."""
    wholes: Mapping[str, Stored]
    """Parameter -> what takes its place."""

    def changes(self, model: Skeleton) -> dict[str, Change]:
        """Parameter -> what becomes of it; BackboneError unless the model has a place for every tensor of the adapter,

        and the adapter a tensor for every module that its configuration names.
        """
        found: dict[str, Change] = {}
        for module, group in self.groups.items():
            found |= self._low_rank(module, group, model)
        for parameter, tensor in self.wholes.items():
            if parameter not in model.shapes:
                raise self._wrong(f"{tensor.name} has no place in this model; is it for another base?")
            if isinstance(found.get(parameter), LowRank):
                raise self._wrong(f"{parameter} is both given whole and adapted, which is not understood")
            copied = self._is_saved(parameter.rpartition(".")[0]) and not self.config.get("ensure_weight_tying")
            found[parameter] = Whole(tensor, copied)
        if not found:
            raise self._wrong("it holds no tensor")
        self._check_complete(model)
        return found

    def _low_rank(self, module: str, group: Group, model: Skeleton) -> dict[str, Change]:
        kind = model.kinds.get(module)
        first = next(iter(group.parts.values()))
        if kind is None:
            raise self._wrong(f"{first.name} has no place: the model has no module {module}; is it for another base?")
        if kind not in ("linear", "conv1d", "embedding"):
            raise self._wrong(f"{module} is a {kind}, into which LoRA cannot be merged")
        if self._targets(module) is False:
            raise self._wrong(f"{first.name} is stored, and target_modules does not name {module}")
        a_name, b_name = ("lora_embedding_A", "lora_embedding_B") if group.of_embedding else ("lora_A", "lora_B")
        if (kind == "embedding") != group.of_embedding or not {a_name, b_name} <= group.parts.keys():
            raise self._wrong(f"{module} has only {', '.join(sorted(group.parts))}, and no pair for a {kind} module")
        if strange := group.parts.keys() - {a_name, b_name, f"{b_name}.bias", "magnitude"}:
            raise self._wrong(f"{module}: {', '.join(sorted(strange))} is not understood")
        a, b = group.parts[a_name], group.parts[b_name]
        rank, alpha = self._for(module, "rank_pattern", "r"), self._for(module, "alpha_pattern", "lora_alpha")
        if a.shape[:1] != (rank,) or b.shape[1:] != (rank,):
            raise self._wrong(
                f"{module} has matrices {list(a.shape)} and {list(b.shape)}, its configuration says rank {rank}"
            )
        scaling = alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
        if self.config.get("ensure_weight_tying") and f"{module}.weight" in {*model.tied, *model.tied.values()}:
            raise self._wrong(f"ensure_weight_tying with LoRA on {module} is not understood")
        magnitude = group.parts.get("magnitude")
        if bool(self.config.get("use_dora")) != (magnitude is not None):
            raise self._wrong(f"{module}: use_dora is {self.config.get('use_dora')}, and its magnitudes are not so")
        changes: dict[str, Change] = {
            f"{module}.weight": LowRank(a, b, scaling, kind == "embedding", kind == "conv1d", magnitude)
        }
        if shift := group.parts.get(f"{b_name}.bias"):
            if f"{module}.bias" not in model.shapes:
                raise self._wrong(f"{shift.name} has no place: {module} has no bias")
            changes[f"{module}.bias"] = Shift(shift, scaling)
        elif self.config.get("lora_bias"):
            raise self._wrong(f"lora_bias is on, and {module} has none")
        return changes

    def _check_complete(self, model: Skeleton) -> None:
        """BackboneError when a module that the configuration names has no tensor: a save was not whole."""
        for module, kind in model.kinds.items():
            if self._is_saved(module) and not self._within_saved(module):
                wanted = [name for name in model.shapes if name.startswith(f"{module}.")]
                missing = [
                    name for name in wanted if name not in self.wholes and model.tied.get(name) not in self.wholes
                ]
                if missing:
                    raise self._wrong(f"modules_to_save names {module}, and {missing[0]} is not stored")
            elif self._targets(module) and module not in self.groups and kind in ("linear", "conv1d", "embedding"):
                raise self._wrong(
                    f"target_modules names {module}, for which nothing is stored: was the adapter saved whole?"
                )

    def _within_saved(self, module: str) -> bool:
        parents = module.split(".")
        return any(self._is_saved(".".join(parents[:end])) for end in range(1, len(parents)))

    def _is_saved(self, module: str) -> bool:
        """Whether modules_to_save names the module, or one that it lies in."""
        return any(re.match(rf"(^|.*\.){re.escape(name)}($|\..*)", module) for name in self.config["modules_to_save"])

    def _targets(self, module: str) -> bool | None:
        """Whether the configuration adapts the module, as peft reads it; None where that cannot be told from it."""
        if _named(self.config.get("exclude_modules"), module) or self._is_saved(module):
            return False
        targets = self.config.get("target_modules")
        if targets is None or targets == "all-linear":
            return None
        if not _named(targets, module):
            return False
        layers = self.config.get("layers_to_transform")
        if isinstance(targets, str) or layers is None or layers == []:
            return True
        patterns = _listed(self.config.get("layers_pattern")) or [r"[^.]*"]
        found = next(filter(None, (re.match(rf"(?:^|.*?\.){p}\.(\d+)\.", module) for p in patterns)), None)
        return found is not None and int(found[1]) in _listed(layers)

    def _for(self, module: str, pattern: str, otherwise: str) -> Any:
        """The value for the module: that of the first pattern that its name ends with, else the general one."""
        for name, value in (self.config.get(pattern) or {}).items():
            if re.match(rf"(.*\.)?({name})$", module):
                return value
        return self.config[otherwise]

    def _wrong(self, what: str) -> BackboneError:
        return BackboneError(f"{self.directory}: {what}")


def read(directory: Path) -> Adapter:
    """The adapter, of which only headers are read; BackboneError for one that is not understood in full."""
    config = _config(directory)
    file = next((directory / name for name in FILES if (directory / name).is_file()), None)
    if file is None:
        raise BackboneError(f"{directory} has none of {', '.join(FILES)}")
    stored = in_safetensors(file, "adapters") if file.suffix == ".safetensors" else in_pickle(file, "adapters")
    groups: dict[str, Group] = {}
    wholes: dict[str, Stored] = {}
    for key, tensor in stored.items():
        if any(size == 0 for size in tensor.shape):
            raise BackboneError(f"{file}: {key} is empty, as DeepSpeed's stage 3 saves what was not gathered")
        name = key.removeprefix("base_model.model.")
        found = _KEY.fullmatch(name)
        if found is None:
            if re.search(r"\blora_|\boriginal_module\b|\btoken_adapter\b|\bprompt_", name):
                raise BackboneError(f"{file}: {key} is not understood")
            wholes[re.sub(r"\.(base_layer|modules_to_save(\.default)?)\.", ".", name)] = tensor
            continue
        part = "magnitude" if found["magnitude"] else found["low"] + (".bias" if found["part"] == "bias" else "")
        groups.setdefault(found["module"], Group()).parts[part] = tensor
    return Adapter(directory, config, groups, wholes)


def _config(directory: Path) -> dict[str, Any]:
    file = directory / "adapter_config.json"
    try:
        config = json.loads(file.read_text("utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is no object")
        if config.get("peft_type") != "LORA":
            raise ValueError(f"its peft_type is {config.get('peft_type')!r}, and only LORA can be merged")
        if not (isinstance(config.get("r"), int) and isinstance(config.get("lora_alpha"), int | float)):
            raise ValueError("it lacks r or lora_alpha")
        if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
            raise ValueError(
                f"init_lora_weights is {config['init_lora_weights']!r}, which changed the base model's weights; save "
                "it with peft's path_initial_model_for_weight_conversion first"
            )
        if config.get("bias", "none") not in ("none", "all", "lora_only"):
            raise ValueError(f"bias is {config['bias']!r}")
        if named := config.get("target_parameters"):
            raise ValueError(
                f"target_parameters is {json.dumps(named)[:80]}: such as the experts of a mixture, these are stored in "
                "another layout than they are computed with, and cannot be merged on disk"
            )
        for key, value in config.items():
            if key not in _READ | _NEUTRAL and value not in (None, False, [], {}, ""):
                raise ValueError(f"{key} is {json.dumps(value)[:80]}, which is not understood here")
    except FileNotFoundError:
        raise BackboneError(f"{directory} is no adapter: it has no adapter_config.json") from None
    except (OSError, ValueError) as error:
        raise BackboneError(f"{file}: {error}") from None
    config["modules_to_save"] = config.get("modules_to_save") or []
    return config


def _named(names: Any, module: str) -> bool:
    """Whether a list of endings, or a pattern for the whole, names the module."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names or ())


def _listed(value: Any) -> list[Any]:
    return (
        list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [] if value is None else [value]
    )
