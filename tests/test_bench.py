"""`medframe bench`: what it measures, that variants take turns, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Consultations, Distribution, Medframe

from medframe.bench.turns import Failed, measure
from medframe.bench.variants import variants
from medframe.compose import compose
from medframe.forecast.forecast import forecast
from medframe.prepare import prepare
from medframe.recipe import build

# A trainer that tells of every third step only, and neither of its progress nor of what it holds.
PLAIN = """\
from dataclasses import dataclass
import medframe

@dataclass(kw_only=True)
class Plain(medframe.Trainer):
    "Some steps of SGD."
    fault: str = ""
    def fit(self, job):
        import torch
        if self.fault:
            print("a library's advice")
            raise {"said": medframe.RunError, "bug": LookupError}[self.fault]("no such thing\\nat all")
        model = job.load_model().train()
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        for step, batch in enumerate(job.train.epoch(0), 1):
            labels = batch.pop("labels")
            loss = model(**batch, use_cache=False, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 3 == 0:
                job.log(step, 99, {"loss": float(loss)})
        with job.saving("model") as folder:
            model.save_pretrained(folder)

@medframe.hookimpl
def trainers():
    return {"plain": Plain}
"""


def measured(medframe: Medframe, *arguments: object) -> list[dict[str, Any]]:
    ended = medframe("bench", *arguments, "--steps", 3, "--json", "bench.json")
    assert ended.code == 0, ended
    found = json.loads(Path("bench.json").read_text("utf-8"))
    Path("bench.json").unlink()
    assert isinstance(found, list)
    return found


def test_two_variants_are_measured_in_turn(medframe: Medframe, recipe: Path, consultations: Consultations) -> None:
    consultations([{"query": "头疼" * (1 + n % 4), "response": "多休息"} for n in range(90)])
    before = sorted(recipe.parent.iterdir())
    batching = "batching={kind: packed, tokens: 160},{kind: padded, rows: 4}"
    packed, padded = measured(medframe, recipe, batching)
    assert sorted(recipe.parent.iterdir()) == before, "something was left where the recipe lies"
    assert (packed["kind"], padded["kind"]) == ("packed", "padded")
    assert packed["name"] == "batching={kind: packed, tokens: 160}"
    assert packed["padding"] == 0 < padded["padding"] < 0.3
    for found in (packed, padded):
        assert (found["steps"], found["warm_up"], found["dtype"]) == (3, 3, "float32")
        assert 0 < found["fastest"] <= found["step_seconds"] <= found["slowest"]
        assert found["supervised_tokens_per_second"] < found["tokens_per_second"]
        assert 0 < found["needed"] * found["tokens_per_second"] / found["tokens_per_step"] < 2 * found["ceiling"]
        assert found["tensors"] < found["peak"]
    # Four rows of 14 to 20 tokens, and as many as go into 160.
    assert 4 * 14 <= padded["tokens_per_step"] <= 4 * 20
    assert 140 <= packed["tokens_per_step"] <= 160
    for chosen, found in (("{kind: packed, tokens: 160}", packed), ("{kind: padded, rows: 4}", padded)):
        built = build(compose(recipe, [f"batching={chosen}"]))
        told = forecast(built, prepare(built).train)
        assert told
        memory, operations, steps = told.memory(1), told.operations(1), told.steps(1)
        assert memory and operations and steps
        assert memory.total == pytest.approx(found["tensors"], rel=0.15)
        # Of equal steps, a step takes its share of what the whole training takes.
        assert found["needed"] == pytest.approx(operations / steps, rel=0.15)
        assert found["whole"] == steps


def test_two_processes_are_measured_together(medframe: Medframe, recipe: Path, consultations: Consultations) -> None:
    consultations([{"query": "头疼", "response": "多休息"} for _ in range(60)])
    (found,) = measured(medframe, recipe, "processes=2", "batching={kind: padded, rows: 2}")
    assert (found["processes"], found["steps"]) == (2, 3)
    assert found["tokens_per_step"] == 2 * 2 * (2 + 3 + 11)
    ended = medframe("bench", recipe, "processes=2", "trainer.gradient_accumulation_steps=3")
    assert ended.code == 2
    assert "cannot be shared evenly by 2 processes" in ended.err
    assert "Traceback" not in ended.err


@pytest.fixture
def plain(recipe: Path, distribution: Distribution, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Arguments by which a third party's trainer trains."""
    site = distribution("plain-trainer", {"plain_trainer": PLAIN}, ["plain_trainer"])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])]))
    rows = [{"query": "头疼", "response": "多休息"}] * 60
    (recipe.parent / "consultations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return [recipe, "trainer={use: plain}", "batching={kind: padded, rows: 2}"]


def test_a_trainer_that_only_logs_is_measured(
    medframe: Medframe, plain: list[object], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = here / "/".join(["folder" * 5] * 4)  # longer than the name of a socket can be
    deep.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    ended = medframe("bench", *plain, "--steps", 6, "--json", "bench.json")
    assert ended.code == 0, ended
    assert "needed operations: unknown" in ended.out
    (found,) = json.loads(Path("bench.json").read_text("utf-8"))
    assert found["steps"] == 3
    assert found["tokens_per_step"] == 2 * (2 + 3 + 11)
    assert not (here / "runs").exists()
    assert not list(deep.iterdir())


def test_what_a_trainer_says_as_it_fails_is_told_without_what_was_said_before(
    medframe: Medframe, plain: list[object]
) -> None:
    ended = medframe("bench", *plain, "trainer.fault=said")
    assert (ended.code, ended.err) == (2, "Error: no such thing\nat all\n")
    recipe, *overrides = plain
    with pytest.raises(Failed) as bug:
        measure(Path(str(recipe)), variants([*map(str, overrides), "trainer.fault=bug"]), 3, apart=False)
    assert bug.value.exit_code == 1
    (said,) = bug.value.args
    assert said.startswith("ended with code 1:")
    assert "LookupError: no such thing" in said


def test_ctrl_c_leaves_no_process_and_no_folder(recipe: Path, here: Path) -> None:
    line = [sys.executable, "-m", "medframe", "bench", str(recipe), "trainer.num_train_epochs=9999", "--steps", "9999"]
    environment = {**os.environ, "TMPDIR": str(here)}
    bench = subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (ports := list(here.glob("medframe-bench-*/*/turns"))):
        assert bench.poll() is None
        time.sleep(0.05)
    time.sleep(1)
    bench.send_signal(signal.SIGINT)
    _, said = bench.communicate(timeout=60)
    assert (bench.returncode, said.strip()) == (130, "Interrupted.")
    assert not ports[0].parents[1].exists()
    lines = [file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if file.exists()]
    assert not [line for line in lines if bytes(ports[0].parent) in line]


def test_what_a_run_would_refuse_is_refused_and_said(medframe: Medframe, recipe: Path) -> None:
    ended = medframe("bench", recipe, "trainer.rank=8,nine")
    assert (ended.code, "trainer.rank" in ended.err) == (2, True)
    # What only a process that trains can find comes with the variant's name.
    ended = medframe("bench", recipe, "batching=null,{kind: packed, tokens: 20}")
    assert ended.code == 2
    assert "batching={kind: packed, tokens: 20}: batching.tokens is 20, but " in ended.err
    assert "Traceback" not in ended.err
    assert medframe("bench", recipe, "--steps", 0).code == 2
    ended = medframe("bench", recipe, "--json", "no/where.json")
    assert (ended.code, "--json: there is no folder no" in ended.err) == (2, True)


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("batching.kind=packed,padded", ["packed", "padded"]),
        ("trainer.targets=[q_proj,v_proj]", ["[q_proj,v_proj]"]),
        ("trainer.targets=[q_proj],[q_proj,v_proj]", ["[q_proj]", "[q_proj,v_proj]"]),
        ("batching={kind: packed, tokens: 9},{kind: padded}", ["{kind: packed, tokens: 9}", "{kind: padded}"]),
        ("prompt.system='a,b'", ["'a,b'"]),
        ("out=a", ["a"]),
    ],
)
def test_commas_part_values_unless_they_are_within_one(override: str, values: list[str]) -> None:
    key = override.partition("=")[0]
    assert [variant.overrides for variant in variants([override])] == [(f"{key}={value}",) for value in values]


def test_several_keys_are_compared_in_every_combination() -> None:
    found = variants(["a=1,2", "c=5", "b=3,4"])
    assert [variant.name for variant in found] == ["a=1 b=3", "a=1 b=4", "a=2 b=3", "a=2 b=4"]
    assert found[3].overrides == ("a=2", "c=5", "b=4")
