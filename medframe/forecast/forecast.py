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
from medframe.quantised import saved

if TYPE_CHECKING:
    from medframe.batch import Batches
    from medframe.recipe import Recipe


SHARED = ("optimizer", "gradients", "weights")
"""What processes may each hold a share of."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the moment when most is held."""

    weights: float
    adapter: float
    """Parameters that the trainer adds."""
    gradients: float
    activations: float
    """And what computing takes for a moment."""
    head: float
    """Logits, and what is made of them."""
    optimizer: float

    @property
    def total(self) -> float:
        return float(sum(getattr(self, field.name) for field in fields(self)))


class Forecast:
    """What is foretold of a recipe whose data are prepared."""

    def __init__(self, recipe: Recipe, train: Batches, footprint: Footprint, loads: Sequence[Load]) -> None:
        """`loads` are those of the micro-batches of an epoch."""
        self._recipe, self._train, self._footprint = recipe, train, footprint
        self._loads = loads
        self._measured: dict[bool, Activations | None] = {}
        self._config = footprint.model.config.get_text_config()
        bits = recipe.backbone.weights_dtype
        rounded = saved(footprint.model, bits) if bits else 0.0
        self._elements = _elements(footprint, sum(p.numel() for p in shapes(recipe.backbone).parameters()), rounded)

    def cheaper(self, processes: int) -> list[str]:
        """The trainer's own ways to save memory; those that share it need more than one of the `processes`."""
        more = " processes=4" if processes == 1 else ""
        return [*self._footprint.cheaper, *(f"{way}{more}" for way in self._footprint.sharing)]

    def fits(self, device: Device, processes: int) -> bool:
        """Whether some micro-batch fits on each of so many devices."""
        times = self.fitting(device, processes)
        return times >= 1 or (times > 0 and self.smaller(times) is not None)

    def smaller(self, times: float) -> tuple[str, float] | None:
        """The override for a micro-batch of so many `times` the size, and the times that it comes to.

        None where no sample, or not even one, would go into it.
        """
        batching, train = self._recipe.batching, self._train
        if train.kind == "packed":
            room = batching.tokens or 8192
            tokens = int(self.largest.slots * times)
            tokens -= tokens % 64 if tokens >= 64 + train.longest()[0] else 0
            return (f"batching.tokens={tokens}", tokens / room) if tokens >= train.longest()[0] else None
        rows = int(train.rows * times)
        return (f"batching.rows={rows}", rows / train.rows) if rows else None

    @property
    def precision(self) -> str:
        """In which matrix products are computed."""
        return self._footprint.computes or self._elements.precision

    def _activations(self, gpu: bool) -> Activations | None:
        if gpu in self._measured:
            return self._measured[gpu]
        recipe, train = self._recipe, self._train
        longest = (recipe.batching.length or 512) if train.kind == "blocks" else train.longest()[0]
        model = shapes(recipe.backbone)

        def footprint(made: Any) -> Footprint | None:
            return recipe.trainer.footprint(made, recipe.backbone)

        return self._measured.setdefault(gpu, activations(model, footprint, train.kind, longest, gpu))

    @property
    def largest(self) -> Load:
        """The micro-batch that takes most memory."""
        return max(self._loads, key=lambda load: load.slots)

    def memory(self, processes: int, load: Load | None = None, gpu: bool = False) -> Memory | None:
        """Of each device, for a micro-batch such as this, else the largest; None where the model cannot be measured."""
        kept, layers = self._activations(gpu), self._config.num_hidden_layers
        if kept is None:
            return None
        load, made, counted = load or self.largest, self._footprint, self._elements
        parts = self._parts(processes)
        weights, adapter, optimizer = self._held(processes)
        gradients = counted.gradients / parts["gradients"]
        below = counted.cast + (layers - 1) * kept.layer(load.slots)
        first, head = kept.first(load.slots), made.head(int(load.supervised), gpu)
        step = 4 * counted.trained if gpu and made.at_once else 8 * counted.largest
        # The first micro-batch of a step finds no gradients yet but the head's, and meets them as activations go.
        alone = (made.micro_batches or processes) == processes and not made.shared
        moments = [
            # Where the loss is computed, at the end of the forward pass.
            (counted.head if alone else gradients, below + kept.layer(load.slots), head),
            # In the backward pass of the last layer, and of the first one.
            (counted.head if alone else gradients, below + first, 0.0),
            (gradients, first, 0.0),
            # In the optimizer's step.
            (gradients, step / parts["optimizer"], 0.0),
        ]
        return Memory(weights, adapter, *max(moments, key=sum), optimizer)

    def _parts(self, processes: int) -> dict[str, float]:
        """Among how many each of SHARED is divided; what lies elsewhere, among infinitely many."""
        parts: dict[str, float] = {what: processes if what in self._footprint.shared else 1 for what in SHARED}
        return parts | dict.fromkeys(self._footprint.offloaded, math.inf)

    def _held(self, processes: int) -> tuple[float, float, float]:
        """Bytes of weights, adapter and optimizer, which are there all the time."""
        made, counted, parts = self._footprint, self._elements, self._parts(processes)
        weights = counted.base / parts["weights"]
        if "weights" in made.shared:
            weights += counted.base * min(1, made.gathered / counted.elements)
        optimizer = counted.trained * made.optimizer / parts["optimizer"]
        return weights, counted.adapter / parts["weights"], optimizer

    def fitting(self, device: Device, processes: int) -> float:
        """How many times the largest micro-batch fits on the device; 0 where nothing does."""
        room, gpu = device.memory * FREE, device.name != "cpu"
        low, high = 0.0, 1024.0
        # What is there all the time is told at once, the rest takes a measurement.
        if sum(self._held(processes)) > room or not self._fits(low, room, processes, gpu):
            return 0.0
        while high - low > low / 256 + 1e-4:
            middle = (low + high) / 2
            low, high = (middle, high) if self._fits(middle, room, processes, gpu) else (low, middle)
        return low

    def _fits(self, times: float, room: float, processes: int, gpu: bool) -> bool:
        memory = self.memory(processes, self.largest * times, gpu)
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
        """On so many devices, at the assumed share of their peak; without held-out losses and checkpoints.

        None also where something is offloaded: what it takes to fetch it is not known.
        """
        operations = self.operations(processes, spent=True)
        if operations is None or self._footprint.offloaded:
            return None
        return operations / (device.operations(self.precision) * REACHED * processes) / 3600


