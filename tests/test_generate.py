"""`medframe generate`: every row is answered once, in order, whatever happens meanwhile."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Medframe

from medframe.decoding import preset
from medframe.generate.journal import Journal
from medframe_backbones.llama import Llama

ROOT = Path(__file__).parents[1]
INFER = ROOT.parent / "shared" / "data" / "bentsao" / "infer.json"
SHORT = ("--max-new-tokens", 6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model, in a plain directory."""
    folder = tmp_path_factory.mktemp("plain") / "llama"
    folder.mkdir()
    Llama().make_tiny_tokenizer(folder)
    Llama().make_tiny_weights(folder)
    return folder


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def written(file: Path, *rows: object) -> Path:
    file.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), "utf-8")
    return file


def test_questions_of_every_shape_are_answered_in_order(medframe: Medframe, here: Path, model: Path) -> None:
    said = [{"role": "user", "content": "胃疼。"}, {"role": "assistant", "content": "多久了？"}]
    rows = [
        "头晕怎么办？",
        {"id": "a7", "query": "孩子咳嗽怎么办？", "response": "多喝水。"},
        {"instruction": "解释", "input": "贫血", "output": ""},
        {"messages": [*said, {"role": "user", "content": "三天。"}]},
        {"conversations": [{"from": "human", "value": "失眠"}, {"from": "gpt", "value": "少喝茶。"}]},
    ]
    ended = medframe(
        "generate",
        model,
        "--prompt",
        "bentsao-literature",
        "--input",
        written(here / "q.jsonl", *rows),
        "--output",
        "a.jsonl",
        *SHORT,
    )
    assert ended.code == 0, ended.err
    found = lines(here / "a.jsonl")
    assert [row["where"].rpartition(":")[2] for row in found] == ["1", "2", "3", "4", "5"]
    assert [row["messages"][-1]["content"] for row in found] == [
        "头晕怎么办？",
        "孩子咳嗽怎么办？",
        "解释\n贫血",
        "三天。",
        "失眠",
    ]
    assert found[1]["id"] == "a7"
    assert len(found[3]["messages"]) == 3
    assert found[4]["expected"] == "少喝茶。"
    assert {row["finish"] for row in found} <= {"stop", "length"}
    assert all(row["tokens"]["answer"] <= 6 and row["tokens"]["question"] > 5 for row in found)
    assert not (here / "a.jsonl.part").exists()
    assert "a.jsonl: " in ended.out


def test_a_row_that_fails_is_written_with_why_and_the_others_go_on(medframe: Medframe, here: Path, model: Path) -> None:
    rows = [
        {"question": "头晕"},
        {"messages": [{"role": "system", "content": "你是医生"}, {"role": "user", "content": "头晕"}]},
        {"title": "头晕"},
        {"messages": [{"role": "nurse", "content": "头晕"}]},
        {"messages": "头晕"},
        {"question": " "},
        {"question": "头晕" * 3000},
        17,
        {"question": "牙疼"},
    ]
    written(here / "q.jsonl", *rows)
    with (here / "q.jsonl").open("a") as more:
        more.write("{broken\n")
    ended = medframe("generate", model, "--prompt", "chatmed", "--input", "q.jsonl", "--output", "a.jsonl", *SHORT)
    assert ended.code == 0, ended.err
    found = lines(here / "a.jsonl")
    assert ["error" in row for row in found] == [False, True, True, True, True, True, True, True, False, True]
    for row, why in zip(
        found,
        (
            "",
            "system",
            "no field tells what is asked",
            "nurse",
            "must be a list",
            "nothing is asked",
            "alone takes",
            "text or",
        ),
        strict=False,
    ):
        assert why in row.get("error", "")
    assert "8 failed, with why" in ended.out


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.txt", "头晕怎么办？\n\n 牙疼 \n".encode("gb18030")),
        ("q.csv", "id,question\n1,头晕怎么办？\n2,牙疼\n".encode()),
        ("q.json", '["头晕怎么办？",\n "牙疼"]'.encode()),
    ],
)
def test_files_of_every_kind_are_read(medframe: Medframe, here: Path, model: Path, name: str, content: bytes) -> None:
    (here / name).write_bytes(content)
    ended = medframe("generate", model, "--prompt", "chatmed", "--input", name, "--output", "a.jsonl", *SHORT)
    assert ended.code == 0, ended.err
    assert [row["messages"][0]["content"] for row in lines(here / "a.jsonl")] == ["头晕怎么办？", "牙疼"]


