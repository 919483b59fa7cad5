"""Weights and data by hub id: fetched from a mirror, kept to one commit, read offline, refused in one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Medframe
from mirror import Mirror, serving

from medframe_backbones.llama import Llama

DEAD = "http://127.0.0.1:9"
SHORT = [
    "held_out={rows: 2}",
    "compare=0",
    "trainer.max_steps=2",
    "trainer.save_steps=1",
    "trainer.warmup_steps=0",
    "trainer.modules_to_save=[]",
]
BOUND = """
import json, sys
from medframe.compose import compose
from medframe.manifest import describe
from medframe.prepare import prepare
from medframe.recipe import build
from medframe.shipped import recipes
recipe = build(compose(recipes()["chatmed"], sys.argv[1:]))
recipe.backbone.load_model()
print(json.dumps(describe(recipe, prepare(recipe))))
"""
"""What a run of the recipe would be bound to, its weights being read."""
Command = Callable[..., subprocess.CompletedProcess[str]]


def rows(first: int, count: int) -> bytes:
    lines = [{"query": f"头痛第{n}天，要紧吗？", "response": f"先休息{n + 2}天。"} for n in range(first, first + count)]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


@pytest.fixture(scope="module")
def weights(cache: Path) -> Path:
    return Llama().directory()


@pytest.fixture
def mirror(weights: Path) -> Iterator[Mirror]:
    with serving() as mirror:
        model = {file.name: file.read_bytes() for file in weights.iterdir()}
        beside = {"README.md": b"# tiny", "onnx/config.json": b"{}", "pytorch_model.bin": b"no", "modeling.py": b"no"}
        mirror.repositories["models/someone/tiny"] = {"main": model | beside}
        data = {"README.md": b"# rows", "data/a.jsonl": rows(0, 8), "data/old/c.jsonl": rows(50, 8)}
        mirror.repositories["datasets/someone/rows"] = {"main": data, "v2": data | {"data/b.jsonl": rows(20, 8)}}
        yield mirror


@pytest.fixture
def command(mirror: Mirror, here: Path) -> Command:
    """Runs Python in a process of its own, with the mirror as its hub and a new cache."""

    def call(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        hub = {"HF_ENDPOINT": mirror.url, "HF_HOME": str(here.parent / "home"), "HF_HUB_OFFLINE": "0"}
        ended = subprocess.run(
            [sys.executable, *map(str, arguments)],
            text=True,
            capture_output=True,
            env={**os.environ, **hub, **environment},
            input="/exit\n",
        )
        assert "Traceback" not in ended.stderr, ended.stderr
        return ended

    return call


def medframe_(verb: str, *arguments: object) -> list[object]:
    return ["-m", "medframe", verb, *arguments]


def succeeded(ended: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended


def fetched(mirror: Mirror) -> list[str]:
    """The files that were downloaded, in alphabetical order."""
    return sorted(line.rpartition("/resolve/")[2].partition("/")[2] for line in mirror.asked if is_download(line))


def is_download(line: str) -> bool:
    return line.startswith("GET ") and "/resolve/" in line


def test_a_run_on_hub_weights_and_data_is_bound_to_one_commit_resumed_or_offline(
    command: Command, mirror: Mirror, weights: Path, here: Path
) -> None:
    (here / "mine.jsonl").write_bytes(rows(90, 4))
    names = ["backbone.weights=someone/tiny", "data.consult.path=[mine.jsonl, hf://datasets/someone/rows@v2/data/*]"]
    succeeded(command(*medframe_("run", "chatmed", *names, *SHORT, "out=first")))

    # Only what was named was asked for, each file once, and of it only what is read here.
    assert fetched(mirror) == sorted(["data/a.jsonl", "data/b.jsonl", *(f.name for f in weights.iterdir())])
    named = r"(GET|HEAD) (/api/models|/api/datasets|/datasets)?/someone/(tiny|rows)(/.*)?"
    assert [line for line in mirror.asked if not re.fullmatch(named, line)] == []

    tiny, data = mirror.commit("models/someone/tiny"), mirror.commit("datasets/someone/rows", "v2")
    manifest = json.loads((here / "first/manifest.json").read_text("utf-8"))
    assert manifest["hub"] == {"hf://datasets/someone/rows@v2": data, "someone/tiny": tiny}
    assert manifest["base"]["weights"] == f"someone/tiny@{tiny}"
    assert manifest["data"][0]["path"] == [str(here / "mine.jsonl"), "hf://datasets/someone/rows@v2/data/*"]
    ledger = json.loads((here / "first/ledger.json").read_text("utf-8"))
    assert ledger["sources"][0]["rows"] == 4 + 8 + 8
    assert all(re.match(rf"{here}/mine|hf://datasets/someone/rows@{data}/data/[ab]\.jsonl:\d", place)
               for place in ledger["held_out"])  # fmt: skip
    card = (here / "first/README.md").read_text("utf-8")
    assert f"- base: `someone/tiny@{tiny}`" in card
    assert "From `hf://datasets/someone/rows@v2/data/*`." in card
    assert str(here) not in card

    # The branches move on: the run still means the model that it was trained on.
    for repository, branch in (("models/someone/tiny", "main"), ("datasets/someone/rows", "v2")):
        mirror.repositories[repository][branch] = {"config.json": b"{}"}
    mirror.asked.clear()
    succeeded(command(*medframe_("chat", "first")))
    assert mirror.asked == []

    # As a kill after the first checkpoint leaves it.
    again = here / "first"
    (again / "manifest.json").write_text(json.dumps({**manifest, "state": "training"}), "utf-8")
    shutil.rmtree(again / "checkpoints/checkpoint-2")
    shutil.rmtree(again / "adapter")
    lines = medframe_("run", "chatmed", *names, *SHORT, "out=first", "--resume")
    assert "Going on from checkpoint-1." in succeeded(command(*lines)).stdout
    assert mirror.asked == []
    assert json.loads((again / "manifest.json").read_text("utf-8"))["hub"] == manifest["hub"]

    bound = succeeded(command("-c", BOUND, *names, *SHORT, HF_HUB_OFFLINE="1", HF_ENDPOINT=DEAD)).stdout
    assert json.loads(bound)["hub"] == manifest["hub"]
    assert [source["content"] for source in json.loads(bound)["data"]] == [s["content"] for s in manifest["data"]]


def test_a_run_on_a_local_directory_asks_the_hub_for_nothing(
    command: Command, mirror: Mirror, weights: Path, here: Path
) -> None:
    (here / "mine.jsonl").write_bytes(rows(0, 8))
    names = [f"backbone.weights={weights}", f"backbone.tokenizer={weights}", "data.consult.path=mine.jsonl"]
    succeeded(command(*medframe_("run", "chatmed", *names, *SHORT, "out=run")))
    assert mirror.asked == []


def test_composing_a_recipe_asks_the_hub_for_nothing(command: Command, mirror: Mirror) -> None:
    names = ["backbone.weights=someone/tiny@v1", "data.consult.path=hf://datasets/someone/rows"]
    shown = succeeded(command(*medframe_("run", "chatmed", *names, "--print"))).stdout
    assert "weights: someone/tiny@v1\n" in shown
    assert "path: hf://datasets/someone/rows\n" in shown
    assert mirror.asked == []


def test_several_processes_at_once_download_once(command: Command, mirror: Mirror, weights: Path) -> None:
    fetch = "import sys; from medframe.weights import locate; print(locate('someone/tiny'))"
    both = "import subprocess, sys; a, b = (subprocess.Popen([sys.executable, '-c', sys.argv[1]]) for _ in 'ab'); "
    succeeded(command("-c", both + "sys.exit(a.wait() or b.wait())", fetch))
    assert fetched(mirror) == sorted(file.name for file in weights.iterdir())


def test_a_download_that_was_interrupted_goes_on(command: Command, mirror: Mirror, here: Path) -> None:
    model = mirror.repositories["models/someone/tiny"]["main"]
    parts = {name: bytes([n]) * 9 for n, name in enumerate(["model-1.safetensors", "model-2.safetensors"])}
    small = {name: content for name, content in model.items() if not name.endswith(".safetensors")}
    mirror.repositories["models/someone/parts"] = {"main": small | parts | {"consolidated.safetensors": b"both"}}
    fetch = ["-c", "from medframe.weights import locate; print(locate('someone/parts'))"]
    folder = Path(succeeded(command(*fetch)).stdout.strip())
    assert not (folder / "consolidated.safetensors").exists()  # the same tensors again
    assert not (folder / "pytorch_model.bin").exists()

    second = folder / "model-2.safetensors"
    second.resolve().unlink()
    second.unlink()
    mirror.asked.clear()
    offline = command(*medframe_("check", "chatmed", "backbone.weights=someone/parts"), HF_HUB_OFFLINE="1")
    assert offline.returncode == 0  # check reads no weights
    wanting = command(*medframe_("run", "chatmed", "backbone.weights=someone/parts", *SHORT), HF_HUB_OFFLINE="1")
    assert wanting.returncode == 2
    assert "someone/parts is only in part in the cache" in wanting.stderr
    succeeded(command(*fetch))
    assert fetched(mirror) == ["model-2.safetensors"]


# ---- what cannot be had, in one line


WEIGHTS = {
    "backbone.weights=someone/nothing": "MIRROR has no model someone/nothing, or a private one: check the",
    "backbone.tokenizer=someone/nothing": "backbone.tokenizer: no directory someone/nothing is here, and",
    "backbone.adapters=[someone/nothing]": "backbone.adapters: no directory someone/nothing is here, and",
    "backbone.weights=someone/tiny@v9": "someone/tiny has no revision 'v9' at MIRROR/someone/tiny",
    "backbone.weights=someone/gated": "is gated: accept its conditions at MIRROR/someone/gated, then log in",
    "backbone.weights=hf://someone/tiny": "a hub model is named OWNER/NAME or OWNER/NAME@REVISION",
}


@pytest.mark.parametrize(
    ("problems", "environment"),
    [
        (WEIGHTS, {}),
        ({"backbone.weights=someone/tiny": f"someone/tiny could not be fetched from {DEAD}: "}, {"HF_ENDPOINT": DEAD}),
        (
            {
                "backbone.weights=someone/tiny": "someone/tiny is not in the cache, ",
                "backbone.tokenizer=someone/tiny": "and HF_HUB_OFFLINE is on: fetch it once without",
            },
            {"HF_HUB_OFFLINE": "1"},
        ),
    ],
)
def test_weights_that_cannot_be_had(
    command: Command, mirror: Mirror, problems: dict[str, str], environment: dict[str, str]
) -> None:
    mirror.repositories["models/someone/gated"] = mirror.repositories["models/someone/tiny"]
    mirror.gated.add("models/someone/gated")
    every = """if True:
        import sys
        from medframe.cli import main
        for override in sys.argv[1:]:
            sys.argv = ["medframe", "check", "chatmed", override]
            try:
                main()
            except SystemExit as end:
                assert end.code == 2
    """
    printed = succeeded(command("-c", every, *problems, **environment)).stdout
    found = [line for line in printed.splitlines() if "problem" in line]
    for said, line in zip(problems.values(), found, strict=True):
        assert said.replace("MIRROR", mirror.url) in line


DATA = {
    # path -> the files that are found, or the error
    "hf://datasets/someone/rows/data/a.jsonl": ["data/a.jsonl"],
    "hf://datasets/someone/rows@v2/data/b.jsonl": ["data/b.jsonl"],
    "hf://datasets/someone/rows/data/*.jsonl": ["data/a.jsonl"],
    "hf://datasets/someone/rows/**/*.jsonl": ["data/a.jsonl", "data/old/c.jsonl"],
    "hf://datasets/someone/rows": ["data/a.jsonl", "data/old/c.jsonl"],
    "hf://datasets/someone/brackets/[1].json": ["[1].json"],
    "hf://datasets/someone/same": ["one.csv", "two.csv"],
    "hf://datasets/someone/rows/data/aa.jsonl": "data/aa.jsonl: no such file; did you mean data/a.jsonl?",
    "hf://datasets/someone/rows/zzz": "no such file; there is README.md, data/a.jsonl, data/old/c.jsonl",
    "hf://datasets/someone/rows/data": "rows/data: is a folder; name its files, for example hf://datasets/someone/",
    "hf://datasets/someone/rows/*.csv": "matches no file of the data set; it holds README.md, data/a.jsonl, ",
    "hf://datasets/someone/kinds": "kinds: holds a.csv, a.jsonl; name one, hf://datasets/someone/kinds/a.jsonl, or",
    "hf://datasets/someone/splits": "splits: holds test.json, train.json; name one",
    "hf://datasets/someone/parquet": "no file of rows that is read here (.json, .jsonl, .ndjson, .csv, .tsv), only ",
    "hf://datasets/someone/nothing": "MIRROR has no data set someone/nothing, or a private one",
    "hf://datasets/someone/rows@v9": "someone/rows has no revision 'v9' at MIRROR/datasets/someone/rows",
    "hf://datasets/someone/gated": "is gated: accept its conditions at MIRROR/datasets/someone/gated",
    "hf://someone/rows/a.jsonl": "names a model, not a data set; data of the hub is named hf://datasets/OWNER/NAME",
    "hf://dataset/someone/rows": "Did you mean 'datasets/'? Data of the hub is named hf://datasets/OWNER/NAME",
    "hf://datasets/rows": "Data of the hub is named hf://datasets/OWNER/NAME",
    "https://example.org/a.jsonl": "is no file here, and elsewhere only hf://datasets/OWNER/NAME/FILE is read",
}


def test_files_of_data_sets(command: Command, mirror: Mirror) -> None:
    table = b"query,response\n1,2\n"
    for name, files in {
        "brackets": {"[1].json": rows(0, 1), "1.json": rows(0, 1)},
        "same": {"one.csv": table, "two.csv": table, "dataset_infos.json": b"{}"},  # one blob in the cache
        "kinds": {"a.jsonl": rows(0, 1), "a.csv": table},
        "splits": {"train.json": rows(0, 1), "test.json": rows(0, 1)},
        "parquet": {"data.parquet": b"PAR1", "README.md": b""},
        "gated": {"a.jsonl": rows(0, 1)},
    }.items():
        mirror.repositories[f"datasets/someone/{name}"] = {"main": files}
    mirror.gated.add("datasets/someone/gated")
    find = """if True:
        import json, sys
        from medframe import DataError
        from medframe.files import find
        for path in json.loads(sys.argv[1]):
            try:
                found = [file.as_posix().partition("/snapshots/")[2][41:] for file in find(path)]
            except DataError as error:
                found = str(error)
            print(json.dumps(found))
    """
    printed = succeeded(command("-c", find, json.dumps(list(DATA)))).stdout.splitlines()
    for (path, expected), line in zip(DATA.items(), printed, strict=True):
        found = json.loads(line)
        if isinstance(expected, list):
            assert found == expected, path
        else:
            assert expected.replace("MIRROR", mirror.url) in found, path
            assert "\n" not in found
    assert "a.parquet" not in fetched(mirror)


def test_data_offline_is_what_the_cache_holds(command: Command, mirror: Mirror, here: Path) -> None:
    path = "data.consult.path=hf://datasets/someone/rows/data/a.jsonl"
    empty = command(*medframe_("check", "chatmed", path), HF_HUB_OFFLINE="1")
    assert empty.returncode == 2
    assert "hf://datasets/someone/rows is not in the cache, " in empty.stdout
    # As `hf download` leaves it: the file alone, without the list of what else there is.
    succeeded(command("-c", "import huggingface_hub as hub; hub.hf_hub_download('someone/rows', 'data/a.jsonl', "
                      "repo_type='dataset')"))  # fmt: skip
    mirror.asked.clear()
    shutil.rmtree(here.parent / "home/hub/datasets--someone--rows/trees", ignore_errors=True)
    offline = succeeded(command(*medframe_("check", "chatmed", path, *SHORT), HF_HUB_OFFLINE="1"))
    assert "8 rows" in offline.stdout
    assert mirror.asked == []


def test_a_bare_hub_id_as_a_data_path_is_told_how_the_hub_is_named(medframe: Medframe, here: Path) -> None:
    ended = medframe("check", "chatmed", "data.consult.path=someone/rows")
    assert ended.code == 2
    assert "a data set of the hub is named hf://datasets/someone/rows" in ended.out
