"""Every shipped recipe: its embedded profile learns, what it saved computes the same elsewhere, its published profile
reads the published files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import Medframe

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
NAMES = sorted(file.stem for file in (ROOT / "recipes").glob("*.yaml"))
FEW_STEPS = ["trainer.max_steps=12", "trainer.warmup_steps=2", "trainer.logging_steps=3", "trainer.save_steps=12"]


class Runs(NamedTuple):
    """The embedded profile of every recipe after a few steps, proven in another process."""

    folder: Path

    def logged(self, name: str, what: str) -> list[float]:
        lines = (self.folder / name / "metrics.jsonl").read_text("utf-8").splitlines()
        return [line[what] for line in map(json.loads, lines) if what in line]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    from medframe.compose import compose
    from medframe.recipe import build
    from medframe.run import run

    folder = tmp_path_factory.mktemp("embedded")
    for name in NAMES:
        overrides = [f"out={folder / name}", "compare=0", *FEW_STEPS]
        run(build(compose(ROOT / f"recipes/{name}.yaml", overrides)), say=lambda line: None)
    return Runs(folder)


@pytest.mark.parametrize("name", NAMES)
def test_the_embedded_profile_learns(runs: Runs, name: str) -> None:
    losses, held_out = runs.logged(name, "loss"), runs.logged(name, "held_out_loss")
    assert losses[-1] < losses[0] - 0.5
    assert held_out[-1] < held_out[0] - 0.5


@pytest.mark.parametrize("name", NAMES)
def test_opened_again_the_held_out_loss_is_the_same(runs: Runs, name: str) -> None:
    from medframe.compose import compose
    from medframe.prepare import prepare
    from medframe.recipe import build
    from medframe.trained import open_run
    from medframe_trainers.loss import mean_loss

    out = runs.folder / name
    held_out = prepare(build(compose(out / "recipe.yaml"))).held_out
    assert held_out
    found = mean_loss(open_run(out).model(), held_out.epoch(0))
    assert found == pytest.approx(runs.logged(name, "held_out_loss")[-1], abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_chat_template_saved_with_the_weights_asks_as_medframe_does(runs: Runs, name: str) -> None:
    from medframe.dataset import Turn
    from medframe.trained import open_run, trained

    run = open_run(runs.folder / name)
    tokenizer = trained(run.backbone, run.out).load_tokenizer()
    assert run.manifest["prompt"]["chat_template"] == "saved with the tokenizer"
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "头痛三天了，怎么办？"}], add_generation_prompt=True, return_dict=False
    )
    assert asked == run.encoder.question([Turn("user", "头痛三天了，怎么办？")])


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_begins_with_what_it_is_and_how_to_run_it(name: str) -> None:
    lines = (ROOT / f"recipes/{name}.yaml").read_text("utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert any(line.startswith(f"#   medframe run recipes/{name}.yaml ") for line in lines)
    assert any("profile=" in line for line in lines)
    assert any("reported" in line or "anybody's published run" in line for line in lines)


@pytest.mark.parametrize("name", NAMES)
def test_preview_trains_the_answer_and_its_end(medframe: Medframe, here: Path, name: str) -> None:
    (sample,) = [json.loads(line) for line in medframe("preview", name, "--json", "-n", "1").out.splitlines()]
    trained = [label for label in sample["labels"] if label != -100]
    assert 0 < len(trained) < len(sample["labels"])
    assert all(label in (-100, i) for i, label in zip(sample["input_ids"], sample["labels"], strict=True))
    assert sample["labels"][-1] == sample["input_ids"][-1] or name == "qwen"  # ChatML ends in a newline


@pytest.mark.parametrize(
    ("name", "section", "file", "options", "expected"),
    [
        ("bentsao-llama", "knowledge", "bentsao/llama_data.rows0000-5999.json", [], (6000, 5971, 23, 6)),
        ("bentsao-bloom", "knowledge", "bentsao/llama_data.rows0000-5999.json", [], (6000, 5979, 18, 3)),
        ("bentsao-literature", "literature", "bentsao/liver_cancer.rows000-699.json", [], (700, 184, 492, 24)),
        (
            "bentsao-literature",
            "literature",
            "bentsao/liver_cancer.rows000-699.json",
            ["limits.on_overflow=truncate"],
            (700, 184, 131, 385),
        ),
        ("disc", "dialogues", "disc/test_examples.rows000-099.jsonl", [], (100, 98, 2, 0)),
        (
            "disc",
            "dialogues",
            "disc/test_examples.rows000-099.jsonl",
            ["limits.max_length=300", "limits.on_overflow=keep_first"],
            (100, 30, 45, 25),
        ),
        ("shennong", "tcm", "tcm/shennong_tcm_pairs.jsonl", [], (201, 200, 0, 1)),
    ],
)
def test_the_ledger_accounts_for_every_published_row(
    medframe: Medframe,
    here: Path,
    name: str,
    section: str,
    file: str,
    options: list[str],
    expected: tuple[int, int, int, int],
) -> None:
    if not (SHARED / file).exists():
        pytest.skip("the published rows are not here")
    fields = ["profile=published", "backbone.weights=tiny", f"data.{section}.path={SHARED / file}", *options]
    ended = medframe("check", name, "--json", *fields, *(["backbone.adapters=[]"] if name.endswith("alpaca") else []))
    report: dict[str, Any] = json.loads(ended.out)
    assert report["problems"] == []
    (source,) = report["sources"]
    assert (source["rows"], source["kept"], source["shortened"], source["skipped"]) == expected
    assert len(source["entries"]) == source["shortened"] + source["skipped"]
    places = {(entry["file"], entry["line"], entry["element"]) for entry in source["entries"]}
    assert len(places) == len(source["entries"])


@pytest.mark.parametrize(
    ("name", "section", "file"),
    [
        ("bentsao-llama", "knowledge", "bentsao/llama_data.rows0000-5999.json"),
        ("bentsao-literature", "literature", "bentsao/liver_cancer.rows000-699.json"),
        ("disc", "dialogues", "disc/test_examples.rows000-099.jsonl"),
    ],
)
def test_the_published_profile_trains_on_the_published_rows(tmp_path: Path, name: str, section: str, file: str) -> None:
    from medframe.compose import compose
    from medframe.prepare import check_context, job, prepare
    from medframe.recipe import build

    if not (SHARED / file).exists():
        pytest.skip("the published rows are not here")
    fields = ["profile=published", "backbone.weights=tiny", f"data.{section}.path={SHARED / file}"]
    # The published numbers are in the recipe; their 128 samples a step would take minutes here.
    fields += [
        f"out={tmp_path / 'run'}",
        f"data.{section}.limit=60",
        "trainer.max_steps=2",
        "trainer.gradient_accumulation_steps=1",
        "processes=1",
        "trainer.deepspeed=null",
        *([] if name == "disc" else ["held_out.rows=8"]),
    ]
    recipe = build(compose(ROOT / f"recipes/{name}.yaml", fields))
    prepared = prepare(recipe)
    check_context(recipe, prepared)
    logged: list[int] = []
    recipe.trainer.fit(job(recipe, prepared, lambda step, of, values: logged.append(step)))
    assert max(logged) == 2
    assert (recipe.out / ("model" if name == "disc" else "adapter")).is_dir()