def test_rows_of_a_data_set_are_read_by_its_component(medframe: Medframe, here: Path, model: Path) -> None:
    row = {"conversation": [{"role": "user", "content": "头晕"}, {"role": "assistant", "content": "多久了？"}]}
    written(here / "q.jsonl", {**row, "_id": 1, "source": "x"})
    line = ["generate", model, "--prompt", "chatmed", "--input", "q.jsonl", "--output", "a.jsonl", *SHORT]
    ended = medframe(*line, "--source", "disc-med-sft")
    assert ended.code == 0, ended.err
    assert lines(here / "a.jsonl")[0]["expected"] == "多久了？"
    ended = medframe(*line, "--source", "disc-med", "--overwrite")
    assert ended.code == 2
    assert "disc-med-sft" in ended.err


def test_the_same_seed_draws_the_same_whatever_is_answered_beside_it(
    medframe: Medframe, here: Path, model: Path
) -> None:
    written(here / "q.jsonl", "头晕怎么办？", "牙疼", "孩子咳嗽怎么办，要不要去医院？")
    line = ["generate", model, "--prompt", "chatmed", "--input", "q.jsonl", "--temperature", 1.5, *SHORT]
    for name, more in {"a": (), "b": ("--tokens", 1), "c": ("--seed", 1)}.items():
        assert medframe(*line, "--output", f"{name}.jsonl", *more).code == 0
    first, alone, other = ((here / f"{name}.jsonl").read_text("utf-8") for name in "abc")
    assert first == alone
    assert first != other


KILLED = """
import os, sys
from medframe.generate import journal
add, how = journal.Journal.add, int(sys.argv.pop())

def adds(self, number, answer):
    add(self, number, answer)
    if len(self) == 5:
        os.kill(os.getpid(), how)

journal.Journal.add = adds
from medframe.cli import main
sys.argv[:1] = ["medframe", "generate"]
main()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_loses_no_answer_and_none_is_made_twice(
    medframe: Medframe, here: Path, model: Path, how: signal.Signals
) -> None:
    written(here / "q.jsonl", *(f"第{i}天，头晕怎么办？" for i in range(12)))
    line = [model, "--prompt", "chatmed", "--input", "q.jsonl", "--temperature", 1.0, *SHORT, "--tokens", 100]
    whole = medframe("generate", *line, "--output", "whole.jsonl")
    assert whole.code == 0, whole.err
    command = [sys.executable, "-c", KILLED, *map(str, line), "--output", "a.jsonl", str(int(how))]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == (-9 if how == signal.SIGKILL else 143), ended.stderr
    assert not (here / "a.jsonl").exists()
    part = here / "a.jsonl.part"
    before = part.read_bytes()
    assert len(before.splitlines()) == 6
    part.write_bytes(before + b'{"number": 11, "answer": "ha')  # as a kill in the middle of a line leaves it

    ended_ = medframe("generate", *line, "--output", "a.jsonl", "--seed", 4)
    assert ended_.code == 2
    assert "another seed" in ended_.err
    assert part.read_bytes().startswith(before)
    ended_ = medframe("generate", *line, "--output", "a.jsonl")
    assert ended_.code == 0, ended_.err
    assert (here / "a.jsonl").read_text("utf-8") == (here / "whole.jsonl").read_text("utf-8")
    assert not part.exists()


def test_two_processes_do_not_write_the_same_answers(medframe: Medframe, here: Path, model: Path) -> None:
    written(here / "q.jsonl", "头晕怎么办？")
    line = ["generate", model, "--prompt", "chatmed", "--input", "q.jsonl", "--output", "a.jsonl", *SHORT]
    with Journal(here / "a.jsonl", {"model": "another"}) as first:
        for more in ((), ("--overwrite",)):
            ended = medframe(*line, *more)
            assert ended.code == 2
            assert "another process is writing answers there" in ended.err
        first.add(0, {"answer": "好"})
    assert len((here / "a.jsonl.part").read_bytes().splitlines()) == 2


def test_begun_answers_are_of_their_format_and_replace_what_was_to_be_replaced(
    medframe: Medframe, here: Path, model: Path
) -> None:
    written(here / "q.jsonl", *(f"第{i}天，头晕怎么办？" for i in range(6)))
    line = [model, "--input", "q.jsonl", "--output", "a.jsonl", *SHORT, "--tokens", 1]
    (here / "a.jsonl").write_text("old")
    command = [sys.executable, "-c", KILLED, *map(str, line), "--prompt", "chatmed", "--overwrite", "9"]
    assert subprocess.run(command, capture_output=True).returncode == -9
    assert (here / "a.jsonl").read_text() == "old"
    ended = medframe("generate", *line, "--prompt", "bentsao-med")
    assert ended.code == 2
    assert "another format" in ended.err
    ended = medframe("generate", *line, "--prompt", "chatmed", "--weights-dtype", "int8")
    assert ended.code == 2
    assert "another weights_dtype" in ended.err
    ended = medframe("generate", *line, "--prompt", "chatmed")
    assert ended.code == 0, ended.err
    assert len(lines(here / "a.jsonl")) == 6


def test_the_questions_are_not_written_over(medframe: Medframe, here: Path, model: Path) -> None:
    written(here / "q.jsonl", "头晕怎么办？")
    line = ["generate", model, "--prompt", "chatmed", "--input", "q.jsonl", "--output", "./q.jsonl", *SHORT]
    ended = medframe(*line, "--overwrite")
    assert ended.code == 2
    assert "the questions are read from there" in ended.err
    assert (here / "q.jsonl").read_text("utf-8") == '"头晕怎么办？"\n'


def test_presets_are_what_the_authors_published(medframe: Medframe, here: Path, model: Path) -> None:
    assert (preset("chatmed").temperature, preset("chatmed").repetition_penalty) == (0.2, 1.3)
    assert (preset("bentsao").num_beams, preset("bentsao").temperature) == (4, 0)
    assert (preset("disc").top_k, preset("disc").top_p) == (5, 0.85)
    written(here / "q.jsonl", "头晕怎么办？")
    line = ["generate", model, "--prompt", "chatmed", "--input", "q.jsonl", "--output", "a.jsonl"]
    ended = medframe(*line, "--preset", "bentsao", *SHORT)
    assert ended.code == 0, ended.err
    assert "beam search, max_new_tokens 6, num_beams 4" in ended.err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--preset", "huatuo"), "'huatuo'"),
        (("--temperature", -1), "temperature must lie between 0 and 10"),
        (("--top-p", 0), "top_p must be above 0"),
        (("--num-beams", 2, "--temperature", 1), "exclude each other"),
        (("--stop", ""), "an empty text"),
        (("--input", "none.jsonl"), "no such file"),
        (("--input", "empty.jsonl"), "holds no rows"),
        (("--output", "there.jsonl"), "--overwrite begins anew"),
        (("--output", "."), "is a folder"),
    ],
)
def test_what_cannot_be_is_refused(
    medframe: Medframe, here: Path, model: Path, more: tuple[object, ...], said: str
) -> None:
    written(here / "q.jsonl", "头晕怎么办？")
    (here / "empty.jsonl").touch()
    (here / "there.jsonl").write_text("mine")
    line = ["generate", model, "--prompt", "chatmed", "--input", "q.jsonl", "--output", "a.jsonl", *SHORT, *more]
    ended = medframe(*line)
    assert ended.code == 2, ended
    assert said in ended.err
    assert (here / "there.jsonl").read_text() == "mine"
    assert not (here / "a.jsonl").exists()


def test_a_part_of_something_else_is_left_alone(medframe: Medframe, here: Path, model: Path) -> None:
    written(here / "q.jsonl", "头晕怎么办？")
    (here / "a.jsonl.part").write_text("mine\n")
    line = ["generate", model, "--prompt", "chatmed", "--input", "q.jsonl", "--output", "a.jsonl", *SHORT]
    ended = medframe(*line)
    assert ended.code == 2
    assert "holds no answers of medframe" in ended.err
    assert (here / "a.jsonl.part").read_text() == "mine\n"


@pytest.mark.skipif(not INFER.exists(), reason="the published questions are not here")
def test_bentsaos_own_questions(medframe: Medframe, here: Path, model: Path) -> None:
    line = ["generate", model, "--prompt", "bentsao-med", "--preset", "bentsao", *SHORT]
    ended = medframe(*line, "--input", INFER, "--output", "a.jsonl")
    assert ended.code == 0, ended.err
    found = lines(here / "a.jsonl")
    assert len(found) == len(INFER.read_text("utf-8").splitlines())
    assert all("answer" in row and row["expected"] for row in found)
