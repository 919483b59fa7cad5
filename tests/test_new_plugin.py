"""`medframe new-plugin` as its user meets it: names that cannot be, folders that exist, nothing half-written."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

import medframe
from medframe.cli.new_plugin import command
from medframe.errors import RecipeError


def new(name: str, kind: str, into: Path) -> Path:
    CliRunner().invoke(
        command, ["--kind", kind, "--into", str(into), "--", name], catch_exceptions=False, standalone_mode=False
    )
    return into / name


@pytest.mark.parametrize(
    ("name", "module", "component"),
    [
        ("zhen", "medframe_zhen", "zhen"),
        ("medframe-zhen", "medframe_zhen", "zhen"),
        ("My.Old_Clinic", "medframe_my_old_clinic", "my-old-clinic"),
        ("9clinic", "medframe_9clinic", "9clinic"),
        ("no", "medframe_no", "no"),
        ("none", "medframe_none", "none"),
    ],
)
def test_names(name: str, module: str, component: str, tmp_path: Path) -> None:
    folder = new(name, "prompt", tmp_path)
    project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["name"] == name
    assert project["project"]["entry-points"]["medframe"] == {module: module}
    tree = ast.parse((folder / f"{module}.py").read_text("utf-8"))
    (cls,) = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert f'"{component}": "{module}:{cls}"' in (folder / f"{module}.py").read_text("utf-8")
    # Quoted: `use: no` would be false.
    assert f'prompt: {{use: "{component}"}}' in (folder / "recipe.yaml").read_text("utf-8")


@pytest.mark.parametrize("kind", ["backbone", "dataset", "prompt", "trainer"])
def test_imports_only_public_names(kind: str, tmp_path: Path) -> None:
    folder = new("zhen", kind, tmp_path)
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("medframe"):
                assert node.module in ("medframe", "medframe.testing")
                assert node.module != "medframe" or {alias.name for alias in node.names} <= set(medframe.__all__)


@pytest.mark.parametrize("name", ["-a", "a-", "a b", "../a", "a/b", "诊所", "", ".", "a\n"])
def test_no_name_for_a_distribution(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot name a distribution"):
        new(name, "prompt", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("medframe", "a distribution medframe .* is installed"),
        ("torch", "a distribution torch .* is installed"),
        ("prompts", "a module medframe_prompts is installed"),
        ("chatmed", "offers a prompt 'chatmed' already"),
    ],
)
def test_taken_names(name: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=why):
        new(name, "prompt", tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "zhen").mkdir()
    (tmp_path / "zhen" / "notes").write_text("mine")
    with pytest.raises(RecipeError, match="exists") as caught:
        new("zhen", "prompt", tmp_path)
    assert caught.value.exit_code == 2
    assert [file.name for file in (tmp_path / "zhen").iterdir()] == ["notes"]


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = Path.write_text, []

    def full(self: Path, *args: object, **kwargs: object) -> int:
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(self)
        return write(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        new("zhen", "dataset", tmp_path)
    assert not list(tmp_path.iterdir())
