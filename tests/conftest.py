"""What the tests share: a cache of their own, the command in-process, small files, distributions made on the spot."""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
# Two processes share the cores: more threads than cores make tiny models many times slower. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from medframe.cli import main
from medframe.plugins import catalog

# A shell has what it starts in the background ignore Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Medframe = Callable[..., Ended]
Consultations = Callable[..., Path]
Distribution = Callable[..., Path]

RECIPE = """\
out: runs/here
backbone: {use: llama}
data:
  consult: {use: chatmed-consult, path: consultations.jsonl}
prompt: {use: chatmed}
trainer: {use: lora}
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of few tests come first: they take longest, and the last one would keep one of two processes alone."""
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (tests[item.path], item.path))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The session's MEDFRAME_CACHE: a test never touches the user's own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDFRAME_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module", autouse=True)
def frozen() -> None:
    """Garbage is collected without a look at the libraries: accelerate and transformers have it done in every run."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def medframe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Medframe:
    """Runs `medframe ARGS...` in this process, from the working directory of the test."""

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["medframe", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert isinstance(end.value.code, int)
        return Ended(end.value.code, out, err)

    return call


@contextmanager
def serving(*arguments: object) -> Iterator[str]:
    """`medframe serve ARGS...` in a process of its own, on a free port; its address."""
    line = [sys.executable, "-m", "medframe", "serve", *map(str, arguments), "--port", "0"]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=said, text=True)
        try:
            assert process.stdout
            for told in process.stdout:
                if told.startswith("Listening on "):
                    yield told.split()[-1]
                    return
            said.seek(0)
            raise AssertionError(f"it ended with {process.wait()}: {said.read()}")
        finally:
            process.terminate()
            process.wait(30)
            said.seek(0)
            assert "Traceback" not in said.read()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of the test's own."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def consultations(here: Path) -> Consultations:
    """Writes JSON lines: so many consultations, or the rows given; a row that is text is written as it is."""

    def write(rows: int | Sequence[object] = 8, name: str = "consultations.jsonl") -> Path:
        if isinstance(rows, int):
            rows = [
                {"query": f"孩子咳嗽第{i}天了，要不要拍片子？", "response": f"先听诊；超过{i + 7}天不好再拍。"}
                for i in range(rows)
            ]
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        file = here / name
        file.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        return file

    return write


@pytest.fixture
def recipe(here: Path, consultations: Consultations) -> Path:
    """recipe.yaml, the smallest that runs, beside consultations.jsonl."""
    consultations()
    file = here / "recipe.yaml"
    file.write_text(RECIPE, "utf-8")
    return file


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Distribution]:
    """Installs a distribution: modules by name, and its entry points; answers with the folder it lies in.

    Module names must differ from test to test: this process remembers what it has imported.
    """
    modules: set[str] = set()

    def install(name: str, sources: Mapping[str, str], entries: Sequence[str], version: str = "1.0") -> Path:
        site = tmp_path / "site"
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        points = "".join(f"{entry}\n" if "=" in entry else f"{entry} = {entry}\n" for entry in entries)
        info.joinpath("entry_points.txt").write_text(f"[medframe]\n{points}")
        for module, source in sources.items():
            (site / f"{module}.py").write_text(source, "utf-8")
            modules.add(module)
        monkeypatch.syspath_prepend(site)
        catalog.cache_clear()
        return site

    yield install
    monkeypatch.undo()
    for module in modules:
        sys.modules.pop(module, None)
    importlib.invalidate_caches()
    catalog.cache_clear()
