"""Plugins as somebody installs them: what is offered is listed, what is broken is said, and the rest still works."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Distribution, Ended, Medframe

import medframe as public

ROOT = Path(__file__).parents[1]
INSTALLED = {entry.dist.name for entry in entry_points(group="medframe") if entry.dist}
DATASET = """\
from dataclasses import dataclass
import medframe
from medframe import Row, Sample, Turn

@dataclass(kw_only=True)
class Clinic(medframe.DatasetSource):
    \"\"\"Letters of a clinic.

    More about them.
    \"\"\"
    ask: str = "ask"
    \"\"\"The field that holds the question.\"\"\"
    tries: int | None = None

    def sample(self, row: Row) -> Sample:
        return Sample((Turn("user", row.text(self.ask)), Turn("assistant", row.text("tell"))), row.where)
"""
OFFER = """
@medframe.hookimpl
def datasets():
    return {"clinic": Clinic}
"""
USE_CLINIC = "data.consult={use: clinic, path: letters.jsonl}"


def listed(medframe: Medframe) -> list[dict[str, Any]]:
    ended = medframe("list-plugins", "--json")
    assert ended.code == 0
    rows = json.loads(ended.out)
    assert {"llama", "chatmed", "chatmed-consult", "lora"} <= {row["name"] for row in rows if row["state"] == "ok"}
    return [row for row in rows if row["distribution"] not in INSTALLED]


def only(medframe: Medframe) -> dict[str, Any]:
    (row,) = listed(medframe)
    return row


def refused(ended: Ended) -> str:
    assert ended.code == 2, ended
    return ended.out + ended.err


def fresh(code: str, *arguments: str, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A new Python process that runs the code."""
    path = {"PYTHONPATH": str(site)} if site else {}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env={**os.environ, **path}
    )


# ---- what works


def test_a_plugin_of_one_file_is_listed_and_usable(
    medframe: Medframe, distribution: Distribution, recipe: Path, here: Path
) -> None:
    distribution("clinic-letters", {"clinic_letters": DATASET + OFFER}, ["clinic_letters"], version="2.5")
    assert only(medframe) == {
        "kind": "dataset",
        "name": "clinic",
        "summary": "Letters of a clinic.",
        "plugin": "clinic_letters",
        "distribution": "clinic-letters",
        "version": "2.5",
        "target": "clinic_letters:Clinic",
        "state": "ok",
        "error": None,
    }
    (here / "letters.jsonl").write_text('{"ask": "怎么办", "tell": "休息"}\n', "utf-8")
    ended = medframe("check", recipe, USE_CLINIC)
    assert ended.code == 0
    assert "consult: 1 rows: 1 kept" in ended.out


def test_a_plugin_found_by_a_fresh_process_is_in_its_table(distribution: Distribution) -> None:
    site = distribution("clinic-fresh", {"clinic_fresh": DATASET + OFFER}, ["clinic_fresh"])
    table = fresh("import medframe.cli; medframe.cli.main()", "list-plugins", site=site)
    assert table.returncode == 0
    (row,) = [line for line in table.stdout.splitlines() if "clinic-fresh" in line]
    for word in ("dataset", "clinic", "Letters of a clinic.", "clinic_fresh", "clinic-fresh 1.0", "ok"):
        assert word in row


def test_a_class_named_by_text_is_imported_only_when_it_is_used(
    medframe: Medframe, distribution: Distribution, recipe: Path
) -> None:
    hook = "import medframe\n@medframe.hookimpl\ndef datasets():\n    return {'clinic': 'lazy_letters:Clinic'}\n"
    distribution("lazy", {"lazy_hook": hook, "lazy_letters": DATASET}, ["lazy_hook"])
    row = only(medframe)
    assert (row["state"], row["summary"]) == ("ok", "Letters of a clinic.")
    assert "lazy_letters" not in sys.modules
    shown = medframe("run", recipe, USE_CLINIC, "--print")
    assert yaml.safe_load(shown.out)["data"]["consult"]["ask"] == "ask"
    assert "lazy_letters" in sys.modules


def test_two_plugins_whose_entry_points_have_one_name_both_work(medframe: Medframe, distribution: Distribution) -> None:
    distribution("left", {"left_letters": DATASET + OFFER.replace("clinic", "left")}, ["letters = left_letters"])
    distribution("right", {"right_letters": DATASET + OFFER.replace("clinic", "right")}, ["letters = right_letters"])
    rows = listed(medframe)
    assert [(r["name"], r["plugin"], r["state"]) for r in rows] == [
        ("left", "letters", "ok"),
        ("right", "letters", "ok"),
    ]


def test_one_plugin_may_offer_several_kinds(medframe: Medframe, distribution: Distribution) -> None:
    prompts = "@medframe.hookimpl\ndef prompts():\n    return {'mine': 'medframe_prompts.chatmed:ChatMed'}\n"
    distribution("both-kinds", {"both_kinds": DATASET + OFFER + prompts}, ["both_kinds"])
    assert {(row["kind"], row["name"]) for row in listed(medframe)} == {("dataset", "clinic"), ("prompt", "mine")}


# ---- what is broken as a whole


@pytest.mark.parametrize(
    ("number", "source", "reason"),
    [
        (0, "raise RuntimeError('no licence\\nfound')\n", "RuntimeError: no licence found"),
        (1, "import a_module_that_is_not_there\n", "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
        (2, "import sys\nsys.exit(3)\n", "SystemExit: 3"),
        (3, "def broken(:\n", "SyntaxError"),
        (4, "import medframe\n@medframe.hookimpl\ndef promts():\n    return {}\n", "unknown hook 'promts'"),
        (5, "import medframe\n@medframe.hookimpl\ndef prompts(model):\n    return {}\n", "model"),
        (6, "import medframe\n@medframe.hookimpl\ndef prompts():\n    return 1 / 0\n", "ZeroDivisionError"),
        (7, "import medframe\n@medframe.hookimpl\ndef prompts():\n    return ['mine']\n", "must return a mapping"),
        (8, "import medframe\n@medframe.hookimpl\ndef prompts():\n    return {'mine': 3}\n", "AttributeError"),
        (9, "import medframe\ndef prompts():\n    return {}\n", "offers nothing"),
        (10, "import medframe\n@medframe.hookimpl\ndef prompts():\n    return {}\n", "offers nothing"),
    ],
)
def test_a_broken_plugin_is_a_row_with_its_reason_and_the_others_work(
    medframe: Medframe, distribution: Distribution, recipe: Path, number: int, source: str, reason: str
) -> None:
    module = f"broken_{number}"
    distribution("aaa-broken", {module: source}, [module])
    distribution("zzz-fine", {f"fine_{number}": DATASET + OFFER}, [f"fine_{number}"])
    broken, fine = listed(medframe)
    assert (broken["state"], broken["kind"], broken["name"]) == ("broken", None, None)
    assert (broken["plugin"], broken["distribution"]) == (module, "aaa-broken")
    assert reason in broken["error"]
    assert (fine["name"], fine["state"]) == ("clinic", "ok")
    table = medframe("list-plugins")
    assert table.code == 0
    assert f"broken: plugin {module}: " in table.out
    assert medframe("run", recipe, "--print").code == 0


def test_a_mistyped_hook_does_not_break_the_plugins_after_it(medframe: Medframe, distribution: Distribution) -> None:
    typo = "import medframe\n@medframe.hookimpl\ndef datasetss():\n    return {}\n"
    distribution("aaa-typo", {"typo_a": typo}, ["typo_a"])
    distribution("bbb-typo", {"typo_b": typo}, ["typo_b"])
    distribution("ccc-fine", {"typo_c": DATASET + OFFER}, ["typo_c"])
    rows = listed(medframe)
    assert [row["state"] for row in rows] == ["broken", "broken", "ok"]
    assert "typo_a" not in rows[1]["error"]


def test_an_unknown_name_says_which_plugins_could_not_be_loaded(
    medframe: Medframe, distribution: Distribution, recipe: Path
) -> None:
    distribution("has-it", {"would_have_it": "raise OSError('disk')\n"}, ["would_have_it"])
    said = refused(medframe("run", recipe, "data.consult.use=clinic"))
    assert "unknown dataset 'clinic'" in said
    assert "plugin 'would_have_it' of has-it could not be loaded: OSError: disk" in said


def test_a_target_whose_module_is_missing_is_a_broken_row(
    medframe: Medframe, distribution: Distribution, recipe: Path
) -> None:
    hook = "import medframe\n@medframe.hookimpl\ndef datasets():\n    return {'clinic': 'not_there.at_all:Clinic'}\n"
    distribution("no-target", {"no_target": hook}, ["no_target"])
    row = only(medframe)
    assert (row["kind"], row["name"], row["state"]) == ("dataset", "clinic", "broken")
    assert "not_there.at_all:Clinic" in row["error"]
    assert "not_there.at_all:Clinic" in refused(medframe("run", recipe, USE_CLINIC))


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("late_raise", "raise RuntimeError('too old a driver')\n", "RuntimeError: too old a driver"),
        ("late_exit", "raise SystemExit('not today')\n", "SystemExit: not today"),
        ("late_absent", "class Other: pass\n", "has no attribute 'Clinic'"),
    ],
)
def test_a_class_that_cannot_be_imported_when_it_is_used_is_told_with_its_distribution(
    medframe: Medframe, distribution: Distribution, recipe: Path, module: str, source: str, reason: str
) -> None:
    hook = f"import medframe\n@medframe.hookimpl\ndef datasets():\n    return {{'clinic': '{module}:Clinic'}}\n"
    distribution("late", {module: source, f"{module}_hook": hook}, [f"{module}_hook"])
    assert only(medframe)["state"] == "ok"  # listing imports no component
    said = refused(medframe("run", recipe, USE_CLINIC))
    assert "command line: data.consult.use: dataset 'clinic'" in said
    assert f"({module}:Clinic, from late 1.0) cannot be imported" in said
    assert reason in said


