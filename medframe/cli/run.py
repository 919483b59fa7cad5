"""`medframe run`: train as a recipe says."""

from __future__ import annotations

import click


@click.command("run", short_help="Train as a recipe says.")
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--print", "print_only", is_flag=True, help="Show the composed recipe and stop.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint.")
@click.option("--overwrite", is_flag=True, help="Begin anew where a run already lies.")
@click.option(
    "--local_rank", "--local-rank", "local_rank", hidden=True, help="Given by some launchers; LOCAL_RANK says."
)
def command(
    recipe: str, overrides: tuple[str, ...], print_only: bool, resume: bool, overwrite: bool, local_rank: str | None
) -> int | None:
    """Train as RECIPE says: a file, or the name of a shipped recipe. KEY=VALUE changes it: trainer.rank=16."""
    from medframe.cli.composing import composed, found
    from medframe.recipe import build

    file = found(recipe)
    built = build(composed(file, overrides), require_all=not print_only)
    if print_only:
        click.echo(built.yaml(), nl=False)
        return None
    from medframe import world

    launch = world.found()
    if launch is None and built.processes > 1:
        from medframe.launch import supervise
        from medframe.run import check_free, check_learns

        check_learns(built)
        check_free(built.out, resume, overwrite)
        options = ["--resume"] * resume + ["--overwrite"] * overwrite
        return supervise(built.processes, ["run", *options, "--", str(file), *overrides], built.out)
    if launch and launch.rank == 0 and launch.size != built.processes:
        _say(f"{launch.size} process{'es' * (launch.size > 1)}, as launched.")
    from medframe.run import run

    run(built, say=_say, resume=resume, overwrite=overwrite)
    return None


def _say(line: str) -> None:
    """Print the line; a training goes on when the reader of its output has gone, as behind `| head`."""
    from medframe.cli import nobody_reads

    try:
        click.echo(line)
    except BrokenPipeError:
        nobody_reads()
