"""`medframe recipes`: the recipes that ship with medframe."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("recipes", short_help="List the shipped recipes, or copy one to change it.")
@click.argument("name", required=False)
@click.option(
    "--copy",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Copy NAME and what it includes to this folder.",
)
def command(name: str | None, folder: Path | None) -> None:
    """List the shipped recipes; NAME alone prints it, with --copy it is copied together with what it includes."""
    from medframe import shipped
    from medframe.errors import RecipeError

    found = shipped.recipes()
    if name is None:
        if folder is not None:
            raise RecipeError("--copy needs the NAME of a recipe")
        for each, file in found.items():
            click.echo(f"{each:12} {_first_comment(file)}")
        return
    name = name.removesuffix(".yaml")
    if name not in found:
        raise RecipeError(f"no shipped recipe {name!r}; known: {', '.join(found)}")
    if folder is None:
        click.echo(found[name].read_text("utf-8"), nl=False)
        return
    files = [found[name], *sorted((found[name].parent / "base").glob("*.yaml"))]
    targets = [folder / file.relative_to(found[name].parent) for file in files]
    for file, target in zip(files, targets, strict=True):
        if target.exists() and target.read_bytes() != file.read_bytes():
            raise RecipeError(f"{target} exists and differs; choose another folder")
    for file, target in zip(files, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
        click.echo(f"{target}")


def _first_comment(file: Path) -> str:
    first = file.read_text("utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()
