"""Recipes as a user writes them: what wins over what, and what a mistake is told."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import RECIPE, Consultations, Distribution, Ended, Medframe

SHIPPED = Path(__file__).parents[1] / "recipes"


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, "utf-8")
    return file


def printed(ended: Ended) -> dict[str, Any]:
    """What `run --print` shows, read back."""
    assert ended.code == 0, ended.err
    content = yaml.safe_load(ended.out)
    assert isinstance(content, dict)
    return content


def refused(ended: Ended) -> str:
    """The errors of a command that refuses its input."""
    assert ended.code == 2, ended
    assert ended.err.startswith("Error: ")
    return ended.err


# ---- includes


def test_the_file_wins_over_its_includes_and_a_later_include_over_an_earlier(
    medframe: Medframe, recipe: Path, here: Path
) -> None:
    write(here / "base/one.yaml", "seed: 1\ncompare: 1\ntrainer: {rank: 1, alpha: 1, dropout: 0.1}\n")
    write(here / "base/two.yaml", "compare: 2\ntrainer: {alpha: 2, dropout: 0.2}\n")
    write(recipe, "include: [base/one.yaml, base/two.yaml]\n" + RECIPE.replace("lora", "lora, dropout: 0.3"))
    shown = printed(medframe("run", recipe, "--print"))
    assert (shown["seed"], shown["compare"]) == (1, 2)
    assert [shown["trainer"][key] for key in ("rank", "alpha", "dropout")] == [1, 2, 0.3]


def test_one_include_needs_no_list_and_includes_include(medframe: Medframe, recipe: Path, here: Path) -> None:
    write(here / "a/b/deep.yaml", "seed: 5\n")
    write(here / "a/outer.yaml", "include: b/deep.yaml\n")
    write(recipe, "include: a/outer.yaml\n" + RECIPE)
    assert printed(medframe("run", recipe, "--print"))["seed"] == 5


def test_files_that_include_each_other_are_refused_with_the_whole_chain(
    medframe: Medframe, recipe: Path, here: Path
) -> None:
    write(here / "other.yaml", "include: [recipe.yaml]\n")
    write(recipe, "include: [other.yaml]\n" + RECIPE)
    assert "include cycle: recipe.yaml -> other.yaml -> recipe.yaml" in refused(medframe("check", recipe))


def test_an_include_that_is_not_there_is_told_with_the_line_that_names_it(medframe: Medframe, recipe: Path) -> None:
    write(recipe, "# a comment\n" + RECIPE + "include: [base/gone.yaml]\n")
    assert "recipe.yaml:8: no recipe base/gone.yaml" in refused(medframe("check", recipe))


# ---- profiles


def test_a_files_profile_is_applied_to_it_before_the_file_that_includes_it(
    medframe: Medframe, recipe: Path, here: Path
) -> None:
    write(here / "base.yaml", "seed: 1\ntrainer: {rank: 1}\nprofiles: {big: {seed: 2, trainer: {rank: 2}}}\n")
    write(recipe, "include: [base.yaml]\n" + RECIPE.replace("use: lora", "use: lora, rank: 3"))
    shown = printed(medframe("run", recipe, "profile=big", "--print"))
    assert (shown["seed"], shown["trainer"]["rank"]) == (2, 3)


def test_the_profile_is_the_command_lines_else_the_outermost_files(
    medframe: Medframe, recipe: Path, here: Path
) -> None:
    write(here / "base.yaml", "profile: low\nprofiles: {low: {seed: 1}, high: {seed: 2}, top: {seed: 3}}\n")
    write(recipe, "include: [base.yaml]\nprofile: high\n" + RECIPE)
    assert printed(medframe("run", recipe, "--print"))["seed"] == 2
    assert printed(medframe("run", recipe, "profile=top", "--print"))["seed"] == 3
    write(recipe, "include: [base.yaml]\n" + RECIPE)
    assert printed(medframe("run", recipe, "--print"))["seed"] == 42


def test_the_command_line_wins_over_a_profile(medframe: Medframe, recipe: Path) -> None:
    write(recipe, RECIPE + "profile: a\nprofiles: {a: {seed: 1, compare: 1}}\n")
    shown = printed(medframe("run", recipe, "seed=2", "--print"))
    assert (shown["seed"], shown["compare"]) == (2, 1)


def test_an_unknown_profile_names_those_there_are(medframe: Medframe, recipe: Path, here: Path) -> None:
    write(here / "base.yaml", "profiles: {published: {}}\n")
    write(recipe, "include: [base.yaml]\n" + RECIPE + "profiles: {embedded: {seed: 1}}\n")
    said = refused(medframe("check", recipe, "profile=publish"))
    assert "unknown profile 'publish'" in said
    assert "did you mean 'published'?" in said
    assert "embedded, published" in said


def test_a_profile_named_by_a_number_is_applied(medframe: Medframe, recipe: Path) -> None:
    write(recipe, RECIPE + "profiles:\n  2024: {seed: 7}\n")
    assert printed(medframe("run", recipe, "profile=2024", "--print"))["seed"] == 7


# ---- merging


def test_a_section_that_uses_another_component_starts_empty(
    medframe: Medframe, recipe: Path, distribution: Distribution
) -> None:
    source = (
        "from dataclasses import dataclass\nimport medframe\n"
        "from medframe_datasets.chatmed import ChatMedConsult\n"
        "@dataclass(kw_only=True)\nclass Other(ChatMedConsult):\n    'Other.'\n"
        "@medframe.hookimpl\ndef datasets():\n    return {'other': Other}\n"
    )
    distribution("starts-empty", {"starts_empty": source}, ["starts_empty"])
    write(recipe, RECIPE.replace("path:", "query: asked, path:"))
    kept = printed(medframe("run", recipe, "data.consult.path=here.jsonl", "--print"))["data"]["consult"]
    assert kept["query"] == "asked"
    emptied = printed(medframe("run", recipe, "data.consult={use: other, path: here.jsonl}", "--print"))
    assert emptied["data"]["consult"]["query"] == "query"
    assert "data.consult.path: is not set (???)" in refused(medframe("run", recipe, "data.consult.use=other"))


def test_another_kind_of_batching_starts_empty_and_the_same_kind_keeps_its_values(
    medframe: Medframe, recipe: Path
) -> None:
    write(recipe, RECIPE + "batching: {kind: packed, tokens: 512}\n")
    shown = printed(medframe("run", recipe, "batching={kind: padded, rows: 3}", "--print"))
    assert (shown["batching"]["tokens"], shown["batching"]["rows"]) == (None, 3)
    shown = printed(medframe("run", recipe, "batching.kind=packed", "--print"))
    assert shown["batching"]["tokens"] == 512


@pytest.mark.parametrize(
    ("override", "left"),
    [("held_out.rows=3", {"rows": 3, "fraction": None}), ("held_out=null", None)],
)
def test_another_way_to_hold_rows_out_replaces_the_first(
    medframe: Medframe, recipe: Path, override: str, left: Any
) -> None:
    write(recipe, RECIPE + "held_out: {fraction: 0.25}\n")
    assert printed(medframe("run", recipe, override, "--print"))["held_out"] == left


def test_a_list_replaces_a_list(medframe: Medframe, recipe: Path, here: Path) -> None:
    write(here / "base.yaml", "trainer: {targets: [q_proj, k_proj, v_proj]}\n")
    write(recipe, "include: [base.yaml]\n" + RECIPE.replace("use: lora", "use: lora, targets: [o_proj]"))
    assert printed(medframe("run", recipe, "--print"))["trainer"]["targets"] == ["o_proj"]
    shown = printed(medframe("run", recipe, "trainer.targets=[up_proj, down_proj]", "--print"))
    assert shown["trainer"]["targets"] == ["up_proj", "down_proj"]


def test_a_data_section_can_be_taken_out_and_another_added(medframe: Medframe, recipe: Path) -> None:
    shown = printed(
        medframe("run", recipe, "data.consult=null", "data.二={use: chatmed-consult, path: a.jsonl}", "--print")
    )
    assert list(shown["data"]) == ["二"]


# ---- the command line's values


@pytest.mark.parametrize("typed", ["007", "no", "1e3", "*.txt", "@ask", "a: b", "yes # not a comment", "[1", "~"])
def test_a_text_field_takes_what_was_typed(medframe: Medframe, recipe: Path, typed: str) -> None:
    shown = medframe("run", recipe, f"data.consult.query={typed}", "--print")
    if typed == "a: b":
        assert "data.consult.query" in refused(shown)  # a mapping; the one thing that must be quoted
    else:
        assert printed(shown)["data"]["consult"]["query"] == typed


@pytest.mark.parametrize(
    ("override", "keys", "value"),
    [
        ("trainer.learning_rate=1e-4", ("trainer", "learning_rate"), 1e-4),
        ("trainer.learning_rate=3", ("trainer", "learning_rate"), 3.0),
        ("trainer.max_steps=12", ("trainer", "max_steps"), 12),
        ("trainer.bf16=true", ("trainer", "bf16"), True),
        ("limits.max_length=null", ("limits", "max_length"), None),
        ("backbone.tokenizer=null", ("backbone", "tokenizer"), None),
        ("trainer.modules_to_save=[lm_head]", ("trainer", "modules_to_save"), ["lm_head"]),
        ("trainer.lr_scheduler_kwargs={num_cycles: 2}", ("trainer", "lr_scheduler_kwargs"), {"num_cycles": 2}),
    ],
)
def test_a_value_on_the_command_line_is_read_as_its_field_wants(
    medframe: Medframe, recipe: Path, override: str, keys: tuple[str, str], value: Any
) -> None:
    write(recipe, RECIPE + "limits: {max_length: 99}\n")
    shown = printed(medframe("run", recipe, override, "--print"))[keys[0]][keys[1]]
    assert shown == value
    assert type(shown) is type(value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer", "is not KEY=VALUE"),
        ("=3", "is not KEY=VALUE"),
        ("include=[x.yaml]", "include belongs in a recipe file"),
        ("profiles={}", "profiles belongs in a recipe file"),
        ("out=${", "command line: out=${ cannot be read"),
        ("trainer.rank=[1", "command line: trainer.rank: "),
        ("trainer.targets[0]=q_proj", "command line: trainer.targets: "),
    ],
)
def test_an_override_that_cannot_be_read_is_told_as_typed(
    medframe: Medframe, recipe: Path, override: str, said: str
) -> None:
    assert said in refused(medframe("run", recipe, override))


# ---- paths


def test_a_relative_path_starts_from_the_file_that_holds_it(
    medframe: Medframe, recipe: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(here / "deep/base.yaml", "backbone: {tokenizer: ./tok, adapters: [../one, two/]}\n")
    write(recipe, "include: [deep/base.yaml]\n" + RECIPE.replace("path:", "path: # \n     "))
    elsewhere = here / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    shown = printed(medframe("run", recipe, "--print"))
    assert shown["data"]["consult"]["path"] == str(here / "consultations.jsonl")
    assert shown["backbone"]["tokenizer"] == str(here / "deep/tok")
    assert shown["backbone"]["adapters"] == [str(here / "one"), str(here / "deep/two")]
    shown = printed(medframe("run", recipe, "data.consult.path=../my rows.jsonl", "--print"))
    assert shown["data"]["consult"]["path"] == str(here / "my rows.jsonl")
    shown = printed(medframe("run", recipe, "data.consult.path=[a.csv, ../*.jsonl]", "--print"))
    assert shown["data"]["consult"]["path"] == [str(elsewhere / "a.csv"), str(here / "*.jsonl")]


def test_a_relative_path_in_a_profile_starts_from_its_file(medframe: Medframe, recipe: Path, here: Path) -> None:
    part = "profiles: {p: {data: {consult: {path: rows/a.jsonl}}}}\n"
    write(here / "base/base.yaml", part)
    write(recipe, "include: [base/base.yaml]\n" + RECIPE.replace(", path: consultations.jsonl", ""))
    shown = printed(medframe("run", recipe, "profile=p", "--print"))
    assert shown["data"]["consult"]["path"] == str(here / "base/rows/a.jsonl")


def test_the_words_tiny_and_sample_and_a_hub_id_are_no_paths(medframe: Medframe, recipe: Path) -> None:
    write(recipe, RECIPE.replace("consultations.jsonl", "sample").replace("llama}", "llama, weights: tiny}"))
    shown = printed(medframe("run", recipe, "--print"))
    assert (shown["backbone"]["weights"], shown["data"]["consult"]["path"]) == ("tiny", "sample")
    shown = printed(medframe("run", recipe, "backbone.weights=someone/a-model.v2", "--print"))
    assert shown["backbone"]["weights"] == "someone/a-model.v2"


def test_a_folder_of_one_word_beside_the_recipe_is_found_from_elsewhere(
    medframe: Medframe, recipe: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "weights").mkdir()
    (here / "elsewhere").mkdir()
    write(recipe, RECIPE.replace("llama}", "llama, weights: weights}"))
    monkeypatch.chdir(here / "elsewhere")
    shown = printed(medframe("run", recipe, "--print"))
    assert shown["backbone"]["weights"] == str(here / "weights")


def test_a_folder_named_like_a_hub_id_is_the_folder(medframe: Medframe, recipe: Path, here: Path) -> None:
    (here / "models/llama").mkdir(parents=True)
    shown = printed(medframe("run", recipe, "backbone.weights=models/llama", "--print"))
    assert shown["backbone"]["weights"] == str(here / "models/llama")


# ---- mistakes


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("out: runs", "seeed: 3\nout: runs", "recipe.yaml:1: seeed: unknown key; did you mean 'seed'?"),
        ("use: lora", "use: lora, rnk: 3", "recipe.yaml:6: trainer.rnk: unknown key; did you mean 'rank'?"),
        ("path:", "quary: q, path:", "recipe.yaml:4: data.consult.quary: unknown key; did you mean 'query'?"),
        ("path:", "wieght: 2, path:", "data.consult.wieght: unknown key; did you mean 'weight'?"),
        ("use: lora", "usee: lora", "recipe.yaml:6: trainer: say which trainer with use: NAME, such as full, lora"),
        ("use: lora", "use: lora, rank: wide", "recipe.yaml:6: trainer.rank: Value 'wide'"),
        ("use: lora", "use: lora, rank: 8.5", "recipe.yaml:6: trainer.rank: Value '8.5'"),
        ("use: lora", "use: lora, rank: null", "recipe.yaml:6: trainer.rank: "),
        ("use: lora", "use: lora, num_train_epochs: .inf", "trainer: num_train_epochs must be above 0 and finite"),
        ("use: lora", "use: lora, rank: 0", "recipe.yaml:6: trainer: rank must be at least 1, not 0"),
        ("use: llama", "use: lama", "recipe.yaml:2: backbone.use: unknown backbone 'lama': did you mean 'llama'?"),
        ("{use: llama}", "llama", "recipe.yaml:2: backbone: say which backbone with use: NAME, such as auto, baichuan"),
        ("use: chatmed-consult, ", "", "recipe.yaml:4: data.consult: say which dataset with use: NAME"),
        (", path: consultations.jsonl", "", "recipe.yaml:4: data.consult.path: is not set (???): File, list"),
        ("path: consultations.jsonl", "path: '???'", "Give data.consult.path="),
        ("out: runs/here\n", "", "out: is not set (???): The run directory"),
        ("out:", "limits: {on_overflow: crop}\nout:", "recipe.yaml:1: limits.on_overflow: Invalid value 'crop'"),
        ("out:", "limits: [512]\nout:", "recipe.yaml:1: limits: must be a mapping, not [512]"),
        ("out:", "held_out: {rows: 2, fraction: 0.1}\nout:", "recipe.yaml:1: held_out: give either fraction or rows"),
        ("out:", "held_out: {}\nout:", "recipe.yaml:1: held_out: give either fraction or rows"),
        ("out:", "held_out: {fraction: 1.0}\nout:", "held_out: fraction must lie between 0 and 1"),
        (
            "out:",
            "batching: {kind: packed, rows: 2}\nout:",
            "recipe.yaml:1: batching: rows is not read by kind packed, which takes tokens",
        ),
        ("out:", "seed: -1\nout:", "seed must lie between 0 and 2**32 - 1, not -1"),
        ("path:", "weight: 0, path:", "recipe.yaml:4: data.consult: weight must be above 0"),
        ("path:", "weight: .inf, path:", "recipe.yaml:4: data.consult: weight must be above 0 and at most 1000"),
        ("path:", "limit: 0, path:", "recipe.yaml:4: data.consult: limit must be at least 1, not 0"),
        ("  consult:", "  held_out:", "recipe.yaml:3: data: 'held_out' cannot name a data section"),
        ("  consult:", "  2023:", "recipe.yaml:3: data: 2023 cannot name a data section"),
        ("  consult:", "  my.set:", "recipe.yaml:3: data: 'my.set' cannot name a data section"),
        ("out:", "profiles: {p: 3}\nout:", "recipe.yaml:1: profiles.p must be a mapping"),
        ("out:", "include: [{a: b}]\nout:", "recipe.yaml:1: include must list file names"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_what_would_be_right(
    medframe: Medframe, recipe: Path, old: str, new: str, said: str
) -> None:
    assert old in RECIPE
    write(recipe, RECIPE.replace(old, new, 1))
    assert said in refused(medframe("run", recipe))


def test_no_data_at_all_says_how_data_are_named(medframe: Medframe, recipe: Path) -> None:
    write(recipe, "out: x\nbackbone: {use: llama}\nprompt: {use: chatmed}\ntrainer: {use: lora}\n")
    assert "data: name at least one data set" in refused(medframe("run", recipe))
    write(recipe, RECIPE)
    assert "data: name at least one data set" in refused(medframe("run", recipe, "data.consult=null"))


def test_every_mistake_is_told_at_once_each_with_the_file_that_holds_it(
    medframe: Medframe, recipe: Path, here: Path
) -> None:
    write(here / "base.yaml", "limits:\n  max_length: 512\n  max_len: 3\n")
    write(recipe, "include: [base.yaml]\n" + RECIPE.replace("use: lora", "use: lora, rnk: 1"))
    said = refused(medframe("run", recipe, "backbone.wieghts=tiny", "prompt.supervise=most"))
    problems = said.splitlines()
    assert len(problems) == 4
    assert all(problem.startswith("Error: ") for problem in problems)
    for place in (
        "base.yaml:3: limits.max_len: unknown key; did you mean 'max_length'?",
        "recipe.yaml:7: trainer.rnk: unknown key; did you mean 'rank'?",
        "command line: backbone.wieghts: unknown key; did you mean 'weights'?",
        "command line: prompt.supervise: Invalid value 'most'",
    ):
        assert place in said


def test_a_mistake_in_a_profile_is_told_with_its_own_line(medframe: Medframe, recipe: Path) -> None:
    write(recipe, RECIPE + "profiles:\n  a:\n    seed: 1\n  b:\n    trainer:\n      rnk: 2\n")
    assert "recipe.yaml:12: trainer.rnk: unknown key" in refused(medframe("run", recipe, "profile=b"))


def test_a_value_left_open_in_a_profile_must_be_given_even_where_the_file_has_one(
    medframe: Medframe, recipe: Path
) -> None:
    write(recipe, RECIPE + "profiles: {published: {data: {consult: {path: '???'}}}}\n")
    assert "data.consult.path: is not set (???)" in refused(medframe("run", recipe, "profile=published"))
    shown = printed(medframe("run", recipe, "profile=published", "--print"))
    assert shown["data"]["consult"]["path"] == "???"
    shown = printed(medframe("run", recipe, "profile=published", "data.consult.path=a.jsonl", "--print"))
    assert shown["data"]["consult"]["path"].endswith("a.jsonl")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (RECIPE.replace("data:", "data: ["), "recipe.yaml:5: "),
        (RECIPE + "\tseed: 3\n", "recipe.yaml:7: "),
        (RECIPE + "out: again\n", "recipe.yaml:7: found duplicate key out"),
        (RECIPE.replace("path:", "use: chatmed-consult, path:"), "recipe.yaml:4: found duplicate key use"),
        ("- backbone\n- data\n", "recipe.yaml:1: a recipe is a mapping of keys to values, this is a list"),
    ],
)
def test_a_file_that_is_no_recipe_is_told_with_its_line(medframe: Medframe, recipe: Path, text: str, said: str) -> None:
    write(recipe, text)
    assert said in refused(medframe("check", recipe))


def test_a_recipe_that_is_not_there_or_cannot_be_read_is_told_by_name(medframe: Medframe, here: Path) -> None:
    assert "no recipe gone.yaml" in refused(medframe("check", "gone.yaml"))
    (here / "folder.yaml").mkdir()
    assert "folder.yaml cannot be read" in refused(medframe("check", "folder.yaml"))
    (here / "wide.yaml").write_text(RECIPE, "utf-16")
    assert "wide.yaml" in refused(medframe("check", "wide.yaml"))


def test_chinese_and_a_byte_order_mark_are_read(medframe: Medframe, recipe: Path) -> None:
    recipe.write_text("# 说明\n" + RECIPE.replace("runs/here", "训练/一"), "utf-8-sig")
    shown = medframe("run", recipe, "--print")
    assert printed(shown)["out"] == "训练/一"
    assert "训练/一" in shown.out  # as it is, not escaped


# ---- interpolation, and the printed recipe


def test_an_environment_variable_is_used_and_stays_a_variable_when_printed(
    medframe: Medframe, recipe: Path, consultations: Consultations, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(recipe, RECIPE.replace("path:", "response: '${oc.env:ANSWER_FIELD}', path:") + "seed: 4\ncompare: ${seed}\n")
    consultations([{"query": "头疼", "reply": "多休息。"}])
    monkeypatch.setenv("ANSWER_FIELD", "reply")
    shown = printed(medframe("run", recipe, "--print"))
    assert shown["data"]["consult"]["response"] == "${oc.env:ANSWER_FIELD}"
    assert shown["compare"] == "${seed}"
    assert "1 kept" in medframe("check", recipe).out
    monkeypatch.setenv("ANSWER_FIELD", "answer")
    assert "no field 'answer'" in medframe("check", recipe).out
    monkeypatch.delenv("ANSWER_FIELD")
    assert "ANSWER_FIELD" in refused(medframe("run", recipe))


def test_a_printed_recipe_runs_by_itself_and_prints_the_same_again(
    medframe: Medframe, recipe: Path, here: Path
) -> None:
    write(here / "base/base.yaml", "batching: {kind: padded, rows: 2}\ntrainer: {rank: 2, targets: [q_proj]}\n")
    write(
        recipe,
        "include: [base/base.yaml]\nprofile: p\nprofiles: {p: {seed: 9, held_out: {fraction: 0.25}}}\n"
        + RECIPE.replace("path:", "query: '007', response: 'no', limit: 7, weight: 0.5, path:"),
    )
    first = medframe("run", recipe, "trainer.learning_rate=1e-4", "--print")
    assert printed(first)["data"]["consult"]["query"] == "007"
    again = here / "elsewhere/again.yaml"
    write(again, first.out)
    assert medframe("run", again, "--print").out == first.out


def test_run_print_as_a_command_prints_the_recipe_alone(recipe: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "medframe", "run", "recipe.yaml", "seed=8", "--print"],
        cwd=recipe.parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert yaml.safe_load(shown.stdout)["seed"] == 8
    assert shown.stderr == ""
    assert sorted(file.name for file in recipe.parent.iterdir()) == ["consultations.jsonl", "recipe.yaml"]


# ---- training_arguments


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "dataloader_num_worker",
            "training_arguments.dataloader_num_worker is no argument of the installed transformers; did you mean",
        ),
        ("learning_rate", "training_arguments.learning_rate is a field of the trainer itself"),
        ("save_total_limit", "training_arguments.save_total_limit is a field of the trainer itself"),
        ("output_dir", "training_arguments.output_dir is the frame's to set"),
        ("seed", "training_arguments.seed is the frame's to set"),
    ],
)
def test_a_training_argument_that_is_none_of_transformers_or_not_free_is_refused(
    medframe: Medframe, recipe: Path, name: str, said: str
) -> None:
    assert said in refused(medframe("run", recipe, f"trainer.training_arguments.{name}=1"))


def test_any_other_argument_of_transformers_is_passed_on(medframe: Medframe, recipe: Path) -> None:
    shown = printed(medframe("run", recipe, "trainer.training_arguments.tf32=false", "--print"))
    assert shown["trainer"]["training_arguments"] == {"tf32": False}


# ---- the shipped recipes


def test_a_shipped_recipe_is_found_by_its_name_from_anywhere_and_said(medframe: Medframe, here: Path) -> None:
    for name in ("chatmed", "chatmed.yaml", "recipes/chatmed.yaml"):
        shown = medframe("run", name, "--print")
        assert printed(shown)["prompt"]["use"] == "chatmed"
        assert f"{name} is not here; using the shipped recipe" in shown.err
    write(here / "chatmed.yaml", RECIPE.replace("runs/here", "runs/mine"))
    shown = medframe("run", "chatmed.yaml", "--print")
    assert printed(shown)["out"] == "runs/mine"
    assert shown.err == ""


def test_recipes_lists_each_with_what_it_is(medframe: Medframe, here: Path) -> None:
    listed = medframe("recipes").out
    for file in SHIPPED.glob("*.yaml"):
        (line,) = [line for line in listed.splitlines() if line.split()[0] == file.stem]
        assert len(line.split()) > 2
    assert "lora" not in [line.split()[0] for line in listed.splitlines()]  # what they include is no recipe


def test_recipes_name_prints_the_file_as_it_is(medframe: Medframe, here: Path) -> None:
    assert medframe("recipes", "chatmed").out == (SHIPPED / "chatmed.yaml").read_text("utf-8")
    said = refused(medframe("recipes", "chatmd"))
    assert "no shipped recipe 'chatmd'" in said
    assert "chatmed" in said
    assert "--copy needs the NAME" in refused(medframe("recipes", "--copy", "x"))


def test_a_copied_recipe_runs_where_it_lies_and_no_changed_file_is_overwritten(medframe: Medframe, here: Path) -> None:
    copied = medframe("recipes", "chatmed", "--copy", "mine")
    assert copied.code == 0
    assert copied.out.splitlines()[0] == "mine/chatmed.yaml"
    assert all(Path(line).is_file() for line in copied.out.splitlines())
    shown = medframe("run", "mine/chatmed.yaml", "--print")
    assert shown.err == ""
    assert shown.out == medframe("run", SHIPPED / "chatmed.yaml", "--print").out
    assert medframe("recipes", "chatmed", "--copy", "mine").code == 0  # nothing would change
    lora = here / "mine/base/lora.yaml"
    lora.write_text("trainer: {use: lora}\n")
    (here / "mine/chatmed.yaml").unlink()
    assert "mine/base/lora.yaml exists and differs" in refused(medframe("recipes", "chatmed", "--copy", "mine"))
    assert lora.read_text() == "trainer: {use: lora}\n"
    assert not (here / "mine/chatmed.yaml").exists()


def test_a_recipe_is_not_copied_to_where_a_file_is(medframe: Medframe, here: Path) -> None:
    write(here / "taken", "")
    ended = medframe("recipes", "chatmed", "--copy", "taken")
    assert ended.code == 2
    assert "'taken' is a file" in ended.err


def test_a_shipped_recipe_stays_as_it_is_when_overrides_are_given(medframe: Medframe, here: Path) -> None:
    shutil.copytree(SHIPPED, here / "before")
    assert medframe("run", "chatmed", "trainer.rank=3", "--print").code == 0
    for file in (here / "before").rglob("*.yaml"):
        assert file.read_bytes() == (SHIPPED / file.relative_to(here / "before")).read_bytes()
