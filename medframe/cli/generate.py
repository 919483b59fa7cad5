"""`medframe generate`: answers to a file of questions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medframe.cli.decoding import chosen, decodes
from medframe.cli.opening import opens

if TYPE_CHECKING:
    from medframe.quantised import Bits


@click.command("generate", short_help="Answer a file of questions.")
@opens
@click.option("--input", "source", type=click.Path(path_type=Path), required=True, help="Questions or conversations.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Answers, a JSON line for each row.")
@click.option("--source", "reads", metavar="NAME", help="The data set whose rows the input has, by its component.")
@decodes
@click.option("--seed", default=0, show_default=True, help="Of what is drawn.")
@click.option(
    "--tokens",
    default=16384,
    show_default=True,
    type=click.IntRange(1),
    help="Most tokens, questions and answers, that are held in memory at a time.",
)
@click.option("--overwrite", is_flag=True, help="Begin anew where there are answers, whole or begun.")
def command(
    run: Path,
    base: Path | None,
    prompt: str | None,
    weights_dtype: Bits | None,
    source: Path,
    output: Path,
    reads: str | None,
    seed: int,
    tokens: int,
    overwrite: bool,
    **decoding: Any,
) -> None:
    """Answer every row of --input with RUN, and write --output.

    Rows are JSON, JSON lines or CSV: a question, or a whole conversation whose last question is answered; in a .txt
    file, one question a line. Stopped or killed, the same command goes on where it was.
    """
    from medframe import quiet
    from medframe.generate.generate import generate
    from medframe.recipe import dataset
    from medframe.trained import open_run

    quiet.libraries()
    if output.is_dir():
        raise click.BadParameter(f"{output} is a folder; name a file", param_hint="--output")
    begun = output.with_name(f"{output.name}.part").exists()  # also where it was to replace what is there
    if output.exists() and not begun and not overwrite:
        raise click.BadParameter(f"{output} is there already; --overwrite begins anew", param_hint="--output")
    opened = open_run(run, base, prompt=prompt).rounded(weights_dtype)
    settings = chosen(opened.decoding, **decoding)
    click.echo(f"{run}: format {opened.manifest['prompt']['use']}. Decoding: {settings.told()}.", err=True)
    shown = 0
    with click.progressbar(length=0, label="answered", show_pos=True) as bar:

        def told(done: int, of: int) -> None:
            nonlocal shown
            bar.length = of
            bar.update(done - shown)
            shown = done

        ended = generate(
            opened, source, output, settings, seed, tokens, dataset(reads, source) if reads else None, told, overwrite
        )
    counts = {"stop": "ended by themselves", "length": "cut at max_new_tokens", "error": "failed, with why"}
    click.echo(f"{output}: " + "; ".join(f"{ended[kind]:,} {words}" for kind, words in counts.items() if ended[kind]))
