"""`medframe preview`: samples as the model will see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from medframe.tokens import control_ids

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerBase

    from medframe.recipe import Recipe


@click.command("preview", short_help="Show samples as the model will see them.")
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("-n", "count", default=3, show_default=True, type=click.IntRange(1), help="How many to show.")
@click.option("--json", "as_json", is_flag=True, help="One object a line: id, input_ids, labels, text, shortened.")
@click.option("--rows", is_flag=True, help="Rows of micro-batches of the training set, in the first epoch's order.")
def command(recipe: str, overrides: tuple[str, ...], count: int, as_json: bool, rows: bool) -> None:
    """Show the first samples of RECIPE in the order of the files: what is trained in green, control tokens marked.

    Reads the tokenizer alone, never weights.
    """
    import json
    from itertools import islice

    from medframe import quiet
    from medframe.cli.composing import composed
    from medframe.recipe import build

    quiet.libraries()
    built = build(composed(recipe, overrides))
    tokenizer = built.backbone.load_tokenizer()
    shown = _rows(built) if rows else _samples(built, tokenizer)
    number = 0
    for number, item in enumerate(islice(shown, count), 1):  # noqa: B007
        item["text"] = tokenizer.decode(item["input_ids"])
        if as_json:
            order = ("id", "input_ids", "labels", "text", "shortened")
            click.echo(json.dumps({key: item[key] for key in order}, ensure_ascii=False))
        else:
            _show(item, tokenizer)
    if not number:
        click.echo("Nothing to show: no row can be learnt from.", err=True)


def _samples(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Iterator[dict[str, Any]]:
    from medframe.encode import Encoded, Encoder

    encoder = Encoder(recipe.prompt, tokenizer, recipe.limits)
    for source in recipe.data:
        for outcome in encoder.encode(source.rows()):
            if not isinstance(outcome, Encoded):
                click.echo(f"{outcome.where}: left out: {outcome.why}", err=True)
                continue
            for number, example in enumerate(outcome.examples):
                labels = [i if t else -100 for i, t in zip(example.ids, example.trained, strict=True)]
                window = f"#{number}" if len(outcome.examples) > 1 else ""
                yield {
                    "id": f"{outcome.where}{window}",
                    "input_ids": example.ids,
                    "labels": labels,
                    "shortened": outcome.shortened,
                }


def _rows(recipe: Recipe) -> Iterator[dict[str, Any]]:
    from medframe.prepare import prepare

    train = prepare(recipe).train
    train.shuffle = train.kind != "blocks"  # blocks are cut in the order of the files, and shown so
    for number, batch in enumerate(train.epoch(0)):
        for row in range(len(batch["input_ids"])):
            real = batch["attention_mask"][row].bool() if "attention_mask" in batch else slice(None)
            yield {
                "id": f"micro-batch {number} row {row}",
                "input_ids": batch["input_ids"][row][real].tolist(),
                "labels": batch["labels"][row][real].tolist(),
                "shortened": None,
            }


def _show(item: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    ids, labels = item["input_ids"], item["labels"]
    supervised = sum(label != -100 for label in labels[1:])
    click.secho(f"{item['id']}: {len(ids)} tokens, {supervised} supervised", bold=True)
    if item["shortened"]:
        click.secho(f"shortened: {item['shortened']}", fg="yellow")
    special = {*tokenizer.all_special_ids, *control_ids(tokenizer)}
    start = 0
    while start < len(ids):
        trained, control = labels[start] != -100, ids[start] in special
        end = start + 1
        while end < len(ids) and (labels[end] != -100) == trained and not control and ids[end] not in special:
            end += 1
        text = str(tokenizer.convert_ids_to_tokens(ids[start])) if control else _decoded(tokenizer, ids, start, end)
        color = "green" if trained else None
        click.secho(f"⟨{text}⟩" if control else text, fg=color, reverse=control, nl=False)
        start = end
    click.echo("\n")


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int], start: int, end: int) -> str:
    """The text of ids[start:end], with the space that a decoder strips where it is handed a part alone."""
    before, whole = str(tokenizer.decode(ids[:start])), str(tokenizer.decode(ids[:end]))
    return whole[len(before) :] if whole.startswith(before) else str(tokenizer.decode(ids[start:end]))
