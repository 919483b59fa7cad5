"""The forecast as `medframe check` reports it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from medframe.forecast.changes import fitting
from medframe.forecast.devices import REACHED, Device, device, gpus
from medframe.forecast.forecast import Forecast, forecast

if TYPE_CHECKING:
    from medframe.batch import Batches
    from medframe.compose import Composed
    from medframe.recipe import Recipe

_COUNTS = (1, 4, 8)
_LIKELY = "a100-80"
"""The device for which changes are sought where none is named."""


def foretold(composed: Composed, recipe: Recipe, train: Batches, named: str | None) -> dict[str, Any]:
    """Memory in bytes on each device, operations, and for each device what fits and the hours on 1, 4 and 8 of them.

    Where the recipe does not fit, the changes with which it does. Errors as of `forecast`.
    """
    told = forecast(recipe, train)
    chosen = (device(named),) if named else gpus()
    memory = told.memory(recipe.processes, gpu=named != "cpu")
    found: dict[str, Any] = {
        "memory": None if memory is None else {**asdict(memory), "total": memory.total},
        "operations": told.operations(recipe.processes),
        "reached": REACHED,
        "devices": [_on(each, told, recipe) for each in chosen],
        "on": None,
        "changes": [],
    }
    wanted = next((each for each in chosen if each.name in (named, _LIKELY)), None)
    if memory is not None and wanted and told.fitting(wanted, recipe.processes) < 1:
        found["on"] = wanted.name
        found["changes"] = [
            {"overrides": change.overrides, "total": change.memory.total, "hours": change.hours}
            for change in fitting(composed, recipe, train, told, wanted)
        ]
    return found


def _on(device: Device, told: Forecast, recipe: Recipe) -> dict[str, Any]:
    known = told.memory(recipe.processes, gpu=device.name != "cpu") is not None
    times = told.fitting(device, recipe.processes) if known else None
    return {
        "name": device.name,
        "memory": device.memory,
        "times": times,
        "fits": "unknown" if times is None else _words(times, told),
        "hours": {
            count: told.hours(device, count) if not known or told.fits(device, count) else None
            for count in ((1,) if device.name == "cpu" else _COUNTS)
        },
    }


def _words(times: float, told: Forecast) -> str:
    smaller = told.smaller(times) if times else None
    if times >= 1:
        return f"fits, up to {smaller[0]}" if smaller else "fits"
    return f"fits from {smaller[0]} down" if smaller else "does not fit"
