"""Every row accounted for; stores that are found again exactly when they still hold; what an epoch is made of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import Consultations, Distribution, Ended, Medframe

from medframe.batch import Batches, Epoch
from medframe.compose import compose
from medframe.dataset import BadRow, Turn, Where
from medframe.encode import Limits, Unlearnable
from medframe.ledger import Ledger
from medframe.prepare import Prepared, prepare
from medframe.recipe import build

GOOD = {"query": "头痛怎么办", "response": "多休息，少看手机。"}
LONG = {"query": "头" * 60 + "痛怎么办", "response": "多休息，少看手机。"}

SOURCE = """\
import os
from dataclasses import dataclass
from pathlib import Path
import medframe
from medframe import DataError, Row, Sample, Turn, Where

def sample_of(number):
    turns = (Turn("user", f"第{number}问"), Turn("assistant", f"第{number}答"))
    return Sample(turns, Where("memory", number + 1))

@dataclass(kw_only=True)
class Source(medframe.DatasetSource):
    "Made for a test."
    def sample(self, row):
        return Sample((Turn("user", row.text("query")), Turn("assistant", row.text("response"))), row.where)
"""
HOOK = """
@medframe.hookimpl
def datasets():
    return {"made": Source}
"""
USE_MADE = "data.consult={use: made, path: consultations.jsonl}"


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Any:
    """A cache of the test's own; answers with the stores in it."""
    fresh = tmp_path / "fresh"
    if (cache / "tiny").is_dir():
        shutil.copytree(cache / "tiny", fresh / "tiny")  # made anew it would be the same
    monkeypatch.setenv("MEDFRAME_CACHE", str(fresh))
    return lambda: {folder.name for folder in fresh.glob("store/*") if folder.is_dir()}


def ledger(ended: Ended) -> dict[str, Any]:
    """The account of the one source in what `check --json` printed."""
    found = json.loads(ended.out)
    assert ended.code == 0, found
    (source,) = found["sources"]
    assert source["rows"] == source["kept"] + source["shortened"] + source["skipped"]
    assert isinstance(source, dict)
    return source


def refused(ended: Ended) -> str:
    assert ended.code == 2, ended
    return ended.err


def prepared(recipe: Path, *overrides: str) -> Prepared:
    return prepare(build(compose(recipe, overrides)))


def lines(epoch: Epoch) -> Counter[int]:
    """How often an epoch holds the row of each line."""
    return Counter(where.line for number in range(len(epoch)) for where in epoch.where(number))


# ---- the ledger


def test_every_row_is_kept_shortened_or_skipped_and_told_why(
    medframe: Medframe, recipe: Path, consultations: Consultations
) -> None:
    file = consultations(
        [
            GOOD,
            "",  # a blank line is no row
            "{broken",
            {"query": "头痛"},
            {"query": "头痛", "response": ["休息"]},
            {"query": "头痛", "response": ""},
            {"query": "头痛", "response": None},
            {"query": None, "response": "多休息。"},
            "3",
            LONG,
            {"query": "头痛", "response": "休" * 80},
            GOOD,
        ]
    )
    options = ["limits={max_length: 64, on_overflow: cut, on_bad_row: skip}", "--json"]
    found = ledger(medframe("check", recipe, *options))
    assert [found[key] for key in ("rows", "kept", "shortened", "skipped", "examples")] == [11, 3, 1, 7, 4]
    assert {entry["file"] for entry in found["entries"]} == {str(file)}
    told = {entry["line"]: (entry["fate"], entry["bad"], entry["why"]) for entry in found["entries"]}
    for line, fate, bad, why in (
        (3, "skipped", True, "not"),
        (4, "skipped", True, "no field 'response'; the row's fields: 'query'"),
        (5, "skipped", True, "field 'response' must be text, it is a list"),
        (6, "skipped", False, "no answer"),
        (7, "skipped", False, "no answer"),
        (9, "skipped", True, "a row must be an object with fields, this one is a number"),
        (10, "shortened", False, "characters cut from the start of the question"),
        (11, "skipped", False, "more than 64"),
    ):
        assert told[line][:2] == (fate, bad)
        assert why in told[line][2]
    assert told[12] == ("kept", False, "repeats an earlier row")
    assert len(told) == 9


