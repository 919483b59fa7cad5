"""The learning rate of every step: transformers' schedules as they are, DeepSpeed's to the last digit, one owner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Medframe

RATE = 3e-4


def rates(make: Callable[[Any], Any], steps: int = 40) -> list[float]:
    """The learning rate that each of so many steps is taken with."""
    import torch

    optimizer = torch.optim.AdamW([torch.zeros(2, requires_grad=True)], lr=RATE)
    scheduler, found = make(optimizer), []
    for _ in range(steps):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return found


def ours(total: int, **fields: Any) -> list[float]:
    from medframe_trainers.full import Full
    from medframe_trainers.schedule import scheduler

    settings = Full(learning_rate=RATE, **fields)
    return rates(lambda optimizer: scheduler(optimizer, settings, total))


@pytest.mark.parametrize("warmup", [0, 0.1, 7])
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        (None, {}),
        ("linear", {}),
        ("cosine", {"num_cycles": 0.4}),
        ("constant", {}),
        ("constant_with_warmup", {}),
        ("polynomial", {"lr_end": 1e-5}),
        ("inverse_sqrt", {}),
        ("cosine_with_min_lr", {"min_lr": 1e-5}),
        ("warmup_stable_decay", {"num_decay_steps": 8}),
    ],
)
def test_a_schedule_of_transformers_is_exactly_transformers(
    name: str | None, kwargs: dict[str, Any], warmup: float
) -> None:
    from transformers import get_scheduler

    steps = 3 if warmup == 0.1 else int(warmup)
    theirs = rates(lambda optimizer: get_scheduler(name or "linear", optimizer, steps, 30, kwargs))
    assert ours(30, lr_scheduler_type=name, lr_scheduler_kwargs=kwargs, warmup_steps=warmup) == theirs


@pytest.mark.parametrize("name", ["linear", "cosine", "constant_with_warmup", "polynomial", "constant"])
def test_a_logarithmic_warm_up_climbs_as_deepspeeds_and_the_schedule_goes_on(name: str) -> None:
    from math import log

    linear = ours(30, lr_scheduler_type=name, warmup_steps=7)
    found = ours(30, lr_scheduler_type=name, warmup_steps=7, warmup_type="log")
    assert found[:7] == pytest.approx([RATE * log(step + 1) / log(7) for step in range(7)], abs=1e-15)
    assert found[7:] == linear[7:]


def test_without_steps_of_warm_up_its_kind_changes_nothing() -> None:
    assert ours(30, lr_scheduler_type="cosine", warmup_type="log") == ours(30, lr_scheduler_type="cosine")


@pytest.mark.parametrize("total", [30, 5])  # the end after the warm-up, and within it
@pytest.mark.parametrize("warmup", [0, 1, 2, 7])
@pytest.mark.parametrize("kind", ["log", "linear"])
@pytest.mark.parametrize(
    ("scheduler", "params"),
    [
        ("WarmupLR", {"warmup_max_lr": "auto"}),
        ("WarmupLR", {"warmup_min_lr": 1e-5, "warmup_max_lr": RATE}),
        ("WarmupDecayLR", {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "total_num_steps": "auto"}),
        ("WarmupDecayLR", {"warmup_min_lr": 1e-5, "warmup_max_lr": "auto", "total_num_steps": "auto"}),
        ("WarmupCosineLR", {"total_num_steps": "auto"}),
        ("WarmupCosineLR", {"total_num_steps": "auto", "warmup_min_ratio": 0.1, "cos_min_ratio": 0.05}),
    ],
)
def test_a_scheduler_of_deepspeeds_gives_its_own_rates(
    scheduler: str, params: dict[str, Any], kind: str, warmup: int, total: int
) -> None:
    from deepspeed.runtime import lr_schedules

    params = {"warmup_num_steps": "auto", "warmup_type": kind, **params}
    found = ours(total, warmup_steps=warmup, deepspeed={"scheduler": {"type": scheduler, "params": params}})
    filled = {"warmup_num_steps": max(1, warmup), "warmup_min_lr": 0, "warmup_max_lr": RATE, "total_num_steps": total}
    params = {key: filled[key] if value == "auto" else value for key, value in params.items()}
    assert found == pytest.approx(
        rates(lambda optimizer: getattr(lr_schedules, scheduler)(optimizer, **params)), abs=1e-12, rel=0
    )


def test_a_shape_may_be_named_twice_where_it_is_the_same() -> None:
    section = {"scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": "auto"}}}
    once = ours(30, warmup_steps=7, deepspeed=section)
    assert ours(30, warmup_steps=7, deepspeed=section, lr_scheduler_type="linear", warmup_type="log") == once


@pytest.mark.parametrize(
    ("scheduler", "options", "said"),
    [
        (
            "{type: WarmupLR}",
            ["trainer.lr_scheduler_type=cosine"],
            "names the scheduler WarmupLR, the recipe lr_scheduler_type cosine: two schedules",
        ),
        (
            "{type: WarmupCosineLR}",
            ["trainer.lr_scheduler_type=cosine"],  # transformers' has another floor, and is a step ahead
            "names the scheduler WarmupCosineLR, the recipe lr_scheduler_type cosine: two schedules",
        ),
        (
            "{type: WarmupLR}",
            ["trainer.warmup_type=linear"],
            "names the scheduler WarmupLR, whose default is warmup_type log, the recipe warmup_type linear",
        ),
        (
            "{type: WarmupLR, params: {warmup_type: linear}}",
            ["trainer.warmup_type=log"],
            "says warmup_type linear, the recipe warmup_type log",
        ),
        ("{type: WarmupLR}", ["trainer.lr_scheduler_kwargs.num_cycles=2"], "which takes its own params"),
        ("{type: OneCycle}", [], "the scheduler 'OneCycle'; take WarmupLR, WarmupDecayLR, WarmupCosineLR"),
        ("{type: LRRangeTest}", [], "the scheduler 'LRRangeTest'"),
        ("{type: WarmupLR, params: {total_num_steps: auto}}", [], "WarmupLR takes no total_num_steps"),
        ("{type: WarmupLR, params: {warmup_type: sqrt}}", [], "says warmup_type 'sqrt'; it is linear or log"),
        ("{type: WarmupCosineLR, params: {cos_min_ratio: auto}}", [], "cos_min_ratio 'auto'; it must be a number"),
        (
            "{type: WarmupLR, params: {warmup_num_steps: 800}}",
            ["trainer.warmup_steps=700"],
            "says scheduler.params.warmup_num_steps 800, the recipe warmup_steps 700",
        ),
        (
            "{type: WarmupDecayLR, params: {warmup_max_lr: 0.001, total_num_steps: 90}}",
            ["trainer.max_steps=80"],
            "says scheduler.params.total_num_steps 90, the recipe max_steps 80",
        ),
        (
            "{type: WarmupLR, params: {warmup_max_lr: 0.1}}",
            [],
            "says scheduler.params.warmup_max_lr 0.1, the recipe learning_rate 0.0002",
        ),
    ],
)
def test_two_schedules_in_one_recipe_are_refused(
    medframe: Medframe, recipe: Path, scheduler: str, options: list[str], said: str
) -> None:
    ended = medframe("run", recipe, "--print", f"trainer.deepspeed={{scheduler: {scheduler}}}", *options)
    assert ended.code == 2
    assert said in ended.err


def test_a_warm_up_for_a_schedule_that_has_none_is_refused(medframe: Medframe, recipe: Path) -> None:
    ended = medframe("run", recipe, "--print", "trainer.lr_scheduler_type=greedy", "trainer.warmup_type=log")
    assert (ended.code, "greedy has no warm-up" in ended.err) == (2, True)


def test_an_argument_that_the_schedule_does_not_take_is_told() -> None:
    import medframe

    with pytest.raises(medframe.RecipeError, match=r"lr_scheduler_type linear: .*num_cycles"):
        ours(30, lr_scheduler_type="linear", lr_scheduler_kwargs={"num_cycles": 2})
