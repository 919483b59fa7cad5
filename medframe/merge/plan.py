"""What a merge will write: each tensor with where it comes from and what becomes of it, told from headers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medframe.errors import BackboneError
from medframe.merge.adapter import Adapter, Change, LowRank, Shift, Whole
from medframe.merge.skeleton import Skeleton
from medframe.merge.tensors import FLOATING, SIZES, Stored, content


@dataclass
class Output:
    """One tensor of the merged model."""

    name: str
    """As it is stored."""
    source: Stored
    """The base model's."""
    parameter: str | None
    """Which of the model's it is; None for one that the model does not use, and that stays as it is."""
    changes: list[Change] = field(default_factory=list)
    """What the adapters make of it, in their order."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in the end."""
        whole = next((change for change in reversed(self.changes) if isinstance(change, Whole)), None)
        return whole.tensor.shape if whole else self.source.shape


@dataclass(frozen=True)
class Plan:
    """What will be written."""

    outputs: Sequence[Output]
    dtype: str
    """Of every parameter, as safetensors names it."""
    tied: bool
    """Whether the head is the embedding."""
    changed: int
    """Tensors that an adapter changes."""

    def dtype_of(self, output: Output) -> str:
        """The type in which it is written."""
        return self.dtype if output.parameter and output.source.dtype in FLOATING else output.source.dtype

    @property
    def bytes(self) -> int:
        """All that will be written, but for headers."""
        return sum(self.size(output) for output in self.outputs)

    def size(self, output: Output) -> int:
        """Bytes of one tensor as it is written."""
        count = 1
        for side in output.shape:
            count *= side
        return count * SIZES[self.dtype_of(output)]


def told(count: float) -> str:
    """A number of bytes, for a reader."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def plan(base: Mapping[str, Stored], adapters: Sequence[Adapter], model: Skeleton, dtype: str) -> Plan:
    """What merging the adapters into the stored tensors of the base writes; BackboneError where they do not fit.

    `dtype` is safetensors' name of the type. No tensor is read but where a head and an embedding that may be one have
    to be compared.
    """
    places = model.places(base)
    if strange := sorted({t.dtype for t in base.values()} - SIZES.keys()):
        raise BackboneError(
            f"the base holds tensors of type {strange[0]}: it is quantised; merge into what it was made of"
        )
    outputs = [Output(name, tensor, places.get(name)) for name, tensor in base.items()]
    _add_tied(outputs, model)
    by_parameter = {output.parameter: output for output in outputs if output.parameter}
    for adapter in adapters:
        for parameter, change in adapter.changes(model).items():
            if parameter not in by_parameter:
                raise BackboneError(
                    f"{adapter.directory}: {parameter} is stored in another layout than it is computed with, and "
                    "cannot be merged on disk"
                )
            twins = [parameter]
            if isinstance(change, Whole) and not change.copied:
                # Not a copy: what is tied to it is the same tensor.
                twins = [
                    name for name in by_parameter if model.tied.get(name, name) == model.tied.get(parameter, parameter)
                ]
            for name in twins:
                _check_fits(adapter, by_parameter[name], change, model)
                by_parameter[name].changes.append(change)
    tied = _join_tied(outputs, model)
    for output in outputs:
        wanted = model.shapes.get(output.parameter or "", output.shape)
        if output.shape != wanted:
            raise BackboneError(_misfit(output, wanted, model))
    return Plan(outputs, dtype, tied, sum(bool(output.changes) for output in outputs))


def _add_tied(outputs: list[Output], model: Skeleton) -> None:
    """An output for every parameter that is only stored as the one it is tied to: an adapter may tell them apart."""
    known = {output.parameter: output for output in outputs}
    for one, other in model.tied.items():
        for missing, stored in ((one, other), (other, one)):
            if missing not in known and stored in known:
                known[missing] = Output(missing, known[stored].source, missing)
                outputs.append(known[missing])


def _join_tied(outputs: list[Output], model: Skeleton) -> bool:
    """Drop what still is the same as what it is tied to; whether all that was tied still is."""
    known = {output.parameter: output for output in outputs}
    tied = bool(model.tied)
    for one, other in model.tied.items():
        if _same(known[one], known[other]):
            # Of the two, the one that the base stores keeps its place and its name.
            outputs.remove(known[one] if known[other].source.name == known[other].name else known[other])
        else:
            tied = False
    return tied


def _same(one: Output, other: Output) -> bool:
    """Whether the two come to the same tensor."""
    if any(isinstance(change, Whole) for change in (*one.changes, *other.changes)):
        last, twin = (each.changes[-1] if each.changes else None for each in (one, other))
        return isinstance(last, Whole) and isinstance(twin, Whole) and _equal(last.tensor, twin.tensor)
    return one.changes == other.changes and _equal(one.source, other.source)


def _equal(one: Stored, other: Stored) -> bool:
    if one is other:
        return True
    return (one.dtype, one.shape) == (other.dtype, other.shape) and content(one) == content(other)


def _check_fits(adapter: Adapter, output: Output, change: Change, model: Skeleton) -> None:
    """BackboneError unless the change is of the shape that the tensor has by then."""
    have = output.shape
    if isinstance(change, Whole):
        # The vocabulary may grow; nothing else may.
        grows = output.parameter in (model.embedding, model.head) or len(have) == 1
        fits = change.tensor.shape == have or (grows and change.tensor.shape[1:] == have[1:])
        given = change.tensor.shape
    elif isinstance(change, Shift):
        given, fits = change.tensor.shape, change.tensor.shape == have
    else:
        given = _delta(change)
        fits = len(have) == 2 and given == have
        if change.magnitude is not None:
            lengths = have[1] if change.embedding or change.transposed else have[0]
            fits = fits and change.magnitude.shape == (lengths,)
    if not fits:
        raise BackboneError(
            f"{adapter.directory}: {output.parameter} of the base is {list(have)}, the adapter is for {list(given)}: "
            "it was trained on another base model"
        )


def _delta(change: LowRank) -> tuple[int, ...]:
    """The shape of what is added."""
    out, into = change.b.shape[0], change.a.shape[1]
    return (into, out) if change.embedding or change.transposed else (out, into)


def _misfit(output: Output, wanted: tuple[int, ...], model: Skeleton) -> str:
    if output.parameter == model.head and output.shape[1:] == wanted[1:]:
        return (
            f"the vocabulary grows to {wanted[0]:,}, and no adapter brings {output.parameter} with as many rows: it "
            f"has {output.shape[0]:,}; what is new would be random"
        )
    return (
        f"{output.name} is {list(output.shape)}, config.json asks for {list(wanted)}: does it belong to these weights?"
    )