def test_rows_that_repeat_an_earlier_one_are_counted_and_skipped_on_request(
    medframe: Medframe, recipe: Path, consultations: Consultations
) -> None:
    otherwise = {"query": GOOD["query"], "response": "去看医生。"}
    consultations([GOOD, otherwise, {**GOOD, "id": 3}, LONG])
    found = ledger(medframe("check", recipe, "--json"))
    assert (found["rows"], found["kept"], found["repeated"], found["examples"]) == (4, 4, 1, 4)
    assert [(entry["line"], entry["fate"]) for entry in found["entries"]] == [(3, "kept")]
    said = medframe("check", recipe).out
    assert "1 rows repeat an earlier one (limits.on_repeat: skip)" in said
    assert "note: 1 questions are asked more than once in training" in said
    assert "note: 1 answers are given more than once in training" in said
    strict = ["limits.on_repeat=skip", "limits.on_unlearnable=stop"]
    found = ledger(medframe("check", recipe, "--json", *strict))
    assert (found["rows"], found["kept"], found["skipped"], found["repeated"], found["examples"]) == (4, 3, 1, 0, 3)
    assert [(entry["line"], entry["fate"]) for entry in found["entries"]] == [(3, "skipped")]


def test_the_elements_of_an_array_on_one_line_are_told_apart(medframe: Medframe, recipe: Path, here: Path) -> None:
    file = here / "array.json"
    file.write_text(json.dumps([GOOD, {**GOOD, "response": ""}, GOOD, LONG]), "utf-8")
    options = ["data.consult.path=array.json", "held_out.rows=1"]
    found = ledger(medframe("check", recipe, "--json", *options))
    assert [(entry["line"], entry["element"]) for entry in found["entries"]] == [(1, 2), (1, 3)]
    assert f"first {file}:1[2]: no answer" in medframe("check", recipe, *options).out
    batches = prepared(recipe, *options).held_out
    assert batches is not None
    assert len(batches) == 1  # rows are held out one by one, though all stand on one line


def test_supervised_tokens_lost_by_shortening_are_counted(
    medframe: Medframe, recipe: Path, consultations: Consultations
) -> None:
    consultations([GOOD, LONG])
    options = ["limits={max_length: 64, on_overflow: cut}", "--json"]
    whole = ledger(medframe("check", recipe, *options, "prompt.supervise=all"))
    cut = 1 + 1 + len(f"问：\n{LONG['query']}\n答：\n{LONG['response']}\n") + 1 - 64
    assert whole["lost"] == cut  # the question is trained on too, and so much of it is gone
    assert ledger(medframe("check", recipe, *options))["lost"] == 0  # the answer is whole
    assert f"{cut} supervised tokens lost by shortening" in medframe(
        "check", recipe, *options[:1], "prompt.supervise=all"
    ).out.replace(",", "")


def test_a_row_that_cannot_be_read_stops_the_run_unless_the_recipe_skips_it(
    medframe: Medframe, recipe: Path, consultations: Consultations
) -> None:
    file = consultations([GOOD, "{broken", GOOD])
    said = refused(medframe("run", recipe))
    assert f"{file}:2: not" in said
    assert "limits.on_bad_row: skip" in said
    assert prepared(recipe, "limits.on_bad_row=skip").ledgers[0].skipped == 1


def test_a_row_with_nothing_to_learn_is_skipped_unless_the_recipe_stops_at_it(
    medframe: Medframe, recipe: Path, consultations: Consultations
) -> None:
    file = consultations([GOOD, {"query": "头痛", "response": ""}, GOOD])
    assert prepared(recipe).ledgers[0].skipped == 1
    said = refused(medframe("run", recipe, "limits.on_unlearnable=stop"))
    assert f"{file}:2: no answer" in said
    assert "limits.on_unlearnable: skip" in said


