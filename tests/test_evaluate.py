"""`medframe evaluate`: the loss that training logged, with how many tokens it is of and how sure it is."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Consultations, Medframe
from test_merge import trained, written

from medframe.dataset import Turn
from medframe.evaluate.interval import interval
from medframe.evaluate.loss import Losses
from medframe.trained import open_run
from medframe_backbones.llama import Llama

SAMPLE = Path(__file__).parents[1] / "plugins/medframe_datasets/samples/chatmed_consult.jsonl"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps, on a copy of the sample that may be changed."""
    folder = tmp_path_factory.mktemp("evaluate")
    shutil.copy(SAMPLE, folder / "rows.jsonl")
    return trained(folder / "run", f"data.consult.path={folder / 'rows.jsonl'}", "trainer.learning_rate=1e-2")


@pytest.fixture
def others(run: Path, tmp_path: Path) -> Path:
    """The rows that the run held out, in a file of their own."""
    lines = (run.parent / "rows.jsonl").read_text("utf-8").splitlines()
    places = json.loads((run / "ledger.json").read_text("utf-8"))["held_out"]
    file = tmp_path / "others.jsonl"
    file.write_text("".join(f"{lines[int(place.rpartition(':')[2]) - 1]}\n" for place in places), "utf-8")
    return file


def measured(file: Path) -> dict[str, Any]:
    """What was measured last."""
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))[-1]
    return found


def test_it_is_the_held_out_loss_of_the_training(medframe: Medframe, run: Path) -> None:
    ended = medframe("evaluate", run)
    assert ended.code == 0, ended.err
    found = measured(run / "evaluation.json")
    before, after = json.loads((run / "manifest.json").read_text("utf-8"))["result"]["held_out_loss"]
    assert found["base"]["loss"] == pytest.approx(before, rel=1e-4)
    assert found["tuned"]["loss"] == pytest.approx(after, rel=1e-4)
    assert found["less_by"]["loss"] == pytest.approx(before - after, rel=1e-3)
    for name in ("base", "tuned", "less_by"):
        low, high = found[name]["interval"]
        assert low < found[name]["loss"] < high
    held_out = json.loads((run / "ledger.json").read_text("utf-8"))["held_out"]
    assert found["data"]["rows"] == found["data"]["examples"] == len(held_out)
    assert f"{found['data']['supervised_tokens']:,} supervised tokens" in ended.out
    assert re.search(rf"tuned +{found['tuned']['loss']:.4f}   [\d.]+ to [\d.]+\n", ended.out)
    assert "bootstrap over rows" in ended.out