def forecast(recipe: Recipe, train: Batches) -> Forecast | None:
    """What can be foretold; None where the trainer does not tell what it holds."""
    footprint = recipe.trainer.footprint(shapes(recipe.backbone), recipe.backbone)
    return None if footprint is None else Forecast(recipe, train, footprint, train.epoch(0).loads())


@dataclass(frozen=True)
class _Elements:
    """Bytes of a footprint's parameters by what they are, and elements of those that are trained."""

    base: float
    adapter: float
    gradients: float
    trained: float
    largest: float
    """Of these, elements of the largest matrix."""
    head: float
    """Bytes of the head's gradient."""
    elements: float
    cast: float
    """Bytes of the weights' copies in the precision that autocast computes in."""
    precision: str


def _elements(footprint: Footprint, base: int, rounded: float) -> _Elements:
    """`base`: elements of the model before the trainer added to it; `rounded`: bytes that rounding saves of them."""
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
    head = {*model.get_output_embeddings().parameters()}

    def gradient(parameter: Any) -> float:
        return float(parameter.numel() * (footprint.gradient or parameter.itemsize))

    return _Elements(
        base=sum(p.nbytes for p in parameters) - bytes_added - rounded,
        adapter=bytes_added,
        gradients=sum(map(gradient, trained)),
        trained=sum(p.numel() for p in trained),
        largest=max((p.numel() for p in trained), default=0),
        head=sum(gradient(p) for p in trained if p in head),
        elements=sum(p.numel() for p in parameters),
        cast=cast,
        precision=str(max(parameters, key=lambda p: p.numel()).dtype).removeprefix("torch."),
    )
