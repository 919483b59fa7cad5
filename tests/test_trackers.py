"""Trackers are told what metrics.jsonl holds where a recipe names them, and are left alone where none does."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import Consultations, Medframe

from medframe import Job, RecipeError
from medframe_trainers import trackers
from medframe_trainers.trackers import Tracker

Told = dict[tuple[str, int], list[float]]
"""(name, step) -> what was told of it."""

SMALL = [
    "held_out={rows: 4}",
    "compare=0",
    "trainer.max_steps=24",
    "trainer.save_steps=8",
    "trainer.logging_steps=1",
    "trainer.warmup_steps=0",
    "trainer.modules_to_save=[]",
]


def metrics(out: Path) -> Told:
    told: Told = {}
    text = (out / "metrics.jsonl").read_text("utf-8")
    for line in text[: text.rfind("\n") + 1].splitlines():  # the last may be being written
        values = json.loads(line)
        step = values.pop("step")
        for name, value in values.items():
            told.setdefault((name, step), []).append(value)
    return told


def command(file: Path, out: Path, *more: str) -> list[str]:
    names = [f"data.consult.path={file}", f"out={out}", *SMALL, *more]
    return [sys.executable, "-m", "medframe", "run", "chatmed", *names]


def stopped_and_resumed(
    file: Path, out: Path, tracker: str, by: signal.Signals, environment: Mapping[str, str] | None = None
) -> None:
    """A run that is stopped beyond its first checkpoint and resumed: where it was killed, some steps come twice."""
    env = {**os.environ, **(environment or {})}
    name = f"trainer.report_to=[{tracker}]"
    with subprocess.Popen(command(file, out, name), env=env, stderr=subprocess.PIPE, text=True) as process:
        while not (out / "checkpoints/checkpoint-8").exists() or ("loss", 11) not in metrics(out):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(by)
        process.communicate()
    ended = subprocess.run(command(file, out, name, "--resume"), env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert {step for _, step in metrics(out)} == set(range(25))


def same(told: Told, expected: Told) -> bool:
    """Whether each figure was told once, as a number of 32 bits."""
    return told.keys() == expected.keys() and all(told[key] == pytest.approx(expected[key]) for key in expected)


def test_nothing_of_a_tracker_is_imported_unless_named(
    medframe: Medframe, consultations: Consultations, here: Path
) -> None:
    before = set(sys.modules)
    ended = medframe(*command(consultations(24), here / "mine", "trainer.max_steps=1")[3:])
    assert ended.code == 0, ended.err
    assert not {"tensorboard", "wandb"} & (set(sys.modules) - before)  # DeepSpeed tries for mlflow by itself
    assert {entry.name for entry in here.iterdir()} == {"consultations.jsonl", "mine"}
    assert not {"tensorboard", "wandb", "trackers.json"} & {entry.name for entry in (here / "mine").iterdir()}


def test_tensorboard_is_told_what_metrics_holds_also_after_a_resume(consultations: Consultations, here: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    file, out = consultations(24), here / "mine"
    stopped_and_resumed(file, out, "tensorboard", signal.SIGKILL)
    board = EventAccumulator(str(out / "tensorboard")).Reload()
    told: Told = {}
    for name in board.Tags()["scalars"]:
        for event in board.Scalars(name):
            told.setdefault((name, event.step), []).append(event.value)
    assert same(told, metrics(out))
    # Besides, it is told the recipe, and no patient's words.
    assert board.Tags()["tensors"] == ["recipe/text_summary"]
    written = b"".join(file.read_bytes() for file in (out / "tensorboard").iterdir())
    assert b"use: chatmed-consult" in written
    assert "孩子咳嗽".encode() not in written


def test_mlflow_is_told_what_metrics_holds_also_after_a_resume(consultations: Consultations, here: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    file, out, store = consultations(24), here / "mine", f"sqlite:///{here}/mlflow.db"
    stopped_and_resumed(file, out, "mlflow", signal.SIGKILL, {"MLFLOW_TRACKING_URI": store})
    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs(["0"])
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    assert run.data.params["data.consult.use"] == "chatmed-consult"
    told: Told = {}
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            told.setdefault((name, metric.step), []).append(metric.value)
    expected = metrics(out)
    for key in expected:
        if key[0] == "supervised_tokens_per_second":  # it forgets nothing: of a step that came twice, the first speed
            expected[key] = told[key][:1]
    assert same(told, expected)


def test_wandb_is_told_figures_alone_of_one_run_also_after_a_resume(consultations: Consultations, here: Path) -> None:
    pytest.importorskip("wandb")
    file, out = consultations(24), here / "mine"
    # Of a killed run it loses what it has not written yet.
    stopped_and_resumed(file, out, "wandb", signal.SIGINT, {"WANDB_MODE": "offline"})
    logs = sorted(out.glob("wandb/offline-run-*/*.wandb"))
    assert len(logs) == 2
    assert len({log.name for log in logs}) == 1  # two parts of one run
    for log in logs:
        assert b"held_out_loss" in log.read_bytes()
        assert b"chatmed-consult" in log.read_bytes()
        assert "孩子咳嗽".encode() not in log.read_bytes()
        assert [path.name for path in log.parent.glob("files/*")] == []  # neither code, output nor metadata
    assert {entry.name for entry in here.iterdir()} == {"consultations.jsonl", "mine"}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[tensorbord]", "report_to: there is no tracker 'tensorbord'; did you mean 'tensorboard'?"),
        ("[none]", "report_to: there is no tracker 'none'; known: tensorboard, wandb, mlflow; none: []"),
        ("wandb", "trainer.report_to: must be a list: [wandb]"),
    ],
)
def test_a_tracker_that_is_none_is_refused(medframe: Medframe, recipe: Path, value: str, said: str) -> None:
    ended = medframe("run", recipe, f"trainer.report_to={value}")
    assert ended.code == 2
    assert said in ended.err


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_told_how_to_be(
    medframe: Medframe, recipe: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    ended = medframe("run", recipe, f"trainer.report_to=[{name}]")
    assert ended.code == 2
    assert f"trainer: report_to: {name} is not installed: pip install 'medframe[{name}]'" in ended.err


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_folder_such_as_wandb_leaves_where_it_ran_is_not_wandb(
    medframe: Medframe, recipe: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "wandb").mkdir()
    monkeypatch.syspath_prepend(here)
    ended = medframe("run", recipe, "trainer.report_to=[wandb]")
    assert ended.code == 2
    assert "wandb is not installed" in ended.err


class Refusing(Tracker):
    """Takes one step."""

    def __init__(self, job: Job) -> None:
        self.taken = 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self.taken:
            raise OSError("the server is\ngone")
        self.taken += 1

    def close(self, failed: bool) -> None:
        raise AssertionError("it was left out")


class Closed(Refusing):
    def __init__(self, job: Job) -> None:
        raise ConnectionError("log in first")


def test_a_tracker_that_fails_does_not_end_the_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(trackers, "TRACKERS", {"refusing": Refusing, "closed": Closed})
    logged: list[int] = []
    unused: Any = None
    job = Job(
        out=tmp_path,
        backbone=unused,
        tokenizer=unused,
        prompt=unused,
        train=unused,
        held_out=None,
        seed=1,
        resume=None,
        log=lambda step, of, values: logged.append(step),
    )
    with trackers.tracked(job, ["refusing"]) as told:
        for step in range(4):
            told.log(step, 4, {"loss": 1.0})
    assert logged == [0, 1, 2, 3]
    said = "WARNING trainer.report_to: refusing is told nothing more: the server is gone\n"
    assert capsys.readouterr().err == said
    refused = pytest.raises(RecipeError, match=r"trainer\.report_to: closed cannot be opened: log in first")
    with refused, trackers.tracked(job, ["closed"]):
        raise AssertionError("it was opened")
