"""DeepSpeed's configuration: what the recipe names -> a complete one. Imports deepspeed only to train."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medframe import RecipeError
from medframe_trainers.zero_check import (
    ONLY_PRINT,
    REFUSED,
    REFUSED_OF_ZERO,
    Shared,
    at,
    contradictions,
    counts,
    problems,
    shared,
)

if TYPE_CHECKING:
    from medframe import Dtype
    from medframe_trainers.settings import Settings

# transformers' "auto" is hidden_size squared: in a small model hundreds of reductions, each of which waits.
_SHARDED = {"overlap_comm": True, "contiguous_gradients": True, "reduce_bucket_size": 5_000_000}
_PARAMETERS = {
    **_SHARDED,
    "stage3_prefetch_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto",
}
_CPU = {"device": "cpu", "pin_memory": True}
PRESETS: dict[str, dict[str, Any]] = {
    "zero0": {"stage": 0},
    "zero1": {"stage": 1, **_SHARDED},
    "zero2": {"stage": 2, **_SHARDED},
    "zero3": {"stage": 3, **_PARAMETERS},
    "zero2-offload": {"stage": 2, **_SHARDED, "offload_optimizer": _CPU},
    "zero3-offload": {"stage": 3, **_PARAMETERS, "offload_optimizer": _CPU, "offload_param": _CPU},
}
"""The names that `deepspeed` takes, and the zero_optimization section of each; all else comes from the recipe."""

_FROM_THE_MODEL = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")
"""Sizes of zero_optimization whose "auto" transformers fills once it knows the model's hidden size."""


