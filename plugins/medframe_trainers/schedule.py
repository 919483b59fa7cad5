"""Learning-rate schedules: transformers' by name, with a linear or a logarithmic warm-up, and DeepSpeed's own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medframe import RecipeError
from medframe_trainers import zero

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from medframe_trainers.settings import Settings

WARMUP_TYPES = ("linear", "log")
DEEPSPEEDS = {"WarmupLR": "constant_with_warmup", "WarmupDecayLR": "linear", "WarmupCosineLR": None}
"""DeepSpeed's schedules that are run here, and the one of transformers that has the same shape after the warm-up."""
_NOT_FACTORS = ("reduce_lr_on_plateau", "greedy")
"""Schedules that follow the loss, not the step."""


@dataclass(frozen=True)
class Warmup:
    """Where the factor of the learning rate climbs from `start` to 1: after `steps` steps the schedule goes on."""

    type: str
    steps: int
    start: float = 0.0

    def __call__(self, step: int) -> float:
        """The factor of a step below `steps`; log(step + 1) / log(steps) is DeepSpeed's own warm-up."""
        climbed = math.log(step + 1) / math.log(self.steps) if self.type == "log" else step / self.steps
        return self.start + (1 - self.start) * climbed


def scheduler(optimizer: Optimizer, settings: Settings, total_steps: int) -> LRScheduler:
    """The scheduler of the optimizer's learning rate that the recipe asks for, to be stepped once a step.

    A scheduler that the recipe's DeepSpeed section names gives the same rates as DeepSpeed's own, step by step.
    """
    from torch.optim.lr_scheduler import LambdaLR

    section = _section(settings)
    if section:
        return LambdaLR(optimizer, _deepspeeds(section, settings, total_steps))
    name, steps = settings.lr_scheduler_type or "linear", settings.warmup(total_steps)
    if settings.warmup_type != "log" or not steps:
        scheduler: LRScheduler = _transformers(optimizer, name, steps, total_steps, settings.lr_scheduler_kwargs)
        return scheduler
    after = _transformers(
        _sample(settings.learning_rate), name, steps, total_steps, settings.lr_scheduler_kwargs
    ).lr_lambdas[0]
    # As DeepSpeed does: over one step there is no logarithm to climb by.
    return LambdaLR(optimizer, _joined(Warmup("log", max(2, steps)), after))


def check(settings: Settings) -> None:
    """ValueError where two parts of the recipe name schedules that differ, or one that cannot be run."""
    section = _section(settings)
    name, kind = settings.lr_scheduler_type, settings.warmup_type
    if not section:
        if kind == "log" and name in _NOT_FACTORS:
            raise ValueError(f"warmup_type log: lr_scheduler_type {name} has no warm-up")
        return
    where, theirs, params = zero.name(settings.deepspeed or {}), str(section.get("type")), section.get("params") or {}
    _check_section(where, theirs, params)
    if name and name != DEEPSPEEDS[theirs]:
        raise ValueError(
            f"deepspeed: {where} names the scheduler {theirs}, the recipe lr_scheduler_type {name}: "
            "two schedules; remove one of them"
        )
    if settings.lr_scheduler_kwargs:
        raise ValueError(
            f"lr_scheduler_kwargs: {where} names the scheduler {theirs}, which takes its own params; remove one of them"
        )
    their_kind = params.get("warmup_type", "log")
    if kind and kind != their_kind:
        said = "says" if "warmup_type" in params else f"names the scheduler {theirs}, whose default is"
        raise ValueError(
            f"deepspeed: {where} {said} warmup_type {their_kind}, the recipe warmup_type {kind}: remove one of them"
        )


def _check_section(where: str, theirs: str, params: dict[str, Any]) -> None:
    """ValueError unless it is a scheduler of DeepSpeed's that is run here, with parameters that it has."""
    if theirs not in DEEPSPEEDS:
        raise ValueError(
            f"deepspeed: {where} names the scheduler {theirs!r}; take {', '.join(DEEPSPEEDS)}, or leave it out and "
            "name lr_scheduler_type"
        )
    known = ["warmup_num_steps", "warmup_type"]
    known += ["warmup_min_ratio", "cos_min_ratio"] if theirs == "WarmupCosineLR" else ["warmup_min_lr", "warmup_max_lr"]
    known += [] if theirs == "WarmupLR" else ["total_num_steps"]
    for key, value in params.items():
        if key not in known:
            raise ValueError(f"deepspeed: {where}: {theirs} takes no {key} here; it takes {', '.join(known)}")
        if key == "warmup_type" and value not in WARMUP_TYPES:
            raise ValueError(f"deepspeed: {where} says warmup_type {value!r}; it is linear or log")
        if "min" in key and type(value) not in (int, float) and (key, value) != ("warmup_min_lr", "auto"):
            raise ValueError(f"deepspeed: {where} says scheduler.params.{key} {value!r}; it must be a number")


def _section(settings: Settings) -> dict[str, Any]:
    """The scheduler section of the recipe's DeepSpeed configuration; empty where there is none."""
    return (zero.section(settings.deepspeed).get("scheduler") if settings.deepspeed is not None else None) or {}


def _deepspeeds(section: dict[str, Any], settings: Settings, total_steps: int) -> Callable[[int], float]:
    """What deepspeed.runtime.lr_schedules makes of the section, as factors of the learning rate."""
    params, theirs = section.get("params") or {}, section["type"]
    # As transformers' integration and then DeepSpeed raise it: no warm-up is one of 1 step, and 1 step becomes 2.
    steps = max(2, settings.warmup(total_steps))
    kind, span = params.get("warmup_type", "log"), max(1, total_steps - steps)
    if theirs == "WarmupCosineLR":
        start, low = float(params.get("warmup_min_ratio", 0)), float(params.get("cos_min_ratio", 0.0001))

        def after(step: int) -> float:
            done = min(1.0, (step - steps + 1) / span)
            return max(0.0, low + (1 - low) * (1 + math.cos(math.pi * done)) / 2)
    else:
        lowest = params.get("warmup_min_lr", 0)
        start = 0.0 if lowest == "auto" else float(lowest) / settings.learning_rate

        def after(step: int) -> float:
            falling = theirs == "WarmupDecayLR"
            return start + (1 - start) * max(0.0, (total_steps - step) / span) if falling else 1.0

    rates = _joined(Warmup(kind, steps, start), after)
    # Its schedulers count from -1, so that they are a step behind: the rate of the first step is one of its own.
    first = 0.0 if theirs == "WarmupCosineLR" else start
    return lambda step: rates(step - 1) if step else first


def _joined(warmup: Warmup, after: Callable[[int], float]) -> Callable[[int], float]:
    return lambda step: warmup(step) if step < warmup.steps else after(step)


def _transformers(optimizer: Optimizer, name: str, steps: int, total_steps: int, kwargs: dict[str, Any]) -> Any:
    from transformers import get_scheduler

    try:
        return get_scheduler(name, optimizer, steps, total_steps, kwargs)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"trainer.lr_scheduler_type {name}: {' '.join(str(error).split())}") from error


def _sample(learning_rate: float) -> Optimizer:
    """An optimizer to make a schedule for whose factors alone are wanted."""
    import torch

    return torch.optim.SGD([torch.zeros(1)], lr=learning_rate)
