"""The rows that a model is measured on: those that its run held out, or those of a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medframe.backbone import Backbone
from medframe.batch import Batches, Batching, Selection
from medframe.check import asked_again
from medframe.compose import compose
from medframe.dataset import DatasetSource
from medframe.encode import Encoder, Limits
from medframe.errors import DataError, MedframeError, RunError
from medframe.evaluate.loss import tokens_at_a_time
from medframe.prepare import prepare
from medframe.recipe import Recipe, build, dataset
from medframe.source import Mix, Source
from medframe.store import examples
from medframe.trained import Opened

Say = Callable[[str], None]


@dataclass(frozen=True)
class Rows:
    """What is measured on."""

    what: str
    """In words."""
    selections: Sequence[Selection]
    content: str
    """sha256 of the encoded examples."""
    skipped: int = 0
    """Rows that could not be used."""

    def __len__(self) -> int:
        """How many examples there are."""
        return sum(len(selection.indices) for selection in self.selections)

    def batches(self, opened: Opened) -> Batches:
        """The examples in the frame's own micro-batches, small enough for their logits."""
        vocabulary = max(opened.backbone.load_config().get_text_config().vocab_size, len(opened.encoder.tokenizer))
        longest = max(int(each.examples.lengths[each.indices].max()) for each in self.selections)
        tokens = tokens_at_a_time(vocabulary, longest)
        batching = Batching(tokens=tokens, rows=max(1, tokens // longest))
        pad = opened.encoder.tokenizer.pad_token_id
        assert isinstance(pad, int)
        return Batches(self.selections, batching, pad, seed=0, shuffle=False)


def held_out(opened: Opened, base: Path | None, say: Say) -> Rows:
    """The rows that the run held out, chosen anew as it chose them; RunError where these can no longer be told."""
    if opened.kind != "run":
        raise RunError(f"{opened.out} holds a model, and no rows of its own: give some with --data FILE --source NAME")
    recipe = _recipe(opened)
    if base is not None:
        recipe = replace(recipe, backbone=replace(recipe.backbone, weights=str(base)))
    if recipe.held_out is None:
        raise RunError(f"{opened.out}: the run held nothing out; give rows with --data FILE")
    prepared = prepare(recipe)
    for entry, digest in zip(opened.manifest["data"], prepared.digests, strict=True):
        if entry["encoded"] != digest:
            raise RunError(
                f"{opened.out}: the rows of {entry['section']} are not those that the run saw, and what it held out "
                "cannot be told; give rows with --data FILE"
            )
    assert prepared.held_out is not None
    _tell(asked_again(prepared.train, prepared.held_out), say)
    selections = prepared.held_out.selections
    names = " and ".join(dict.fromkeys(each.examples.ledger.source for each in selections))
    return Rows(f"held-out rows of {names}", selections, f"held out of {' '.join(prepared.digests)}")


def of_file(opened: Opened, data: Path, reads: str | None, say: Say) -> Rows:
    """The rows of a file, encoded within the run's limits; DataError where none of them can be used.

    `reads` names what explains them: a data section of the run, or a component. Rows that cannot be used are counted.
    """
    import numpy as np

    source = Source(data.name, _explained(opened, data, reads), Mix())
    limits = _recipe(opened).limits if opened.kind == "run" else Limits(max_length=_context(opened.backbone))
    limits = replace(limits, on_bad_row="skip", on_unlearnable="skip")
    store = examples(source, Encoder(opened.encoder.prompt, opened.encoder.tokenizer, limits))
    ledger = store.ledger
    for line in ledger.summary():
        say(line)
    if not len(store):
        first = next(iter(ledger.entries))
        raise DataError(f"{data}: none of its {ledger.rows} rows can be measured on; first {first.where}: {first.why}")
    rows = Rows(data.name, [Selection(store, np.arange(len(store)))], store.digest, ledger.skipped)
    if source.dataset.fingerprint() in _trained_on(opened.manifest):
        say(f"WARNING {data} is a file that it was trained on: the loss flatters")
    elif opened.kind == "run":
        try:
            _tell(asked_again(prepare(_recipe(opened)).train, rows.batches(opened)), say)
        except MedframeError as error:
            say(f"Whether these questions were asked in training is not known: {error.args[0]}")
    return rows


def _tell(again: int, say: Say) -> None:
    if again:
        say(f"WARNING {again:,} of the questions are also asked in training: the loss flatters")


def _trained_on(manifest: Mapping[str, Any]) -> set[str]:
    """The content of every file that it, or what it was made of, was trained on."""
    return {entry["content"] for run in (manifest, *_runs(manifest.get("lineage"))) for entry in run.get("data") or ()}


def _runs(lineage: Any) -> Iterator[Mapping[str, Any]]:
    for part in (lineage["base"], *lineage["adapters"]) if lineage else ():
        yield part.get("run") or {}
        yield from _runs(part.get("lineage"))


def _explained(opened: Opened, data: Path, reads: str | None) -> DatasetSource:
    """What explains the rows of the file: the run's own data set, or the one that is named."""
    if opened.kind != "run":
        if reads is None:
            raise RunError("--source: say what explains the rows, such as messages or alpaca (medframe list-plugins)")
        return dataset(reads, data)
    recipe = _recipe(opened)
    sections = {source.name: source.dataset for source in recipe.data}
    if isinstance(recipe.held_out, Source):
        sections["held_out"] = recipe.held_out.dataset
    if reads is not None and reads not in sections:
        return dataset(reads, data)
    if reads is None and len({_reading(each) for each in sections.values()}) > 1:
        raise RunError(f"--source: the run read {', '.join(sections)}; say which of them explains the rows of {data}")
    return replace(sections[reads or next(iter(sections))], path=str(data))


def _reading(explains: DatasetSource) -> str:
    """What makes two data sets read a file alike."""
    return json.dumps([type(explains).__qualname__, {**asdict(explains), "path": None}], default=str)


def _recipe(opened: Opened) -> Recipe:
    return build(compose(opened.out / "recipe.yaml"))


def _context(backbone: Backbone) -> int | None:
    found: int | None = getattr(backbone.load_config().get_text_config(), "max_position_embeddings", None)
    return found
