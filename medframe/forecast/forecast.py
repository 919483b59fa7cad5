"""A recipe's memory, largest micro-batch, operations and hours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from medframe.backbone import shapes
from medframe.errors import RecipeError
from medframe.flops import Load, Work, work
from medframe.footprint import Footprint
from medframe.forecast.activations import Activations, activations
from medframe.forecast.devices import FREE, REACHED, Device

if TYPE_CHECKING:
    from medframe.batch import Batches
    from medframe.recipe import Recipe


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the moment when most is held."""

    weights: float
    adapter: float
    """Parameters that the trainer adds."""
    gradients: float
    optimizer: float
    activations: float
    head: float
    """What computing the loss takes beyond the activations that are there by then."""

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


class Forecast:
    """What is foretold of a recipe whose data are prepared."""

    def __init__(self, recipe: Recipe, train: Batches, footprint: Footprint, loads: Sequence[Load]) -> None:
        """`loads` are those of the micro-batches of an epoch."""
        self._recipe, self._train, self._footprint = recipe, train, footprint
        self._loads = loads
        self._config = footprint.model.config.get_text_config()
        self._elements = _elements(footprint, sum(p.numel() for p in shapes(recipe.backbone).parameters()))

    @property
    def precision(self) -> str:
        """In which matrix products are computed."""
        return self._footprint.computes or self._elements.precision

    @cached_property
    def _activations(self) -> Activations | None:
        recipe = self._recipe
        return activations(shapes(recipe.backbone), lambda model: recipe.trainer.footprint(model, recipe.backbone))

    @property
    def largest(self) -> Load:
        """The micro-batch that takes most memory."""
        return max(self._loads, key=lambda load: load.slots)

    def memory(self, processes: int, load: Load | None = None) -> Memory | None:
        """Of each device, for a micro-batch such as this, else the largest; None where the model cannot be measured."""
        if self._activations is None:
            return None
        load, made, counted = load or self.largest, self._footprint, self._elements
        part = {what: processes if what in made.shared else 1 for what in ("optimizer", "gradients", "weights")}
        part |= {what: math.inf for what in made.offloaded}
        weights, adapter = counted.base / part["weights"], counted.adapter / part["weights"]
        if "weights" in made.shared:
            weights += counted.layer  # those of a layer come together for as long as it is computed
        gradients = counted.gradients / part["gradients"]
        optimizer = counted.trained * made.optimizer / part["optimizer"]
        layers, kept = self._config.num_hidden_layers, self._activations
        below = load.slots * (layers - 1) * kept.layer
        top = load.slots * kept.first
        head = load.slots * kept.layer + made.head(int(load.supervised), self._config.vocab_size)
        cast = counted.cast
        held = Memory(weights, adapter, gradients, optimizer, cast + below + top, max(0.0, head - top))
        # In the optimizer's step the activations are gone, and numbers for the largest matrix come.
        step = counted.largest * 2
        if step > held.activations + held.head:
            held = Memory(weights, adapter, gradients, optimizer + step, 0, 0)
        return held

    def fitting(self, device: Device, processes: int) -> float:
        """How many times the largest micro-batch fits on the device; 0 where nothing does."""
        room = device.memory * FREE
        low, high = 0.0, 1024.0
        if not self._fits(low, room, processes):
            return 0.0
        while high - low > low / 256 + 1e-4:
            middle = (low + high) / 2
            low, high = (middle, high) if self._fits(middle, room, processes) else (low, middle)
        return low

    def _fits(self, times: float, room: float, processes: int) -> bool:
        memory = self.memory(processes, self.largest * times)
        return memory is not None and memory.total <= room

    @cached_property
    def _work(self) -> tuple[Work, Work] | None:
        return work(self._footprint.model)

    def steps(self, processes: int) -> int | None:
        """Optimizer steps; None where the trainer cannot tell, or so many processes cannot share a step."""
        try:
            return self._recipe.trainer.steps(self._train, processes)
        except RecipeError:
            return None

    def operations(self, processes: int, spent: bool = False) -> float | None:
        """That the whole training needs; those `spent` include what is computed twice. None where it is not known."""
        steps = self.steps(processes)
        if steps is None or self._work is None:
            return None
        load = sum(self._loads, Load()) * (steps * (self._footprint.micro_batches or processes) / len(self._loads))
        forward, backward = self._work
        again = forward.token * load.tokens + forward.pair * load.pairs
        return forward.of(load) + backward.of(load) + (again if spent and self._footprint.checkpointing else 0)

    def hours(self, device: Device, processes: int) -> float | None:
        """On so many devices, at the assumed share of their peak; without held-out losses and checkpoints."""
        operations = self.operations(processes, spent=True)
        if operations is None:
            return None
        return operations / (device.operations(self.precision) * REACHED * processes) / 3600


def forecast(recipe: Recipe, train: Batches) -> Forecast | None:
    """What can be foretold; None where the trainer does not tell what it holds."""
    footprint = recipe.trainer.footprint(shapes(recipe.backbone), recipe.backbone)
    return footprint and Forecast(recipe, train, footprint, train.epoch(0).loads())


@dataclass(frozen=True)
class _Elements:
    """Bytes of a footprint's parameters by what they are, and elements of those that are trained."""

    base: float
    adapter: float
    gradients: float
    trained: float
    largest: float
    """Bytes of float32 for the largest matrix that is trained."""
    layer: float
    """Bytes of a layer's weights."""
    cast: float
    """Bytes of the weights' copies in the precision that autocast computes in."""
    precision: str


def _elements(footprint: Footprint, base: int) -> _Elements:
    """`base`: the elements of the model before the trainer added to it."""
    model: Any = footprint.model
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    added = sum(p.numel() for p in parameters) - base
    bytes_added = added * max((p.itemsize for p in trained), default=0) if added else 0
    ends = {*model.get_input_embeddings().parameters()}
    cast = sum(
        2 * p.numel()
        for p in parameters
        if footprint.computes and p.ndim == 2 and str(p.dtype) != f"torch.{footprint.computes}" and p not in ends
    )
    layers = [parameter for name, parameter in model.named_parameters() if ".0." in name]
    return _Elements(
        base=sum(p.nbytes for p in parameters) - bytes_added,
        adapter=bytes_added,
        gradients=sum(p.numel() * (footprint.gradient or p.itemsize) for p in trained),
        trained=sum(p.numel() for p in trained),
        largest=max((4 * p.numel() for p in trained), default=0),
        layer=sum(p.nbytes for p in layers),
        cast=cast,
        precision=str(max(parameters, key=lambda p: p.numel()).dtype).removeprefix("torch."),
    )