def test_it_is_what_transformers_computes_for_the_answer(
    medframe: Medframe, run: Path, consultations: Consultations
) -> None:
    row = {"query": "孩子咳嗽三天了，要不要拍片子？", "response": "先听诊；超过七天不好再拍。"}
    ended = medframe("evaluate", run, "--data", consultations([row]))
    assert ended.code == 0, ended.err
    opened = open_run(run)
    example = opened.encoder.example([Turn("user", row["query"]), Turn("assistant", row["response"])])
    ids = torch.tensor([example.ids])
    labels = torch.where(torch.tensor([list(example.trained)]) == 1, ids, -100)
    with torch.no_grad():
        expected = float(opened.model()(ids, labels=labels).loss)
    found = measured(run / "evaluation.json")
    assert found["tuned"]["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["data"]["supervised_tokens"] == example.supervised


def test_a_merged_model_loses_what_its_run_loses(medframe: Medframe, run: Path, others: Path, tmp_path: Path) -> None:
    assert medframe("merge", run, "--out", tmp_path / "merged").code == 0
    assert medframe("evaluate", run, "--data", others).code == 0
    expected = measured(run / "evaluation.json")
    base = written(Llama(), tmp_path / "base")
    ended = medframe("evaluate", tmp_path / "merged", "--data", others, "--source", "chatmed-consult", "--base", base)
    assert ended.code == 0, ended.err
    found = measured(tmp_path / "merged" / "evaluation.json")
    for name in ("base", "tuned", "less_by"):
        assert found[name]["loss"] == pytest.approx(expected[name]["loss"], rel=1e-4)
    assert found["data"] == expected["data"]
    # Alone, it has nothing to be compared with.
    assert medframe("evaluate", tmp_path / "merged", "--data", others, "--source", "chatmed-consult").code == 0
    assert measured(tmp_path / "merged" / "evaluation.json")["base"] is None
    assert len(json.loads((tmp_path / "merged" / "evaluation.json").read_text("utf-8"))) == 2
    refused = medframe("evaluate", tmp_path / "merged")
    assert "--data FILE --source NAME" in refused.err
    assert "--source" in medframe("evaluate", tmp_path / "merged", "--data", others).err


def test_a_plain_directory_is_measured_and_left_as_it_is(medframe: Medframe, others: Path, tmp_path: Path) -> None:
    base = written(Llama(), tmp_path / "base")
    before = sorted(base.iterdir())
    line = ["evaluate", base, "--prompt", "chatmed", "--data", others, "--source", "chatmed-consult"]
    ended = medframe(*line)
    assert ended.code == 0, ended.err
    assert sorted(base.iterdir()) == before
    assert medframe(*line, "--out", tmp_path / "found.json").code == 0
    assert f"{measured(tmp_path / 'found.json')['tuned']['loss']:.4f}" in ended.out


def test_packed_or_padded_it_is_the_same(
    medframe: Medframe, run: Path, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medframe.batch import Batches

    assert medframe("evaluate", run, "--data", others, "--out", tmp_path / "packed.json").code == 0

    def pad(self: Batches, model: Any, gather: Any = None) -> None:
        self.kind = "padded"

    monkeypatch.setattr(Batches, "suit", pad)
    assert medframe("evaluate", run, "--data", others, "--out", tmp_path / "padded.json").code == 0
    packed, padded = measured(tmp_path / "packed.json"), measured(tmp_path / "padded.json")
    for name in ("base", "tuned", "less_by"):
        assert padded[name]["loss"] == pytest.approx(packed[name]["loss"], rel=1e-5)
        assert padded[name]["interval"] == pytest.approx(packed[name]["interval"], rel=1e-4)


def test_rounded_weights_are_measured_as_such(medframe: Medframe, run: Path, others: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "evaluation.json"))
    for bits in ([], ["--weights-dtype", "int4"]):
        assert medframe("evaluate", tmp_path / "run", "--data", others, *bits).code == 0
    whole, rounded = json.loads((tmp_path / "run" / "evaluation.json").read_text("utf-8"))
    assert (whole["weights_dtype"], rounded["weights_dtype"]) == (None, "int4")
    assert rounded["tuned"]["loss"] != whole["tuned"]["loss"]
    assert rounded["tuned"]["loss"] == pytest.approx(whole["tuned"]["loss"], rel=0.2)


def test_questions_that_were_asked_in_training_are_told(medframe: Medframe, run: Path, tmp_path: Path) -> None:
    rows = (run.parent / "rows.jsonl").read_text("utf-8").splitlines()[:40]
    file = tmp_path / "mixed.jsonl"
    file.write_text("".join(f"{row}\n" for row in rows), "utf-8")
    ended = medframe("evaluate", run, "--data", file)
    assert "WARNING 36 of the questions are also asked in training: the loss flatters" in ended.out
    ended = medframe("evaluate", run, "--data", run.parent / "rows.jsonl")
    assert "is a file that it was trained on" in ended.out


def test_rows_that_cannot_be_used_are_counted(
    medframe: Medframe, run: Path, others: Path, consultations: Consultations
) -> None:
    good = others.read_text("utf-8").splitlines()
    file = consultations([*good, "{", {"query": "胃疼", "response": ""}], "some.jsonl")
    ended = medframe("evaluate", run, "--data", file)
    assert ended.code == 0, ended.err
    assert f"some.jsonl: {len(good)} rows, {len(good)} examples" in ended.out
    assert "2 rows could not be used" in ended.out
    ended = medframe("evaluate", run, "--data", consultations(["{"], "none.jsonl"))
    assert ended.code == 2
    assert "none of its 1 rows can be measured on; first" in ended.err


def test_what_cannot_be_measured_is_said(medframe: Medframe, run: Path, others: Path, tmp_path: Path) -> None:
    for arguments, why in (
        ([run, "--source", "consult"], "--source: it explains the rows of --data FILE"),
        ([run, "--data", others, "--source", "consalt"], "unknown dataset 'consalt'"),
        ([run, "--data", tmp_path / "nowhere.jsonl"], "no such file"),
        ([tmp_path], "give a run, a merged model"),
        ([run, "--out", tmp_path / "no" / "found.json"], "there is no folder"),
        ([run, "--data", others, "--out", others], "is not what medframe evaluate writes"),
    ):
        ended = medframe("evaluate", *arguments)
        assert ended.code == 2, ended.out
        assert why in ended.err


def test_rows_that_have_changed_since_are_not_taken_for_those_held_out(
    medframe: Medframe, run: Path, others: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "evaluation.json"))
    recipe = tmp_path / "run" / "recipe.yaml"
    rows = tmp_path / "rows.jsonl"
    text = (run.parent / "rows.jsonl").read_text("utf-8")
    rows.write_text(text.replace("我", "咱"), "utf-8")
    recipe.write_text(recipe.read_text("utf-8").replace(str(run.parent / "rows.jsonl"), str(rows)), "utf-8")
    ended = medframe("evaluate", tmp_path / "run")
    assert ended.code == 2
    assert "the rows of consult are not those that the run saw" in ended.err
    assert not (tmp_path / "run" / "evaluation.json").exists()
    rows.unlink()
    ended = medframe("evaluate", tmp_path / "run", "--data", others)
    assert ended.code == 0, ended.err
    assert "is not known" in ended.out
    recipe.write_text(re.sub(r"held_out:\n(  .*\n)+", "held_out: null\n", recipe.read_text("utf-8")), "utf-8")
    assert "held nothing out" in medframe("evaluate", tmp_path / "run").err


