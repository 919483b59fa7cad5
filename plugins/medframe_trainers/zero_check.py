"""What a DeepSpeed configuration may say beside a recipe: what is refused, and what contradicts it."""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medframe_trainers.settings import Settings

Shared = tuple[str, str, Any]
"""What both may say: DeepSpeed's key, the recipe's key, the recipe's value."""

_TAKEN = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "fp16",
    "bf16",
    "bfloat16",
    "zero_optimization",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "communication_data_type",
    "data_types",
    "prescale_gradients",
    "gradient_predivide_factor",
)
ONLY_PRINT = ("steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "comms_logger", "log_level")
"""What these would print has no place beside medframe's own log: they are accepted and left out."""
_DATA_PARALLEL = "training is data parallel, with ZeRO"
_TRACKERS = "DeepSpeed's trackers write past medframe's log"
_REMOVED = "the installed DeepSpeed has it no more"
REFUSED = {
    "tensor_parallel": _DATA_PARALLEL,
    "autotp_size": _DATA_PARALLEL,
    "pipeline": _DATA_PARALLEL,
    "sequence_parallel_size": _DATA_PARALLEL,
    "expert_parallel": _DATA_PARALLEL,
    "inference": "this is a training",
    "hybrid_engine": "this is a training",
    "data_efficiency": "medframe orders the data",
    "dataloader_drop_last": "medframe orders the data",
    "curriculum_learning": "medframe orders the data",
    "activation_checkpointing": "the model's layers do not read it; set gradient_checkpointing: true",
    "checkpoint": "checkpoints are medframe's",
    "nebula": "checkpoints are medframe's",
    "datastates": "checkpoints are medframe's",
    "torch_autocast": "the recipe's bf16 and fp16 say in what precision to compute",
    "amp": "the recipe's bf16 and fp16 say in what precision to compute",
    "managed_gradient_accumulation": "the recipe's gradient_accumulation_steps says when a step is taken",
    "gradient_allreduce_op": "the loss is divided for gradients that are averaged",
    "weight_quantization": "the weights that are saved are those that were trained",
    "compression_training": "the weights that are saved are those that were trained",
    "tensorboard": _TRACKERS,
    "wandb": _TRACKERS,
    "csv_monitor": _TRACKERS,
    "comet": _TRACKERS,
    "flops_profiler": "it prints and writes files past medframe's log",
    "autotuning": "it starts trainings of its own",
    "compile": "it needs a compiler",
    "aio": "nothing is offloaded to a disk",
    "elasticity": _REMOVED,
    "quantize_training": _REMOVED,
    "sparse_gradients": _REMOVED,
    "sparse_attention": _REMOVED,
    "eigenvalue": _REMOVED,
    "progressive_layer_drop": _REMOVED,
}
REFUSED_OF_ZERO = {
    "zenflow": "its steps are not those of the recipe's optimizer",
    "zero_quantized_weights": "it needs a compiler",
    "zero_quantized_nontrainable_weights": "it needs a compiler",
    "zero_quantized_gradients": "it needs a compiler",
    "legacy_stage1": _REMOVED,
    "elastic_checkpoint": "checkpoints are medframe's",
    "cpu_offload": 'an old name; write "offload_optimizer": {"device": "cpu"}',
    "cpu_offload_param": 'an old name; write "offload_param": {"device": "cpu"}',
}
_SECTIONS = ("optimizer", "scheduler", "fp16", "bf16", "bfloat16", "zero_optimization", "data_types")
_CLASSES = {
    "fp16": ("precision_config.py", "DeepSpeedFP16Config"),
    "bf16": ("precision_config.py", "DeepSpeedBF16Config"),
    "bfloat16": ("precision_config.py", "DeepSpeedBF16Config"),
    "zero_optimization": ("zero/config.py", "DeepSpeedZeroConfig"),
    "zero_optimization.offload_param": ("zero/offload_config.py", "DeepSpeedZeroOffloadParamConfig"),
    "zero_optimization.offload_optimizer": ("zero/offload_config.py", "DeepSpeedZeroOffloadOptimizerConfig"),
}
"""The sections whose values have types, and the classes of DeepSpeed that say which."""
_OPTIMIZERS = ("Adam", "AdamW", "SGD")
_BY_ELEMENT = ("adamw_torch", "adamw_torch_fused", "rmsprop", "sgd")
"""Of the recipe's optimizers, those that treat each element by itself, and keep nothing that they make at the start."""


def problems(settings: Settings, content: dict[str, Any], where: str) -> list[str]:
    """What of the configuration `content`, called `where`, is not known, not possible, or contradicts the recipe."""
    found = [*_wrong_keys(content, where), *_wrong_zero(content, where), *_wrong_optimizer(content, where, settings)]
    return found or [*contradictions(content, shared(settings), where), *_wrong_precision(content, where, settings)]


def shared(settings: Settings) -> list[Shared]:
    """What both may say, where neither the number of processes nor that of steps decides it."""
    betas = [settings.adam_beta1, settings.adam_beta2]
    values: list[Shared] = [
        ("optimizer.params.lr", "learning_rate", settings.learning_rate),
        ("optimizer.params.weight_decay", "weight_decay", settings.weight_decay),
        ("optimizer.params.betas", "adam_beta1, adam_beta2", betas),
        ("optimizer.params.eps", "adam_epsilon", settings.adam_epsilon),
        ("gradient_clipping", "max_grad_norm", settings.max_grad_norm),
        ("bf16.enabled", "bf16", settings.bf16),
        ("bfloat16.enabled", "bf16", settings.bf16),
        ("fp16.enabled", "fp16", settings.fp16),
        ("scheduler.params.warmup_max_lr", "learning_rate", settings.learning_rate),
    ]
    if settings.warmup_steps >= 1 or not settings.warmup_steps:
        values.append(_warmup(int(settings.warmup_steps)))
    if settings.max_steps:
        values.append(("scheduler.params.total_num_steps", "max_steps", settings.max_steps))
    return values


def counts(settings: Settings, world: int, accumulate: int, total_steps: int, rows: int | None) -> list[Shared]:
    """As `shared`, what both may say of counts that the number of processes and of steps decides."""
    samples = "batching.rows" if rows else "one packed row in a micro-batch:"
    whole = "batching.rows x gradient_accumulation_steps" if rows else "gradient_accumulation_steps"
    rows = rows or 1
    return [
        _warmup(settings.warmup(total_steps)),
        ("scheduler.params.total_num_steps", "steps", total_steps),
        ("train_micro_batch_size_per_gpu", samples, rows),
        ("gradient_accumulation_steps", f"gradient_accumulation_steps, on each of {world} processes,", accumulate),
        ("train_batch_size", whole, rows * accumulate * world),
    ]


def _warmup(steps: int) -> Shared:
    # DeepSpeed takes no 0; transformers' integration makes it 1.
    return ("scheduler.params.warmup_num_steps", "warmup_steps", max(1, steps))


def contradictions(content: dict[str, Any], values: list[Shared], where: str) -> Iterator[str]:
    for key, recipes, value in values:
        theirs = at(content, key)
        if theirs is not None and theirs != "auto" and not _equal(theirs, value):
            yield (
                f"{where} says {key} {_shown(theirs)}, the recipe {recipes} {_shown(value)}; "
                'make them equal or write "auto"'
            )


def _equal(theirs: Any, ours: Any) -> bool:
    if isinstance(ours, bool) or isinstance(theirs, bool):
        return theirs is ours
    if isinstance(ours, list):
        return isinstance(theirs, list) and len(theirs) == len(ours) and all(map(_equal, theirs, ours))
    return isinstance(theirs, int | float) and float(theirs) == float(ours)


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _wrong_keys(content: dict[str, Any], where: str) -> Iterator[str]:
    for key, value in content.items():
        if key in REFUSED:
            if not _off(value):
                yield f"{where} has {key}, which cannot be honoured here: {REFUSED[key]}"
        elif key not in _TAKEN and key not in ONLY_PRINT:
            near = get_close_matches(key, (*_TAKEN, *ONLY_PRINT), n=1)
            yield f"{where} has {key}, which DeepSpeed does not know" + (f"; did you mean {near[0]!r}?" if near else "")
        elif key in _SECTIONS:
            if not isinstance(value, dict):
                yield f"{where} says {key} {_shown(value)}; it must be a mapping"
            elif "params" in value and not isinstance(value["params"], dict):
                yield f"{where} says {key}.params {_shown(value['params'])}; it must be a mapping"
            elif key in _CLASSES:
                yield from _wrong_values(value, f"{where} says {key}", key)
        elif key in _KINDS and not _KINDS[key](value):
            yield f"{where} says {key} {_shown(value)}; it must be {_NAMES[_KINDS[key]]}"
    data_types = content.get("data_types")
    for key, value in data_types.items() if isinstance(data_types, dict) else ():
        if key != "grad_accum_dtype":
            yield f"{where} has data_types.{key}, which cannot be honoured here: {REFUSED['torch_autocast']}"
        elif not _is_dtype(value):
            yield f"{where} says data_types.{key} {_shown(value)}; it must be {_NAMES[_is_dtype]}"


def _wrong_values(section: dict[str, Any], said: str, path: str) -> Iterator[str]:
    """What of a section is not of the kind that DeepSpeed takes there; `said` begins the message."""
    fields = _fields(*_CLASSES[path])
    for key, value in section.items():
        inner = f"{path}.{key}"
        if value is None or value == "auto" or key not in fields:
            continue
        if inner in _CLASSES:
            if isinstance(value, dict):
                yield from _wrong_values(value, f"{said}.{key}", inner)
            else:
                yield f"{said}.{key} {_shown(value)}; it must be a mapping"
        fits = next((fits for kind, fits in _OF_KIND.items() if kind in fields[key]), None)
        if fits and not fits(value):
            yield f"{said}.{key} {_shown(value)}; it must be {_NAMES[fits]}"


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and 0 <= value < float("inf") and value == int(value)


def _is_dtype(value: Any) -> bool:
    return value in (None, "fp32", "fp16", "bf16")


_NAMES = {
    _is_bool: "true or false",
    _is_number: "a number",
    _is_whole: "a whole number from 0 on",
    _is_dtype: "fp32, fp16 or bf16",
}
_OF_KIND = {"bool": _is_bool, "int": _is_whole, "float": _is_number}
_KINDS = {
    "zero_allow_untested_optimizer": _is_bool,
    "zero_force_ds_cpu_optimizer": _is_bool,
    "prescale_gradients": _is_bool,
    "gradient_predivide_factor": _is_number,
    "communication_data_type": _is_dtype,
}


def _off(value: Any) -> bool:
    return value in (None, False, {}) or (isinstance(value, dict) and value.get("enabled") is False)


def _wrong_zero(content: dict[str, Any], where: str) -> Iterator[str]:
    zero = content.get("zero_optimization", {})
    if not isinstance(zero, dict):
        return  # told already
    stage = zero.get("stage", 0)
    if type(stage) is not int or not 0 <= stage <= 3:
        yield f"{where} says zero_optimization.stage {_shown(stage)}; it is 0, 1, 2 or 3"
        return
    for key, value in zero.items():
        if key in REFUSED_OF_ZERO:
            if not _off(value):
                yield f"{where} has zero_optimization.{key}, which cannot be honoured here: {REFUSED_OF_ZERO[key]}"
        elif key not in (known := _fields(*_CLASSES["zero_optimization"])):
            near = get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            yield f"{where} has zero_optimization.{key}, which DeepSpeed does not know{hint}"
    for key, least in (("offload_optimizer", 1), ("offload_param", 3)):
        device = at(zero, f"{key}.device") or "none"
        if device not in ("none", "cpu"):
            yield f"{where} says zero_optimization.{key}.device {_shown(device)}; it can be cpu or none here"
        elif device == "cpu" and stage < least:
            yield f"{where} has zero_optimization.{key}, which needs stage {least} or more, not {stage}"


def _wrong_optimizer(content: dict[str, Any], where: str, settings: Settings) -> Iterator[str]:
    optimizer = content.get("optimizer")
    if not isinstance(optimizer, dict):
        if settings.optim not in _BY_ELEMENT:
            yield (
                f"with it, optim {settings.optim} would do something else: DeepSpeed hands an optimizer parts of many "
                f"tensors joined into one; take {', '.join(_BY_ELEMENT)}"
            )
        return
    kind = optimizer.get("type")
    known = ("lr", "betas", "eps", "weight_decay", "momentum", "nesterov", "torch_adam", "adam_w_mode")
    params = optimizer.get("params")
    for key in params if isinstance(params, dict) else ():
        if key not in known:
            yield f"{where} says optimizer.params.{key}, which is not read; it takes {', '.join(known)}"
    if str(kind).lower() not in map(str.lower, _OPTIMIZERS):
        yield (
            f"{where} names the optimizer {_shown(kind)}; take {', '.join(_OPTIMIZERS)}, or leave it out and name optim"
        )
    elif settings.optim not in ("adamw_torch", "adamw_torch_fused"):
        yield f"{where} names the optimizer {kind}, the recipe optim {settings.optim}: two optimizers; remove one"


def _wrong_precision(content: dict[str, Any], where: str, settings: Settings) -> Iterator[str]:
    if settings.fp16 and not at(content, "zero_optimization.stage"):
        # FP16_UnfusedOptimizer makes its states by a step of its own, from which Adam counts on.
        yield f"{where}: in float16, stage 0 of DeepSpeed starts Adam one step late; take zero1, or bf16: true"


def at(content: Any, key: str) -> Any:
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


@cache
def _fields(file: str, name: str) -> dict[str, str]:
    """Key -> annotation of a section, read from the installed DeepSpeed's text: importing it would take seconds."""
    spec = importlib.util.find_spec("deepspeed")
    assert spec is not None and spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "runtime" / file).read_text("utf-8"))
    (body,) = (n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    found = {}
    for statement in body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            keywords = statement.value.keywords if isinstance(statement.value, ast.Call) else []
            alias = [k.value.value for k in keywords if k.arg == "alias" and isinstance(k.value, ast.Constant)]
            found[str(alias[0]) if alias else statement.target.id] = ast.unparse(statement.annotation)
    return found
