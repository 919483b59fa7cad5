"""`medframe new-plugin`: a plugin of one's own to start from, installable and tested."""

from __future__ import annotations

import re
from pathlib import Path

import click

SUFFIXES = {"backbone": "Backbone", "dataset": "Data", "prompt": "Prompt", "trainer": "Trainer"}


@click.command("new-plugin", short_help="Write a plugin of your own to fill in.")
@click.argument("name")
@click.option("--kind", type=click.Choice(list(SUFFIXES)), required=True, help="What the plugin offers.")
@click.option("--into", "into", type=click.Path(path_type=Path), default=Path(), help="Folder to write it in.")
def command(name: str, kind: str, into: Path) -> None:
    """Write the folder NAME: a distribution that offers one component, with its tests and a recipe; all of it works."""
    words = _words(name, kind)
    target = into / name
    _check_free(target, words)
    files = _files(words)
    _write(target, files)
    for file in files:
        click.echo(f"{target / file}")
    click.echo(
        f'\ncd {target}\npip install -e ".[test]"\nmedframe list-plugins {kind}/{words["component"]}\n'
        "medframe run recipe.yaml\npytest"
    )


def _words(name: str, kind: str) -> dict[str, str]:
    """What the templates call by name; RecipeError when NAME can be no distribution's."""
    from medframe.errors import RecipeError

    # As the packaging specification has it.
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
        raise RecipeError(
            f"{name!r} cannot name a distribution: letters, digits, hyphens, dots and underscores, "
            "a letter or digit first and last; for instance my-hospital"
        )
    parts = re.split(r"[-_.]+", name.lower())
    own = parts[1:] if parts[0] == "medframe" and len(parts) > 1 else parts
    title = "".join(part.capitalize() for part in own).removesuffix(SUFFIXES[kind])
    module = "_".join(["medframe", *own])
    package = kind == "dataset"  # its sample lies beside its code
    contents = f'packages = ["{module}"]\npackage-data = {{ {module} = ["*.jsonl"] }}' if package else ""
    return {
        "name": name,
        "kind": kind,
        "component": "-".join(own),
        "module": module,
        "Class": f"{'My' if title[:1].isdigit() else ''}{title}{SUFFIXES[kind]}",
        "source": f"{module}/__init__.py" if package else f"{module}.py",
        "contents": contents or f'py-modules = ["{module}"]',
    }


def _check_free(target: Path, words: dict[str, str]) -> None:
    """RecipeError when the folder, the module, the distribution or the component is there already."""
    from importlib.metadata import PackageNotFoundError, version
    from importlib.util import find_spec

    from medframe.errors import RecipeError
    from medframe.plugins import catalog

    if target.exists() or target.is_symlink():
        raise RecipeError(f"{target} exists; choose another name, or another folder with --into")
    try:
        raise RecipeError(f"a distribution {words['name']} {version(words['name'])} is installed; choose another name")
    except PackageNotFoundError:
        pass
    for component in catalog().components:
        if (component.kind, component.name) == (words["kind"], words["component"]):
            who = f"{component.distribution} {component.version}"
            raise RecipeError(f"{who} offers a {words['kind']} {words['component']!r} already; choose another name")
    if find_spec(words["module"]) is not None:
        raise RecipeError(f"a module {words['module']} is installed; choose another name")


def _files(words: dict[str, str]) -> dict[str, str]:
    """Path -> content of every file of the plugin."""
    from importlib.resources import files
    from string import Template

    templates = files("medframe") / "templates"
    own = templates / words["kind"]
    sources = {
        "pyproject.toml": templates / "pyproject.toml.in",
        "README.md": templates / "README.md.in",
        words["source"]: own / "plugin.py.in",
        f"test_{words['module']}.py": own / "test.py.in",
        "recipe.yaml": own / "recipe.yaml.in",
    }
    texts = {path: Template(file.read_text("utf-8")).substitute(words) for path, file in sources.items()}
    if words["kind"] == "dataset":
        texts[f"{words['module']}/sample.jsonl"] = (own / "sample.jsonl").read_text("utf-8")
    return texts


def _write(target: Path, files: dict[str, str]) -> None:
    """The folder with these files, whole or not at all."""
    import os
    import tempfile

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-plugin-", dir=target.parent) as aside:
        whole = Path(aside) / "whole"
        for name, text in files.items():
            file = whole / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8", newline="\n")
        os.rename(whole, target)
