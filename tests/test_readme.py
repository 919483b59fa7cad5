"""README's plugin is a plugin: the file that a reader would copy is listed, previewed and held to the kit."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from conftest import Distribution, Medframe

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def block(language: str, holding: str) -> str:
    """The code block of README that holds this text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.S)
    (found,) = [code for code in blocks if holding in code]
    return str(found)


def test_the_plugin_in_the_readme_works(medframe: Medframe, distribution: Distribution, recipe: Path) -> None:
    project = tomllib.loads(block("toml", "medframe-plain"))
    entries = [f"{name} = {value}" for name, value in project["project"]["entry-points"]["medframe"].items()]
    site = distribution(project["project"]["name"], {"medframe_plain": block("python", "class Plain")}, entries)
    listed = medframe("list-plugins", "prompt/plain")
    assert listed.code == 0
    assert "What the one who asks is called." in listed.out
    shown = medframe("preview", recipe, "prompt.use=plain", "prompt.patient=病人", "-n", "1")
    assert shown.code == 0, shown.err
    assert "病人：" in shown.out
    tests = site / "test_plain.py"
    tests.write_text(block("python", "class TestPlain"), "utf-8")
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    held = subprocess.run(line, cwd=site, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True)
    assert held.returncode == 0, held.stdout


def test_the_recipe_in_the_readme_is_valid(medframe: Medframe, here: Path) -> None:
    (here / "recipe.yaml").write_text(block("yaml", "out: runs/mine"), "utf-8")
    (here / "base").mkdir()
    (here / "base" / "lora.yaml").write_text("trainer: {use: lora}\n", "utf-8")
    shown = medframe("run", "recipe.yaml", "--print")
    assert shown.code == 0, shown.err
    assert "max_steps: 20" in shown.out
