"""Four new plugins and medframe, built as wheels and installed in an environment of their own: listed, tested, run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
KINDS = ("backbone", "dataset", "prompt", "trainer")


@dataclass(frozen=True)
class Site:
    """A virtual environment that holds medframe and the plugins as wheels, and the folders they were made in."""

    bin: Path
    plugins: Path
    environment: Mapping[str, str]

    def run(self, *command: str, cwd: Path) -> str:
        """What a program of the environment prints; it must succeed."""
        return _run(str(self.bin / command[0]), *command[1:], cwd=cwd, env=self.environment)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("third-party")
    # Built from a copy: what setuptools leaves behind does not belong in the checkout.
    left_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "tests")
    shutil.copytree(ROOT, folder / "checkout", ignore=left_out)
    plugins = folder / "plugins"
    for kind in KINDS:
        command = ["-m", "medframe", "new-plugin", f"my-{kind}", "--kind", kind, "--into", str(plugins)]
        _run(sys.executable, *command, cwd=folder)
    # A folder without what a build leaves there: the tests must see the wheels alone.
    shutil.copytree(plugins, folder / "sources")
    projects = [str(folder / "checkout"), *(str(folder / "sources" / f"my-{kind}") for kind in KINDS)]
    wheel = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "wheels"]
    _run(sys.executable, *wheel, *projects, cwd=folder)
    _run(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=folder)
    bin_ = folder / "venv" / "bin"
    _packages(folder / "venv").joinpath("dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ["-m", "pip", "--python", str(bin_ / "python"), "install", "--quiet", "--no-deps", "--no-index"]
    # Without its own copy, pip would see the editable medframe behind the .pth file as installed already.
    _run(sys.executable, *install, "--ignore-installed", *map(str, sorted(folder.glob("wheels/*.whl"))), cwd=folder)
    # One thread: quicker for tiny models, more so when the machine is busy.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    return Site(bin_, plugins, {**clean, "OMP_NUM_THREADS": "1", "MEDFRAME_CACHE": str(folder / "cache")})


def test_medframe_is_the_wheel(site: Site, tmp_path: Path) -> None:
    files = site.run(
        "python", "-c", "import medframe, medframe_prompts as p; print(medframe.__file__, p.__file__)", cwd=tmp_path
    )
    assert all(Path(file).is_relative_to(_packages(site.bin.parent)) for file in files.split())


def test_plugins_are_listed(site: Site, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = json.loads(site.run("medframe", "list-plugins", "--json", cwd=tmp_path))
    assert {row["state"] for row in rows} == {"ok"}
    mine = {(row["kind"], row["name"], row["distribution"]) for row in rows if row["name"].startswith("my-")}
    assert mine == {(kind, f"my-{kind}", f"my-{kind}") for kind in KINDS}
    assert all(row["summary"] for row in rows)


def test_shipped_recipe_is_found(site: Site, tmp_path: Path) -> None:
    assert "use: chatmed-consult" in site.run("medframe", "run", "chatmed", "--print", cwd=tmp_path)


def test_shipped_recipes_are_listed_and_copied_with_what_they_include(site: Site, tmp_path: Path) -> None:
    assert "ChatMed-Consult" in site.run("medframe", "recipes", cwd=tmp_path)
    site.run("medframe", "recipes", "chatmed", "--copy", "mine", cwd=tmp_path)
    assert "use: chatmed-consult" in site.run("medframe", "run", "mine/chatmed.yaml", "--print", cwd=tmp_path)
    # Outside any checkout, and with the sample inside the wheel.
    assert "⟨<s>⟩" in site.run("medframe", "preview", "chatmed", "-n", "1", cwd=tmp_path)


def test_templates_are_in_the_wheel(site: Site, tmp_path: Path) -> None:
    for kind in KINDS:
        site.run("medframe", "new-plugin", f"other-{kind}", "--kind", kind, cwd=tmp_path)
        assert (tmp_path / f"other-{kind}" / "pyproject.toml").is_file()


def test_plugins_pass_their_own_tests(site: Site) -> None:
    """In the plugin's folder, as its author runs them: the module there hides the wheel's, which is the same."""

    def tested(kind: str) -> str:
        return site.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=site.plugins / f"my-{kind}")

    with ThreadPoolExecutor(2) as pool:
        for kind, said in zip(KINDS, pool.map(tested, KINDS), strict=True):
            assert " passed" in said, f"{kind}: {said}"
            assert " failed" not in said, f"{kind}: {said}"


def test_generated_recipes_are_good_to_run(site: Site, tmp_path: Path) -> None:
    for kind in KINDS:
        # The recipe alone: the plugin is found because it is installed.
        folder = tmp_path / kind
        folder.mkdir()
        shutil.copy(site.plugins / f"my-{kind}" / "recipe.yaml", folder)
        assert "weights: ???" in site.run("medframe", "run", "recipe.yaml", "profile=full", "--print", cwd=folder)
        assert "no problem found" in site.run("medframe", "check", "recipe.yaml", cwd=folder)


def test_a_run_of_two_processes_with_all_four(site: Site, tmp_path: Path) -> None:
    shutil.copy(site.plugins / "my-trainer" / "recipe.yaml", tmp_path)
    others = ["backbone={use: my-backbone}", "data={consult: {use: my-dataset, path: sample}}", "prompt.use=my-prompt"]
    site.run("medframe", "run", "recipe.yaml", "compare=0", "processes=2", "held_out.rows=2", *others, cwd=tmp_path)
    manifest = json.loads((tmp_path / "runs" / "my-trainer" / "manifest.json").read_text("utf-8"))
    assert (manifest["state"], manifest["processes"]) == ("finished", 2)
    before, after = manifest["result"]["held_out_loss"]
    assert after < before
    mine = {"backbone": "backbone", "data.consult": "dataset", "prompt": "prompt", "trainer": "trainer"}
    for section, kind in mine.items():
        assert manifest["plugins"][section]["distribution"] == f"my-{kind}"


def _packages(venv: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(venv), "platbase": str(venv)}))


def _run(*command: str, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout
