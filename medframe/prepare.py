"""A recipe's data, ready to train on: encoded, accounted for, split into training and held-out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from medframe.batch import Batches, Selection, split
from medframe.encode import Encoder
from medframe.errors import DataError
from medframe.recipe import Recipe, Source, Split
from medframe.store import Examples, examples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from medframe.ledger import Ledger


@dataclass(frozen=True)
class Prepared:
    """What a recipe's data became."""

    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    train: Batches
    held_out: Batches | None
    ledgers: tuple[Ledger, ...]


def prepare(recipe: Recipe) -> Prepared:
    """Encode every source, or find it encoded, and split it; DataError when nothing is left to train on."""
    tokenizer = recipe.backbone.load_tokenizer()
    encoder = Encoder(recipe.prompt, tokenizer, recipe.limits)
    sources = list(recipe.data)
    apart = recipe.held_out if isinstance(recipe.held_out, Source) else None
    stores = {source.name: examples(source, encoder) for source in [*sources, *([apart] if apart else [])]}
    for source in [*sources, *([apart] if apart else [])]:
        if not len(stores[source.name]):
            ledger = stores[source.name].ledger
            first = next(iter(ledger.entries))
            raise DataError(
                f"data.{source.name}: none of its {ledger.rows} rows can be learnt from; "
                f"first {first.file}:{first.line}: {first.why}"
            )
    train, held = _selections(recipe, sources, stores)
    for source, selection in zip(sources, train, strict=True):
        if not round(selection.weight * len(selection.indices)):
            raise DataError(
                f"data.{source.name}: weight {selection.weight} leaves none of its "
                f"{len(selection.indices)} training examples in an epoch"
            )
    if apart:
        held = [_whole(stores[apart.name], 1.0)]
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    return Prepared(
        tokenizer,
        encoder,
        Batches(train, recipe.batching, pad, recipe.seed),
        Batches(held, recipe.batching, pad, recipe.seed, shuffle=False) if held else None,
        tuple(store.ledger for store in stores.values()),
    )


def _selections(
    recipe: Recipe, sources: list[Source], stores: dict[str, Examples]
) -> tuple[list[Selection], list[Selection]]:
    if not isinstance(recipe.held_out, Split):
        return [_whole(stores[source.name], source.mix.weight) for source in sources], []
    rows, fraction = recipe.held_out.rows, recipe.held_out.fraction
    counts = [len(stores[source.name]) for source in sources]
    train, held = [], []
    for number, source in enumerate(sources):
        # `rows` is shared among the sources in proportion, the roundings adding up to it.
        before, here = sum(counts[:number]), counts[number]
        share = None if rows is None else rows * (before + here) // sum(counts) - rows * before // sum(counts)
        store = stores[source.name]
        kept, out = split(store, share, fraction, recipe.seed, source.name)
        train.append(Selection(store, kept, source.mix.weight))
        if len(out):
            held.append(Selection(store, out))
    return train, held


def _whole(store: Examples, weight: float) -> Selection:
    import numpy as np

    return Selection(store, np.arange(len(store)), weight)