@pytest.mark.parametrize(
    ("rows", "overrides", "said"),
    [
        ([{"query": "头痛", "response": ""}] * 2, [], "none of its 2 rows can be learnt from; first "),
        ([LONG], ["limits.max_length=8"], "none of its 1 rows can be learnt from; first "),
        ([], [], "data.consult: no rows in "),
        ([GOOD, GOOD], ["held_out.rows=2"], "held_out: 2 of the 2 rows of consult would be held out"),
        ([GOOD] * 4, ["data.consult.weight=0.1"], "data.consult: weight 0.1 leaves none of its 4 training examples"),
        ([GOOD], ["held_out.fraction=0.1"], "held_out: 1 of the 1 rows of consult would be held out"),
    ],
)
def test_nothing_left_to_train_on_is_an_error(
    medframe: Medframe,
    recipe: Path,
    consultations: Consultations,
    rows: list[Any],
    overrides: list[str],
    said: str,
) -> None:
    consultations(rows)
    assert said in refused(medframe("run", recipe, *overrides))
    checked = medframe("check", recipe, *overrides)
    assert checked.code == 2
    assert said in checked.out


@pytest.mark.parametrize(("skipped", "loud"), [(5, False), (6, True)])
def test_more_than_five_percent_skipped_is_one_loud_line(skipped: int, loud: bool) -> None:
    account = Ledger("consult", rows=100 - skipped, kept=100 - skipped)
    limits = Limits(on_bad_row="skip")
    for line in range(skipped):
        where = Where("rows.jsonl", line + 7)
        account.add(BadRow(where, "not JSON") if line % 2 else Unlearnable(where, "no answer"), limits)
    warnings = [line for line in account.summary() if line.startswith("WARNING")]
    assert len(warnings) == loud
    if loud:
        assert warnings == ["WARNING consult: 6 % of the rows are skipped, first rows.jsonl:7: no answer"]


def test_a_mostly_skipped_source_is_noted_by_check(
    medframe: Medframe, recipe: Path, consultations: Consultations
) -> None:
    file = consultations([GOOD, {"query": "头痛", "response": ""}])
    said = medframe("check", recipe).out
    assert f"note: consult: 50 % of the rows are skipped, first {file}:2: no answer" in said


# ---- the store


def test_a_store_found_again_gives_the_same_account(
    medframe: Medframe, recipe: Path, consultations: Consultations, stores: Any
) -> None:
    consultations([GOOD, "{broken", LONG, {"query": "头痛", "response": ""}])
    options = ["limits={max_length: 64, on_overflow: cut, on_bad_row: skip}", "--json"]
    first = medframe("check", recipe, *options)
    made = stores()
    assert len(made) == 1
    assert ledger(first)["shortened"] == 1
    assert medframe("check", recipe, *options).out == first.out
    assert stores() == made


def test_the_same_rows_under_another_name_are_accounted_under_that_name(
    medframe: Medframe, recipe: Path, stores: Any
) -> None:
    assert ledger(medframe("check", recipe, "--json"))["source"] == "consult"
    renamed = "data={consult: null, other: {use: chatmed-consult, path: consultations.jsonl}}"
    assert ledger(medframe("check", recipe, renamed, "--json"))["source"] == "other"


def tokenizer(folder: Path) -> Path:
    """A tokenizer that cuts text up like the tiny one, but for one character."""
    from sentencepiece import sentencepiece_model_pb2

    from medframe_backbones.tiny import tokenizer_files

    tokenizer_files(folder)
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString((folder / "tokenizer.model").read_bytes())
    (piece,) = [piece for piece in proto.pieces if piece.piece == "孩"]
    piece.piece = "龘"
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    return folder


@pytest.mark.parametrize(
    "override",
    [
        "limits.max_length=100",
        "limits.on_overflow=cut",
        "prompt.supervise=all",
        "data.consult.limit=5",
        "data.consult.query=response",
        "backbone.tokenizer=./other",
    ],
)
def test_what_the_rows_depend_on_makes_a_new_store(
    medframe: Medframe, recipe: Path, here: Path, stores: Any, override: str
) -> None:
    assert medframe("check", recipe).code == 0
    assert len(stores()) == 1
    tokenizer(here / "other")
    assert medframe("check", recipe, override).code == 0
    assert len(stores()) == 2
    assert medframe("check", recipe, override).code == 0
    assert len(stores()) == 2


