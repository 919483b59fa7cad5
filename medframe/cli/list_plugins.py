"""`medframe list-plugins`: what is installed, and what a component's recipe section may hold."""

from __future__ import annotations

import click


@click.command("list-plugins", short_help="Components that recipes can use, and who offers them.")
@click.argument("component", required=False, metavar="[KIND/NAME]")
@click.option("--json", "as_json", is_flag=True, help="A list of objects instead of a table.")
def command(component: str | None, as_json: bool) -> None:
    """List every component that the installed plugins offer; with KIND/NAME, its recipe fields."""
    from medframe.plugins import catalog

    if component:
        _detail(component, as_json)
        return
    rows = [
        {
            "kind": c.kind or None,
            "name": c.name or None,
            "summary": c.summary,
            "plugin": c.plugin,
            "distribution": c.distribution,
            "version": c.version,
            "target": c.target,
            "state": c.state,
            "error": c.error,
        }
        for c in catalog().components
    ]
    if as_json:
        _print_json(rows)
        return
    heads = ["KIND", "NAME", "SUMMARY", "PLUGIN", "DISTRIBUTION", "STATE"]
    table = [
        [
            str(row["kind"] or "-"),
            str(row["name"] or "-"),
            str(row["summary"] or "-"),
            str(row["plugin"]),
            f"{row['distribution']} {row['version']}",
            str(row["state"]),
        ]
        for row in rows
    ]
    widths = [max(_columns(line[i]) for line in [heads, *table]) for i in range(len(heads))]
    for line in [heads, *table]:
        text = "  ".join(cell + " " * (width - _columns(cell)) for cell, width in zip(line, widths, strict=True))
        click.echo(text.rstrip())
    for row in rows:
        if row["error"]:
            who = f"{row['kind']}/{row['name']}" if row["kind"] else f"plugin {row['plugin']}"
            click.echo(f"\n{row['state']}: {who}: {row['error']}")


def _detail(component: str, as_json: bool) -> None:
    from medframe.errors import RecipeError
    from medframe.fields import fields_of
    from medframe.plugins import CONTRACTS, FRAME_KEYS, catalog

    kind, slash, name = component.partition("/")
    if not slash or kind not in CONTRACTS:
        raise RecipeError(f"{component!r}: write KIND/NAME, KIND one of {', '.join(CONTRACTS)}")
    found = catalog().find(kind, name)
    cls = found.load()
    fields = fields_of(cls)
    if as_json:
        _print_json([vars(field) for field in fields])
        return
    click.echo(f"{kind}/{name}  {found.target}  {found.distribution} {found.version}\n")
    click.echo((cls.__doc__ or "").strip() + "\n")
    for field in fields:
        click.echo(f"  {field.name}: {field.type} = {_shown(field.default)}")
        if field.meaning:
            click.echo(f"      {' '.join(field.meaning.split())}")
    keys = ", ".join(sorted(FRAME_KEYS[kind]))  # type: ignore[index]
    click.echo(f"\nThe section also takes the frame's own keys: {keys}.")


def _columns(text: str) -> int:
    """Columns that the text takes on a terminal: a Chinese character takes two."""
    from unicodedata import east_asian_width

    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


def _shown(default: object) -> str:
    if default == "???":
        return "??? (must be given)"
    return "null" if default is None else repr(default)


def _print_json(value: object) -> None:
    import json

    click.echo(json.dumps(value, ensure_ascii=False, indent=1, default=str))
