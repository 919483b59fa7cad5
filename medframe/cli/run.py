"""`medframe run`: train as a recipe says."""

from __future__ import annotations

import click


@click.command("run", short_help="Train as a recipe says.")
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--print", "print_only", is_flag=True, help="Show the composed recipe and stop.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint.")
@click.option("--overwrite", is_flag=True, help="Begin anew where a run already lies.")
def command(recipe: str, overrides: tuple[str, ...], print_only: bool, resume: bool, overwrite: bool) -> None:
    """Train as RECIPE says: a file, or the name of a shipped recipe. KEY=VALUE changes it: trainer.rank=16."""
    from medframe.cli.composing import composed
    from medframe.recipe import build

    found = composed(recipe, overrides)
    built = build(found, require_all=not print_only)
    if print_only:
        click.echo(built.yaml(), nl=False)
        return
    from medframe.run import run

    run(built, say=_say, resume=resume, overwrite=overwrite)


def _say(line: str) -> None:
    """Print the line; a training goes on when the reader of its output has gone, as behind `| head`."""
    from medframe.cli import nobody_reads

    try:
        click.echo(line)
    except BrokenPipeError:
        nobody_reads()