def test_several_data_sets_leave_it_to_the_user(medframe: Medframe, run: Path, others: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    recipe = tmp_path / "run" / "recipe.yaml"
    more = "data:\n  more:\n    use: alpaca\n    path: sample\n"
    recipe.write_text(recipe.read_text("utf-8").replace("data:\n", more, 1), "utf-8")
    ended = medframe("evaluate", tmp_path / "run", "--data", others)
    assert ended.code == 2
    assert "--source: the run read more, consult; say which" in ended.err
    assert medframe("evaluate", tmp_path / "run", "--data", others, "--source", "consult").code == 0


def test_the_interval_is_of_rows_not_of_tokens() -> None:
    """Rows of ten tokens each that are all alike tell no more than one token would."""
    random = np.random.RandomState(1)
    per_row = random.gamma(2.0, 1.0, 400)
    tokens = random.randint(5, 15, 400)
    found = Losses(per_row * tokens, tokens)
    low, high = interval(found)
    # The delta method for a ratio of sums (Cochran, Sampling Techniques, 1977, chapter 6).
    spread = np.sqrt(np.sum((found.sums - found.mean * tokens) ** 2)) / tokens.sum()
    assert (high - low) / 2 == pytest.approx(1.96 * spread, rel=0.1)
    assert low < found.mean < high


def test_a_difference_is_surer_than_what_it_is_of() -> None:
    random = np.random.RandomState(2)
    tokens = np.full(100, 10)
    hard = random.gamma(2.0, 10.0, 100)
    one, other = Losses(hard, tokens), Losses(hard + 5 + random.normal(0, 0.1, 100), tokens)
    low, high = interval(one, minus=other)
    assert low < 0.5 < high
    assert high - low < 0.1 * np.diff(interval(one)).item()