def section(deepspeed: str | dict[str, Any]) -> dict[str, Any]:
    """The DeepSpeed configuration as the recipe gives it: by a name, a JSON file or a mapping.

    Raises RecipeError for a name that is not known and a file that cannot be read.
    """
    if isinstance(deepspeed, dict):
        return copy.deepcopy(deepspeed)
    if deepspeed in PRESETS:
        return {"zero_optimization": copy.deepcopy(PRESETS[deepspeed])}
    if os.sep not in deepspeed and not deepspeed.endswith(".json"):
        raise RecipeError(f"deepspeed {deepspeed!r} is unknown{_hint(deepspeed)}")
    try:
        content = json.loads(Path(deepspeed).read_text("utf-8-sig"), object_pairs_hook=_once)
    except FileNotFoundError:
        raise RecipeError(f"deepspeed: no file {deepspeed}{_hint(Path(deepspeed).stem)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"deepspeed: {deepspeed} cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise RecipeError(f"deepspeed: {deepspeed}:{error.lineno}: {error.msg}") from None
    except RecursionError:
        raise RecipeError(f"deepspeed: {deepspeed} is nested too deeply") from None
    except ValueError as error:
        raise RecipeError(f"deepspeed: {deepspeed}: {error}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"deepspeed: {deepspeed} holds no mapping")
    return content


def content(settings: Settings) -> dict[str, Any] | None:
    """`section` of what the recipe names; None where it names none."""
    return None if settings.deepspeed is None else section(settings.deepspeed)


def name(deepspeed: str | dict[str, Any]) -> str:
    """What to call the configuration in a message."""
    return "the mapping" if isinstance(deepspeed, dict) else Path(deepspeed).name


def check(settings: Settings) -> None:
    """RecipeError where the DeepSpeed configuration is not known, not possible, or contradicts the recipe.

    What depends on the number of processes and of steps is checked by `config`.
    """
    if settings.deepspeed is None:
        return
    if importlib.util.find_spec("deepspeed") is None:
        raise RecipeError("deepspeed is not installed: pip install deepspeed")
    where, content = name(settings.deepspeed), section(settings.deepspeed)
    if found := problems(settings, content, where):
        raise RecipeError(*(f"deepspeed: {problem}" for problem in found))


def config(
    settings: Settings, *, world: int, accumulate: int, total_steps: int, rows: int | None = None
) -> dict[str, Any]:
    """The configuration for transformers.TrainingArguments(deepspeed=...), complete but for sizes the model decides.

    `accumulate` is the number of micro-batches that each of `world` processes computes in an optimizer step; `rows`
    the samples in a micro-batch where the recipe fixes them. To DeepSpeed a micro-batch is one item. The section
    `scheduler` is left out, and so is `optimizer` where it says what the recipe says: the Trainer runs both.

    Raises RecipeError for a value that contradicts the recipe, or that DeepSpeed refuses.
    """
    assert settings.deepspeed is not None
    where, content = name(settings.deepspeed), section(settings.deepspeed)
    values = [*shared(settings), *counts(settings, world, accumulate, total_steps, rows)]
    if found := list(contradictions(content, values, where)):
        raise RecipeError(*(f"trainer: deepspeed: {problem}" for problem in found))
    for key in ONLY_PRINT:
        content.pop(key, None)
    for key in [key for key in content if key in REFUSED]:
        del content[key]  # said to be off
    content.pop("scheduler", None)
    if _is_the_recipes(content.get("optimizer")):
        del content["optimizer"]
    _fill(content, values)
    _complete(content, settings)
    content |= {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulate,
        "train_batch_size": accumulate * world,
        "gradient_clipping": settings.max_grad_norm,
        "steps_per_print": 2**31,  # never
    }
    if left := [key for key in _autos(content) if key.rpartition(".")[2] not in _FROM_THE_MODEL]:
        raise RecipeError(f'trainer: deepspeed: {where} says {left[0]} "auto", which nothing in the recipe decides')
    if content["zero_optimization"]["stage"] == 0:
        content["gradient_clipping"] = 0.0  # the Trainer's to do: DeepSpeed would not tell the norm
    _validate(content, where)
    return content


def dtype(settings: Settings, wanted: Dtype) -> Dtype:
    """The precision of the weights under DeepSpeed: the one it computes in.

    RecipeError where the recipe names another, `wanted`, for them.
    """
    assert settings.deepspeed is not None
    stage = at(section(settings.deepspeed), "zero_optimization.stage") or 0
    low: Dtype = "bfloat16" if settings.bf16 else "float16"
    # At stage 0 autocast computes in bfloat16 with the weights in float32.
    computed: Dtype = low if settings.fp16 or (settings.bf16 and stage) else "float32"
    if wanted not in ("auto", computed):
        turn_on = ", or trainer.bf16=true" if wanted == "bfloat16" and not settings.bf16 else ""
        raise RecipeError(
            f"backbone.dtype: {wanted}, but under DeepSpeed {'' if stage else 'at stage 0 '}the weights are in "
            f"{computed} here; set backbone.dtype=auto{turn_on}"
        )
    return computed


def prepare() -> None:
    """Keep DeepSpeed from compiling anything: to be called before the process group is made.

    It would build collectives over shared memory there, in a minute, though gloo serves; and each process would
    leave 66 MB in /dev/shm for good.
    """
    import torch

    if torch.accelerator.is_available():
        return
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed.ops

    operators = getattr(deepspeed.ops, "__compatible_ops__", {})  # a private table
    if "deepspeed_shm_comm" in operators:
        operators["deepspeed_shm_comm"] = False


def _is_the_recipes(optimizer: dict[str, Any] | None) -> bool:
    """Whether the section asks for the AdamW that the Trainer makes: `Adam` is AdamW to DeepSpeed unless told."""
    if optimizer is None or str(optimizer.get("type")).lower() not in ("adam", "adamw"):
        return False
    params = optimizer.get("params") or {}
    return params.get("torch_adam", True) is True and params.get("adam_w_mode", True) is True


def _fill(content: dict[str, Any], values: list[Shared]) -> None:
    for key, _, value in values:
        path, _, last = key.rpartition(".")
        parent = at(content, path) if path else content
        if isinstance(parent, dict) and parent.get(last) == "auto":
            parent[last] = value


def _complete(content: dict[str, Any], settings: Settings) -> None:
    """Write down what must be said for this to be the training that the recipe describes."""
    zero = content.setdefault("zero_optimization", {})
    stage = zero.setdefault("stage", 0)
    for key in [key for key in zero if key in REFUSED_OF_ZERO]:
        del zero[key]
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True  # else what is saved holds no weights
    if stage < 3:
        for key in ("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"):
            if zero.get(key) == "auto":
                del zero[key]  # transformers fills it at stage 3 alone
    if "bfloat16" in content:
        content["bf16"] = content.pop("bfloat16")
    for kind, on in (("bf16", settings.bf16), ("fp16", settings.fp16)):
        content[kind] = {**content.get(kind, {}), "enabled": on}
    if stage == 0 and settings.bf16:
        # At stage 0 DeepSpeed's optimizer over bfloat16 weights makes its states by a step of its own, from which
        # Adam counts on: the first updates are too small. Under autocast it is what one process without it does.
        content["bf16"] = {}
        content["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    content.setdefault("zero_allow_untested_optimizer", True)
    if at(zero, "offload_optimizer.device") == "cpu":
        content.setdefault("zero_force_ds_cpu_optimizer", False)  # DeepSpeed's own would have to be compiled
    if optimizer := content.get("optimizer"):
        params = optimizer["params"] = {**(optimizer.get("params") or {})}
        params.setdefault("lr", settings.learning_rate)
        params.setdefault("weight_decay", settings.weight_decay)
        if optimizer["type"].lower() in ("adam", "adamw"):
            params.setdefault("torch_adam", True)


def _validate(content: dict[str, Any], where: str) -> None:
    """RecipeError for what DeepSpeed itself refuses, before a model is loaded."""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.runtime.config import get_communication_data_type
    from deepspeed.runtime.precision_config import get_bfloat16_config, get_float16_config
    from deepspeed.runtime.zero.config import get_zero_config

    zero = {key: value for key, value in content["zero_optimization"].items() if value != "auto"}
    try:
        get_zero_config({"zero_optimization": zero})
        get_bfloat16_config(content)
        get_float16_config(content)
        get_communication_data_type(content)
    except (ValueError, TypeError, AssertionError) as error:  # pydantic's is a ValueError
        raise RecipeError(f"trainer: deepspeed: {where}: {_plain(error)}") from error
    _check_compiler(content.get("optimizer"), where)
    if content["fp16"]["enabled"] and not get_accelerator().is_fp16_supported():
        raise RecipeError("trainer.fp16: DeepSpeed has no float16 on this machine; give trainer.bf16=true instead")


def _plain(error: Exception) -> str:
    """What was refused, without the lines that pydantic puts around it."""
    found = getattr(error, "errors", None)
    if found is None:
        return " ".join(str(error).split())
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'it'}: {one['msg']}" for one in found())


def _check_compiler(optimizer: dict[str, Any] | None, where: str) -> None:
    """RecipeError for an optimizer that DeepSpeed would have to compile where nothing can."""
    from deepspeed.git_version_info import installed_ops

    if optimizer is None or optimizer["type"].lower() == "sgd" or optimizer["params"].get("torch_adam"):
        return
    compiler = os.environ.get("CXX", "c++")
    if not any(installed_ops.values()) and not (shutil.which(compiler) and shutil.which("ninja")):
        raise RecipeError(
            f"trainer: deepspeed: {where} names an optimizer of DeepSpeed's own ({optimizer['type']}), which must be "
            f"compiled, and {compiler} or ninja is not here; leave the section out, and the Trainer makes AdamW"
        )


def _autos(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _autos(value, f"{prefix}{key}.")
        elif value == "auto":
            yield f"{prefix}{key}"


def _hint(word: str) -> str:
    near = get_close_matches(word.lower(), PRESETS, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; take {', '.join(PRESETS)}, a JSON file or a mapping"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return content