# ---- two offers of one name


def test_a_name_offered_twice_fails_only_a_recipe_that_uses_it(
    medframe: Medframe, distribution: Distribution, recipe: Path
) -> None:
    distribution("first-clinic", {"clinic_one": DATASET + OFFER}, ["clinic_one"])
    distribution("second-clinic", {"clinic_two": DATASET + OFFER}, ["clinic_two"], version="3.1")
    rows = listed(medframe)
    assert [(row["name"], row["state"]) for row in rows] == [("clinic", "clash")] * 2
    for row in rows:
        assert "first-clinic 1.0" in row["error"]
        assert "second-clinic 3.1" in row["error"]
    assert medframe("check", recipe).code == 0
    said = refused(medframe("run", recipe, USE_CLINIC))
    assert "dataset 'clinic': offered by first-clinic 1.0" in said
    assert "second-clinic 3.1" in said


def test_a_built_in_name_is_not_taken_over_silently(
    medframe: Medframe, distribution: Distribution, recipe: Path
) -> None:
    distribution("taker", {"taker": DATASET + OFFER.replace("clinic", "chatmed-consult")}, ["taker"])
    rows = json.loads(medframe("list-plugins", "--json").out)
    assert [row["state"] for row in rows if row["name"] == "chatmed-consult"] == ["clash", "clash"]
    said = refused(medframe("run", recipe))
    assert "medframe 0" in said
    assert "taker 1.0" in said


def test_one_name_in_two_kinds_is_no_clash(medframe: Medframe, distribution: Distribution) -> None:
    distribution("llama-data", {"llama_data": DATASET + OFFER.replace("clinic", "llama")}, ["llama_data"])
    assert only(medframe)["state"] == "ok"


# ---- classes that are no components


@pytest.mark.parametrize(
    ("number", "old", "new", "reason"),
    [
        (0, "@dataclass(kw_only=True)\n", "", "is not a dataclass: put @dataclass above the class"),
        (1, "(medframe.DatasetSource)", "", "is not a subclass of medframe.DatasetSource"),
        (2, "def sample", "def samples", "does not implement sample"),
        (3, "ask: str", "use: str", "has a field named use, which is the frame's own key"),
        (4, "ask: str", "weight: str", "has a field named weight, which is the frame's own key"),
        (5, "ask: str", "limit: str", "has a field named limit, which is the frame's own key"),
        (6, "tries: int | None = None", "tries: complex = 1j", "has a field that a recipe cannot hold"),
        (7, "class Clinic", "def Clinic(): ...\nclass Other", "is not a subclass of medframe.DatasetSource"),
    ],
)
def test_a_class_that_breaks_the_contract_is_refused_with_what_to_change(
    medframe: Medframe, distribution: Distribution, recipe: Path, number: int, old: str, new: str, reason: str
) -> None:
    module = f"contract_{number}"
    source = DATASET.replace(old, new, 1)
    assert source != DATASET
    hook = f"import medframe\n@medframe.hookimpl\ndef datasets():\n    return {{'clinic': '{module}:Clinic'}}\n"
    if number == 7:
        source = source.replace("@dataclass(kw_only=True)\n", "")
    distribution("contract", {module: source, f"{module}_hook": hook}, [f"{module}_hook"])
    said = refused(medframe("run", recipe, USE_CLINIC))
    assert reason in said
    assert f"{module}:Clinic, from contract 1.0" in said
    assert reason in refused(medframe("list-plugins", "dataset/clinic"))


