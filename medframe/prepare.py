"""A recipe's data, ready to train on: encoded, accounted for, split into training and held-out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from medframe.batch import Batches, Selection
from medframe.encode import Encoder
from medframe.errors import DataError
from medframe.recipe import Recipe, Split
from medframe.source import Source
from medframe.store import Examples, examples

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
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


def check_context(recipe: Recipe, prepared: Prepared) -> None:
    """DataError when an example is longer than the model's context, beyond which it has never learnt positions."""
    context = getattr(recipe.backbone.load_config(), "max_position_embeddings", None)
    batches = [prepared.train, *([prepared.held_out] if prepared.held_out else [])]
    for selection in (s for batch in batches for s in batch.selections if len(s.indices)):
        lengths = selection.examples.lengths[selection.indices]
        longest = int(selection.indices[lengths.argmax()])
        if context and lengths.max() > context and recipe.batching.kind != "blocks":
            raise DataError(
                f"{selection.examples.where(longest)} takes {lengths.max()} tokens, more than the model's context of "
                f"{context}; set limits.max_length={context}"
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
        kept, out = _split(store, share, fraction, recipe.seed, source.name)
        train.append(Selection(store, kept, source.mix.weight))
        if len(out):
            held.append(Selection(store, out))
    return train, held


def _whole(store: Examples, weight: float) -> Selection:
    import numpy as np

    return Selection(store, np.arange(len(store)), weight)


def _split(
    examples: Examples, rows: int | None, fraction: float | None, seed: int, name: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(training, held-out) indices, ascending, chosen by the seed; DataError when nothing is left to train on."""
    import numpy as np

    count = rows if rows is not None else max(1, round((fraction or 0) * len(examples)))
    if count >= len(examples):
        raise DataError(f"held_out: {count} rows of {name} are to be held out, and it has {len(examples)}")
    order = np.random.RandomState(seed).permutation(len(examples))
    return np.sort(order[count:]), np.sort(order[:count])
