"""What the trainers have in common: the settings of a run of the Hugging Face Trainer, and their checks."""

from __future__ import annotations

import ast
import importlib.util
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from medframe import RecipeError, Trainer
from medframe_trainers import schedule, trackers, zero
from medframe_trainers.stream import Stream

if TYPE_CHECKING:
    from medframe import Batches


@dataclass(kw_only=True)
class Settings(Trainer):
    """The recipe section that `lora` and `full` share."""

    path_fields: ClassVar[tuple[str, ...]] = ("deepspeed",)
    path_words: ClassVar[tuple[str, ...]] = tuple(zero.PRESETS)

    max_steps: int | None = None
    """Optimizer steps; null: num_train_epochs decides."""
    num_train_epochs: float = 3.0
    """Passes over the training examples; unused where max_steps is given."""
    learning_rate: float = 2e-4
    """Peak learning rate."""
    lr_scheduler_type: str | None = None
    """Schedule by transformers' name, such as linear, cosine, constant; null: the DeepSpeed file's, else linear."""
    lr_scheduler_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the schedule."""
    warmup_steps: float = 0.0
    """Steps of warm-up; below 1, a share of all steps."""
    warmup_type: Literal["linear", "log"] | None = None
    """How the learning rate climbs; log: as log(step + 1), DeepSpeed's way; null: the DeepSpeed file's, else linear."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    adam_beta1: float = 0.9
    """AdamW's first decay rate."""
    adam_beta2: float = 0.999
    """AdamW's second decay rate."""
    adam_epsilon: float = 1e-8
    """AdamW's epsilon."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0: never."""
    max_grad_norm_growth: float | None = 1000.0
    """Stop when gradients exceed the usual norm of the last 100 steps by this factor, 3 steps running; null: never."""
    optim: str = "adamw_torch"
    """Optimizer by transformers' name."""
    gradient_accumulation_steps: int | None = None
    """Micro-batches in an optimizer step, over all processes, which share them; null: one for each process."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a quarter more time."""
    bf16: bool = False
    """Compute in bfloat16 under autocast."""
    fp16: bool = False
    """Compute in float16 under autocast, with loss scaling."""
    deepspeed: str | dict[str, Any] | None = None
    """zero0 to zero3, zero2-offload, zero3-offload, a DeepSpeed JSON file or its content; null: plain data parallel."""
    neftune_noise_alpha: float | None = None
    """Noise on the input embeddings while training (NEFTune)."""
    logging_steps: int = 10
    """Optimizer steps between two lines of metrics.jsonl."""
    eval_steps: int | None = None
    """Optimizer steps between two held-out losses; null: as save_steps."""
    save_steps: int = 100
    """Optimizer steps between two checkpoints."""
    keep: int = 2
    """Checkpoints kept."""
    report_to: list[str] = field(default_factory=list)
    """Trackers that are told what metrics.jsonl holds: tensorboard, wandb, mlflow."""
    training_arguments: dict[str, Any] = field(default_factory=dict)
    """Any other argument of transformers.TrainingArguments, by its own name."""

    def __post_init__(self) -> None:
        for name in (*_COUNTS, "keep"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        for name in ("learning_rate", "adam_epsilon"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}")
        if self.max_grad_norm_growth is not None and not 1 < self.max_grad_norm_growth < math.inf:
            raise ValueError(f"max_grad_norm_growth must be above 1, not {self.max_grad_norm_growth}")
        if self.bf16 and self.fp16:
            raise ValueError("bf16 and fp16 are both on: choose one")
        for name, file, enum in _NAMES:
            value = getattr(self, name)
            if value is not None and value not in (known := _members(file, enum)):
                raise ValueError(f"{name} {value!r} is unknown to the installed transformers{_hint(value, known)}")
        if not 0 < self.num_train_epochs < math.inf:
            raise ValueError(f"num_train_epochs must be above 0 and finite, not {self.num_train_epochs}")
        trackers.check(self.report_to)
        if self.training_arguments:
            self._check_training_arguments()
        zero.check(self)
        schedule.check(self)

    def _check_training_arguments(self) -> None:
        own = set(_OWN) | {"deepspeed", "keep", "report_to", "save_total_limit"}
        for name in self.training_arguments:
            if name in own:
                raise ValueError(f"training_arguments.{name} is a field of the trainer itself: name it once, there")
            if name in _FRAMES:
                raise ValueError(f"training_arguments.{name} is the frame's to set, or would break what it promises")
            if name not in _known_arguments():
                hint = _hint(name, set(_known_arguments()) - own - set(_FRAMES))
                raise ValueError(f"training_arguments.{name} is no argument of the installed transformers{hint}")

    def warmup(self, total_steps: int) -> int:
        """Steps of warm-up of a training of so many steps."""
        share = self.warmup_steps
        return int(share) if share >= 1 else math.ceil(total_steps * share)

    def steps(self, train: Batches, world: int = 1) -> int:
        per_step = self.per_step(world)
        return self.max_steps or math.ceil(len(Stream(train, self.num_train_epochs, None)) / per_step)

    def per_step(self, world: int, begun_with: int | None = None) -> int:
        """Micro-batches in an optimizer step over all processes; a resumed run keeps those that it was `begun_with`.

        RecipeError when `world` processes cannot share them evenly.
        """
        per_step = begun_with or self.gradient_accumulation_steps or world
        if per_step % world:
            raise RecipeError(
                f"trainer.gradient_accumulation_steps: the {per_step} micro-batches of a step cannot be shared evenly "
                f"by {world} processes; make it a multiple of {world}"
            )
        return per_step

    def arguments(self) -> dict[str, Any]:
        """Arguments of transformers.TrainingArguments, by name; max_steps and num_train_epochs among them."""
        arguments = {name: getattr(self, name) for name in _OWN}
        arguments["lr_scheduler_type"] = self.lr_scheduler_type or "linear"
        arguments["eval_steps"] = self.eval_steps or self.save_steps
        if not self.gradient_checkpointing:
            del arguments["gradient_checkpointing"]  # a deprecated name, though the one that users know
        return {**arguments, **self.training_arguments}


_OWN = (
    "max_steps",
    "num_train_epochs",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "optim",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "bf16",
    "fp16",
    "neftune_noise_alpha",
    "logging_steps",
    "eval_steps",
    "save_steps",
)
"""Fields that go to TrainingArguments under their own names."""
_FRAMES = (
    "output_dir",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "seed",
    "data_seed",
    "remove_unused_columns",
    "disable_tqdm",
    "save_strategy",
    "eval_strategy",
    "eval_on_start",
    "logging_nan_inf_filter",
    "dataloader_pin_memory",
    "save_only_model",
    "ignore_data_skip",
    "auto_find_batch_size",
    "dataloader_drop_last",
    "label_smoothing_factor",
    "load_best_model_at_end",
    "push_to_hub",
    "hub_model_id",
    "hub_strategy",
    "hub_token",
    "fsdp",
    "fsdp_config",
    "train_sampling_strategy",
    "use_cache",
    "resume_from_checkpoint",
)


_COUNTS = ("gradient_accumulation_steps", "logging_steps", "save_steps", "eval_steps", "max_steps")
_NAMES = (
    ("lr_scheduler_type", "trainer_utils.py", "SchedulerType"),
    ("optim", "training_args.py", "OptimizerNames"),
)
"""Fields whose values are the members of an enumeration in transformers: its file and its name."""


def _hint(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _known_arguments() -> list[str]:
    body = _class_body("training_args.py", "TrainingArguments")
    return [s.target.id for s in body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)]


def _members(file: str, enum: str) -> list[str]:
    return [
        str(statement.value.value)
        for statement in _class_body(file, enum)
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
    ]


@cache
def _class_body(file: str, name: str) -> list[ast.stmt]:
    """The statements of a class of the installed transformers, read from its text: importing it would take seconds."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / file).read_text("utf-8"))
    return next((node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), [])