def test_a_wrong_field_of_a_plugin_is_told_as_one_of_the_frames_own(
    medframe: Medframe, distribution: Distribution, recipe: Path
) -> None:
    distribution("fields", {"clinic_fields": DATASET + OFFER}, ["clinic_fields"])
    said = refused(medframe("run", recipe, USE_CLINIC, "data.consult.aks=x", "data.consult.tries=many"))
    assert "command line: data.consult.aks: unknown key; did you mean 'ask'?" in said
    assert "command line: data.consult.tries: Value 'many'" in said


# ---- list-plugins KIND/NAME


def test_a_component_shows_each_fields_type_default_and_meaning(medframe: Medframe, distribution: Distribution) -> None:
    distribution("detail", {"clinic_detail": DATASET + OFFER}, ["clinic_detail"])
    shown = medframe("list-plugins", "dataset/clinic").out
    assert "clinic_detail:Clinic  detail 1.0" in shown
    assert "More about them." in shown
    assert "  path: str | list[str] = ??? (must be given)" in shown
    assert "  ask: str = 'ask'\n      The field that holds the question.\n" in shown
    assert "  tries: int | None = null\n" in shown
    assert "frame's own keys: limit, use, weight" in shown
    fields = json.loads(medframe("list-plugins", "dataset/clinic", "--json").out)
    assert [field["name"] for field in fields] == ["path", "ask", "tries"]
    assert fields[1] == {
        "name": "ask",
        "type": "str",
        "default": "ask",
        "meaning": "The field that holds the question.",
    }


def test_every_field_of_a_shipped_component_says_what_it_means(medframe: Medframe) -> None:
    for row in json.loads(medframe("list-plugins", "--json").out):
        if row["distribution"] == "medframe":
            assert row["summary"]
            shown = medframe("list-plugins", f"{row['kind']}/{row['name']}", "--json")
            without = [field["name"] for field in json.loads(shown.out) if not field["meaning"]]
            assert not without, row["name"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("lora", "write KIND/NAME"),
        ("trainers/lora", "KIND one of backbone, dataset, prompt, trainer"),
        ("trainer/lroa", "unknown trainer 'lroa': did you mean 'lora'?"),
    ],
)
def test_a_component_that_is_not_there_is_told(medframe: Medframe, asked: str, said: str) -> None:
    assert said in refused(medframe("list-plugins", asked))


# ---- what is imported when


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["list-plugins"], ["recipes"], ["run", "chatmed", "--print"]]
)
def test_quick_commands_import_neither_torch_nor_transformers(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom medframe.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'peft', 'tokenizers', 'numpy', 'sentencepiece'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    ended = fresh(code, *arguments)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout


def test_importing_the_public_names_loads_nothing_heavy() -> None:
    ended = fresh("import sys, medframe\nassert not {'torch', 'transformers', 'numpy'} & set(sys.modules)")
    assert ended.returncode == 0, ended.stderr


def imports(file: Path) -> set[str]:
    """Every module that the file imports anywhere in it, by its full name; names from `medframe` itself too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            found.add(node.module or "")
            if node.module == "medframe":
                found |= {f"medframe.{alias.name}" for alias in node.names}
    return found


def test_the_core_imports_no_plugin() -> None:
    packages = {folder.name for folder in (ROOT / "plugins").iterdir() if folder.is_dir()}
    assert "medframe_trainers" in packages
    files = sorted((ROOT / "medframe").rglob("*.py"))
    assert len(files) > 30
    for file in files:
        assert not packages & {name.partition(".")[0] for name in imports(file)}, file


def test_plugins_import_only_what_medframe_makes_public() -> None:
    # The names of `medframe` itself; `batch` and `proof` are what a trainer is handed and must call.
    allowed = {"medframe", *(f"medframe.{name}" for name in public.__all__), "medframe.batch", "medframe.proof"}
    files = sorted((ROOT / "plugins").rglob("*.py"))
    assert len(files) > 8
    for file in files:
        own = {name for name in imports(file) if name.partition(".")[0] == "medframe"}
        assert own <= allowed, f"{file}: {own - allowed}"
        for name in imports(file):
            package = name.partition(".")[0]
            if package.startswith("medframe_"):
                assert package == file.relative_to(ROOT / "plugins").parts[0], f"{file} imports another plugin"
