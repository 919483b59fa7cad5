"""A recipe's data, ready to train on: encoded, accounted for, split into training and held-out."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from medframe import world as worlds
from medframe.batch import Batches, Selection
from medframe.encode import Encoder
from medframe.errors import DataError
from medframe.recipe import Recipe, Split
from medframe.source import Source
from medframe.store import Examples, examples
from medframe.trainer import Job, Log

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from medframe.ledger import Ledger

AnyJob = TypeVar("AnyJob", bound=Job)


@dataclass(frozen=True)
class Prepared:
    """What a recipe's data became."""

    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder
    train: Batches
    held_out: Batches | None
    ledgers: tuple[Ledger, ...]
    digests: tuple[str, ...]
    """Of each source's encoded examples, in the order of the ledgers."""


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
                f"first {first.where}: {first.why}"
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
        tuple(store.digest for store in stores.values()),
    )


def job(
    recipe: Recipe,
    prepared: Prepared,
    log: Log,
    resume: Path | None = None,
    kind: type[AnyJob] = Job,  # type: ignore[assignment]
    **more: Any,
) -> AnyJob:
    """What the recipe's trainer is told in this process; `more` are fields that a `kind` of Job of one's own has."""
    world = worlds.current()
    return kind(
        out=recipe.out,
        backbone=recipe.backbone,
        tokenizer=prepared.tokenizer,
        prompt=prepared.encoder.prompt,
        train=prepared.train,
        held_out=prepared.held_out,
        seed=recipe.seed,
        resume=resume,
        log=log,
        rank=world.rank,
        world=world.size,
        **more,
    )


def check_context(recipe: Recipe, prepared: Prepared) -> None:
    """DataError when an example is longer than the model's context, beyond which it has never learnt positions."""
    context = getattr(recipe.backbone.load_config().get_text_config(), "max_position_embeddings", None)
    if context and recipe.batching.kind == "blocks" and (recipe.batching.length or 512) > context:
        raise DataError(f"batching.length is {recipe.batching.length}, more than the model's context of {context}")
    for batches in (prepared.train, prepared.held_out) if recipe.batching.kind != "blocks" else ():
        length, where = batches.longest() if batches else (0, None)
        if context and length > context:
            raise DataError(
                f"{where} takes {length} tokens, more than the model's context of {context}; "
                f"set limits.max_length={context}"
            )


def _selections(
    recipe: Recipe, sources: list[Source], stores: dict[str, Examples]
) -> tuple[list[Selection], list[Selection]]:
    if not isinstance(recipe.held_out, Split):
        return [_whole(stores[source.name], source.mix.weight) for source in sources], []
    wanted, fraction = recipe.held_out.rows, recipe.held_out.fraction
    counts = [int(stores[source.name].rows[-1]) + 1 for source in sources]
    if wanted is None:
        shares = [max(1, round((fraction or 0) * count)) for count in counts]
    else:
        # In proportion, the roundings adding up to what is wanted.
        ends = [wanted * end // sum(counts) for end in accumulate(counts, initial=0)]
        shares = [end - start for start, end in pairwise(ends)]
    if len(sources) > 1:
        # Of several sources, a small one may be too small to give any.
        shares = [min(share, count - 1) for share, count in zip(shares, counts, strict=True)]
    train, held = [], []
    for source, share in zip(sources, shares, strict=True):
        store = stores[source.name]
        kept, out = _split(store, share, recipe.seed, source.name)
        train.append(Selection(store, kept, source.mix.weight))
        if len(out):
            held.append(Selection(store, out))
    return train, held


def _whole(store: Examples, weight: float) -> Selection:
    import numpy as np

    return Selection(store, np.arange(len(store)), weight)


def _split(store: Examples, count: int, seed: int, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(training, held-out) indices, ascending: `count` rows chosen by the seed, each with all its examples.

    DataError when no row is left to train on.
    """
    import numpy as np

    rows = int(store.rows[-1]) + 1
    if count >= rows:
        raise DataError(f"held_out: {count} of the {rows} rows of {name} would be held out, none is left to train on")
    chosen = np.random.RandomState(seed).permutation(rows)[:count]
    held_out = np.isin(store.rows, chosen)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