def test_one_changed_byte_of_the_data_makes_a_new_store(
    medframe: Medframe, recipe: Path, consultations: Consultations, stores: Any
) -> None:
    first = ledger(medframe("check", recipe, "--json"))
    file = recipe.parent / "consultations.jsonl"
    status = file.stat()
    text = file.read_text("utf-8")
    file.write_text(text.replace("第0天", "第9天", 1), "utf-8")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # neither its size nor its date tells
    assert file.stat().st_size == status.st_size
    assert ledger(medframe("check", recipe, "--json")) == first
    assert len(stores()) == 2
    (sample,) = [row for row in json_lines(medframe("preview", recipe, "--json", "--rows")) if "第9天" in row["text"]]
    assert "第0天" not in sample["text"]


def json_lines(ended: Ended) -> list[dict[str, Any]]:
    assert ended.code == 0, ended
    return [json.loads(line) for line in ended.out.splitlines()]


@pytest.mark.parametrize(
    "override",
    ["data.consult.weight=2", "seed=7", "held_out.rows=2", "batching={kind: padded}", "trainer.rank=2", "out=x"],
)
def test_what_the_rows_do_not_depend_on_makes_no_new_store(
    medframe: Medframe, recipe: Path, stores: Any, override: str
) -> None:
    assert medframe("check", recipe).code == 0
    made = stores()
    assert medframe("check", recipe, override).code == 0
    assert stores() == made


