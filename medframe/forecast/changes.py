"""The changes to a recipe that make it fit a device: those that cost least first, each computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from medframe.batch import Batches
from medframe.compose import Composed, changed
from medframe.errors import MedframeError
from medframe.forecast.devices import Device
from medframe.forecast.forecast import Forecast, Memory, Unknown, forecast
from medframe.recipe import Recipe, build


@dataclass(frozen=True)
class Change:
    """Overrides with which a recipe fits."""

    overrides: tuple[str, ...]
    memory: Memory
    hours: float | None


def fitting(composed: Composed, recipe: Recipe, train: Batches, told: Forecast, device: Device) -> list[Change]:
    """At most three ways to have the recipe fit the device, none of which holds another."""
    found: list[Change] = []
    for overrides in _combinations(recipe, told):
        if any(set(change.overrides) <= set(overrides) for change in found):
            continue
        try:
            change = _fits(overrides, build(changed(composed, overrides)), train, device)
        except (MedframeError, Unknown):
            continue  # these cannot be together
        if change:
            found.append(change)
        if len(found) == 3:
            break
    return found


def _combinations(recipe: Recipe, told: Forecast) -> Iterator[tuple[str, ...]]:
    """Of what the frame and the trainer know to save memory, none, then one and two at a time."""
    singles = [*(["backbone.dtype=bfloat16"] if told.precision == "float32" else []), *told.cheaper(recipe.processes)]
    yield ()
    for count in (1, 2):
        for chosen in combinations(singles, count):
            overrides = tuple(override for change in chosen for override in change.split())
            if len({override.partition("=")[0] for override in overrides}) == len(overrides):
                yield overrides


def _fits(overrides: tuple[str, ...], recipe: Recipe, train: Batches, device: Device) -> Change | None:
    """The change, with a smaller micro-batch where it takes one; None where it does not fit at all."""
    told = forecast(recipe, train)
    times = told.fitting(device, recipe.processes)
    if not times:
        return None
    load = told.largest
    if times < 1:
        smaller = told.smaller(times)
        if smaller is None:
            return None
        override, times = smaller
        overrides, load = (*overrides, override), load * times
    memory = told.memory(recipe.processes, load, device.name != "cpu")
    assert memory
    return Change(overrides, memory, told.hours(device, recipe.processes))