def test_an_environment_variable_in_a_section_is_part_of_what_a_store_depends_on(
    medframe: Medframe,
    recipe: Path,
    consultations: Consultations,
    stores: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    consultations([{"query": "头痛", "short": "休息。", "long": "休息，多喝水，睡好。"}])
    override = "data.consult.response=${oc.env:WHICH_ANSWER}"
    monkeypatch.setenv("WHICH_ANSWER", "short")
    short = ledger(medframe("check", recipe, override, "--json"))["supervised"]
    monkeypatch.setenv("WHICH_ANSWER", "long")
    assert ledger(medframe("check", recipe, override, "--json"))["supervised"] > short


@pytest.mark.parametrize(("kind", "use"), [("dataset", USE_MADE), ("prompt", "prompt.use=made")])
def test_a_changed_plugin_makes_a_new_store(
    medframe: Medframe, recipe: Path, stores: Any, distribution: Distribution, kind: str, use: str
) -> None:
    prompt = (
        "from medframe_prompts.chatmed import ChatMed\n"
        "@dataclass(kw_only=True)\nclass Prompt(ChatMed):\n    'As ChatMed.'\n"
        "@medframe.hookimpl\ndef prompts():\n    return {'made': Prompt}\n"
    )
    module = f"changed_{kind}"
    site = distribution("changed", {module: SOURCE + HOOK + prompt}, [module])
    assert medframe("check", recipe, use).code == 0
    assert len(stores()) == 1
    (site / f"{module}.py").write_text(f"{SOURCE}{HOOK}{prompt}# better\n", "utf-8")
    assert medframe("check", recipe, use).code == 0
    assert len(stores()) == 2


def test_a_changed_module_beside_the_plugins_own_makes_a_new_store(
    medframe: Medframe, recipe: Path, stores: Any, distribution: Distribution
) -> None:
    source = SOURCE.replace("Sample((Turn", "Sample((*EARLIER, Turn")
    site = distribution("beside", {}, ["beside.parts.hook"])
    (site / "beside" / "parts").mkdir(parents=True)
    (site / "beside" / "__init__.py").write_text("")
    (site / "beside" / "parts" / "__init__.py").write_text("")
    (site / "beside" / "parts" / "words.py").write_text("EARLIER = ()\n")
    plugin = f"from beside.parts.words import EARLIER\n{source}{HOOK}"
    (site / "beside" / "parts" / "hook.py").write_text(plugin, "utf-8")
    assert medframe("check", recipe, USE_MADE).code == 0
    assert len(stores()) == 1
    (site / "beside" / "parts" / "words.py").write_text("EARLIER = ()  # for now\n")
    assert medframe("check", recipe, USE_MADE).code == 0
    assert len(stores()) == 2


def test_a_source_that_is_no_file_is_read_anew_each_time(
    medframe: Medframe, recipe: Path, stores: Any, distribution: Distribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = "    def __iter__(self):\n        return map(sample_of, range(int(os.environ['HOW_MANY'])))\n"
    distribution("own-iter", {"own_iter": SOURCE + own + HOOK}, ["own_iter"])
    for count in (3, 5):
        monkeypatch.setenv("HOW_MANY", str(count))
        assert ledger(medframe("check", recipe, USE_MADE, "--json"))["rows"] == count
    assert stores() == set()
    told = "    def fingerprint(self):\n        return os.environ['VERSION_OF_IT']\n"
    distribution("own-print", {"own_print": SOURCE + own + told + HOOK.replace("made", "told")}, ["own_print"])
    use = USE_MADE.replace("made", "told")
    monkeypatch.setenv("VERSION_OF_IT", "1")
    for count in (7, 9):  # it vouches for being the same, so it is not asked again
        monkeypatch.setenv("HOW_MANY", str(count))
        assert ledger(medframe("check", recipe, use, "--json"))["rows"] == 7
    monkeypatch.setenv("VERSION_OF_IT", "2")
    assert ledger(medframe("check", recipe, use, "--json"))["rows"] == 9
    assert len(stores()) == 2


def test_a_store_whose_building_fails_half_way_is_not_there_afterwards(
    medframe: Medframe, recipe: Path, stores: Any, distribution: Distribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = (
        "    def fingerprint(self):\n        return 'same'\n"
        "    def __iter__(self):\n"
        "        for number in range(2500):\n"
        "            if number == 2200 and os.environ.get('DISK_BREAKS'):\n"
        "                raise DataError('the disk broke')\n"
        "            yield sample_of(number)\n"
    )
    distribution("half-way", {"half_way": SOURCE + fails + HOOK}, ["half_way"])
    monkeypatch.setenv("DISK_BREAKS", "1")
    ended = medframe("check", recipe, USE_MADE)
    assert ended.code == 2
    assert "the disk broke" in ended.out
    assert stores() == set()
    monkeypatch.delenv("DISK_BREAKS")
    assert ledger(medframe("check", recipe, USE_MADE, "--json"))["kept"] == 2500
    assert len(stores()) == 1


def test_two_processes_that_build_one_store_at_once_make_it_once_and_whole(
    recipe: Path, stores: Any, distribution: Distribution, here: Path
) -> None:
    # Both have looked the store's name up before either builds it; each tells that it builds.
    meet = (
        "    def fingerprint(self):\n"
        "        import time\n"
        "        (Path('met') / str(os.getpid())).touch()\n"
        "        for _ in range(3000):\n"
        "            if len(os.listdir('met')) == 2: return 'same'\n"
        "            time.sleep(0.01)\n"
        "        raise DataError('nobody came')\n"
        "    def __iter__(self):\n"
        "        with open('built', 'a') as log: log.write('x')\n"
        "        return map(sample_of, range(3000))\n"
    )
    site = distribution("meeting", {"meeting": SOURCE + meet + HOOK}, ["meeting"])
    (here / "met").mkdir()
    command = [sys.executable, "-m", "medframe", "check", "recipe.yaml", USE_MADE, "prompt.supervise=all"]
    both = [
        subprocess.Popen(
            command, cwd=here, env={**os.environ, "PYTHONPATH": str(site)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    (first, errors), (second, more_errors) = [process.communicate() for process in both]
    assert (errors, more_errors) == ("", "")
    assert [process.returncode for process in both] == [0, 0]
    assert "3,000 kept" in first
    assert first == second
    # `check` reads the rows once more, for those that imitate the format; only one process built the store.
    assert len((here / "built").read_text()) == 3
    assert len(stores()) == 1


# ---- an epoch


def test_a_weight_of_two_shows_each_example_twice_an_epoch(recipe: Path) -> None:
    train = prepared(recipe, "data.consult.weight=2", "batching={kind: padded, rows: 3}").train
    assert lines(train.epoch(0)) == dict.fromkeys(range(1, 9), 2)
    assert lines(train.epoch(1)) == dict.fromkeys(range(1, 9), 2)


def test_a_weight_of_a_half_shows_half_of_the_examples_and_others_in_the_next_epoch(
    recipe: Path, consultations: Consultations
) -> None:
    consultations(40)
    train = prepared(recipe, "data.consult.weight=0.5").train
    epochs = [lines(train.epoch(number)) for number in range(6)]
    assert all(set(epoch.values()) == {1} and len(epoch) == 20 for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert set().union(*map(lines, map(train.epoch, range(20)))) == set(range(1, 41))
    again = prepared(recipe, "data.consult.weight=0.5").train
    assert [lines(again.epoch(number)) for number in range(6)] == epochs


def test_a_weight_of_one_and_a_half_shows_every_example_and_half_of_them_again(recipe: Path) -> None:
    counts = lines(prepared(recipe, "data.consult.weight=1.5").train.epoch(0))
    assert sorted(counts.values()) == [1, 1, 1, 1, 2, 2, 2, 2]


def test_each_source_has_its_own_weight(recipe: Path, consultations: Consultations) -> None:
    other = consultations(4, "other.jsonl")
    section = f"data.more={{use: chatmed-consult, path: {other}, weight: 3}}"
    epoch = prepared(recipe, section).train.epoch(0)
    counts = Counter(Path(where.file).name for number in range(len(epoch)) for where in epoch.where(number))
    assert counts == {"consultations.jsonl": 8, "other.jsonl": 12}


def order(batches: Batches, number: int) -> list[int]:
    epoch = batches.epoch(number)
    return [where.line for batch in range(len(epoch)) for where in epoch.where(batch)]


def test_the_order_of_an_epoch_is_its_own_and_the_same_again_for_the_same_seed(recipe: Path) -> None:
    train = prepared(recipe).train
    assert sorted(order(train, 0)) == list(range(1, 9))
    assert order(train, 0) != order(train, 1)
    assert order(prepared(recipe).train, 1) == order(train, 1)
    assert order(prepared(recipe, "seed=43").train, 0) != order(train, 0)


def test_a_limit_reads_the_first_rows_only_bad_ones_among_them(
    medframe: Medframe, recipe: Path, consultations: Consultations
) -> None:
    consultations([GOOD, "{broken", GOOD, GOOD])
    options = ["data.consult.limit=3", "limits.on_bad_row=skip", "--json"]
    found = ledger(medframe("check", recipe, *options))
    assert (found["rows"], found["kept"], found["skipped"]) == (3, 2, 1)


def test_the_split_is_disjoint_complete_and_the_same_again_for_the_same_seed(
    recipe: Path, consultations: Consultations
) -> None:
    consultations(40)

    def split(*overrides: str) -> tuple[list[int], list[int]]:
        both = prepared(recipe, *overrides)
        assert both.held_out is not None
        return order(both.train, 0), order(both.held_out, 0)

    train, held = split("held_out.rows=7")
    assert len(held) == len(set(held)) == 7
    assert sorted(train + held) == list(range(1, 41))
    assert held == sorted(held)  # held-out rows keep the order of the file
    assert split("held_out.rows=7") == (train, held)
    assert set(split("held_out.rows=7", "seed=43")[1]) != set(held)
    assert len(split("held_out.fraction=0.1")[1]) == 4
    weighted, held_again = split("held_out.rows=7", "data.consult.weight=2")
    assert held_again == held
    assert sorted(weighted) == sorted(train * 2)


def test_held_out_rows_are_shared_among_the_sources(recipe: Path, consultations: Consultations) -> None:
    other = consultations(16, "other.jsonl")
    both = prepared(recipe, f"data.more={{use: chatmed-consult, path: {other}}}", "held_out.rows=6")
    assert both.held_out is not None
    assert [len(selection.indices) for selection in both.train.selections] == [6, 12]
    assert [len(selection.indices) for selection in both.held_out.selections] == [2, 4]


def test_a_data_section_of_its_own_is_held_out_whole_and_nothing_else(
    recipe: Path, consultations: Consultations
) -> None:
    apart = consultations(3, "apart.jsonl")
    both = prepared(recipe, f"held_out={{use: chatmed-consult, path: {apart}}}")
    assert both.held_out is not None
    assert (len(both.train), len(both.held_out)) == (8, 3)
    assert {where.file for where in both.held_out.epoch(0).where(0)} == {str(apart)}
    assert len(both.ledgers) == 2


# ---- control tokens cannot be typed


@pytest.mark.parametrize("side", ["query", "response"])
def test_control_tokens_that_a_patient_types_stay_text(
    medframe: Medframe, recipe: Path, consultations: Consultations, side: str
) -> None:
    typed = "我</s>吃了<s>药<unk>，▁编号195<0x0A>"
    consultations([{**GOOD, side: typed}])
    (sample,) = json_lines(medframe("preview", recipe, "--json"))
    ids = sample["input_ids"]
    assert (ids[0], ids[-1]) == (1, 2)
    assert Counter(ids)[1] == Counter(ids)[2] == 1
    assert not {0, 195} & set(ids)
    assert typed.replace("▁", " ") in sample["text"]
    (row,) = json_lines(medframe("preview", recipe, "--json", "--rows"))  # by way of the store
    assert row["input_ids"] == ids


def test_a_store_that_lost_a_part_is_made_again(recipe: Path, medframe: Medframe, cache: Path) -> None:
    from medframe.compose import compose
    from medframe.prepare import prepare
    from medframe.recipe import build

    first = prepare(build(compose(recipe))).train.selections[0].examples
    whole = [first.ids(i).tolist() for i in range(len(first))]
    folder = first.folder
    del first
    (folder / "ids").write_bytes((folder / "ids").read_bytes()[:40])
    again = prepare(build(compose(recipe))).train.selections[0].examples
    assert [again.ids(i).tolist() for i in range(len(again))] == whole


def test_a_tokenizer_file_that_cuts_and_pads_does_neither_here(tmp_path: Path) -> None:
    from medframe.encode import Encoder
    from medframe_backbones.llama import Llama
    from medframe_prompts.chatmed import ChatMed

    turns = (Turn("user", "头痛" * 40), Turn("assistant", "休息" * 40))
    tokenizer = Llama().load_tokenizer()
    whole = Encoder(ChatMed(), tokenizer).example(turns).ids
    tokenizer(["头痛" * 40, "头"], truncation=True, max_length=18, padding=True)
    tokenizer.save_pretrained(tmp_path)
    assert '"truncation": null' not in (tmp_path / "tokenizer.json").read_text("utf-8")
    assert Encoder(ChatMed(), Llama(tokenizer=str(tmp_path)).load_tokenizer()).example(turns).ids == whole


def test_an_added_token_that_is_not_called_special_stays_text_too() -> None:
    from medframe.encode import Encoder
    from medframe_backbones.llama import Llama
    from medframe_prompts.chatmed import ChatMed

    tokenizer = Llama().load_tokenizer()
    tokenizer.add_tokens(["<think>"])
    ids = Encoder(ChatMed(), tokenizer).example((Turn("user", "头痛<think>"), Turn("assistant", "休息"))).ids
    assert tokenizer.convert_tokens_to_ids("<think>") not in ids


def test_windows_of_one_dialogue_stay_on_one_side_of_the_split(tmp_path: Path) -> None:
    import numpy as np

    from medframe.prepare import _split

    class Store:
        rows = np.repeat(np.arange(20), 3)

    train, held_out = _split(Store(), 4, 1, "dialogues")  # type: ignore[arg-type]
    assert len(held_out) == 12
    assert not set(Store.rows[train]) & set(Store.rows[held_out])
