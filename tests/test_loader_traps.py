"""Files as hospitals, exports and public projects write them, each a trap for a loader, read through a data set."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from medframe import BadRow, DatasetSource, Sample
from medframe.plugins import catalog

RAW = Path(__file__).parents[2] / "shared" / "data" / "raw-formats"
public = pytest.mark.skipif(not RAW.is_dir(), reason="the public files are not here")

ASK, ANSWER = "胃痛三天，怎么办？", "先做胃镜检查。"
CMD = {"question": ["title", "ask"], "answer": "answer"}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, content: str | bytes, encoding: str = "utf-8") -> Path:
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return file

    return write


def items(use: str, file: Path, **fields: Any) -> list[Sample | BadRow]:
    section = OmegaConf.structured(catalog().find("dataset", use).load())
    dataset = OmegaConf.to_object(OmegaConf.merge(section, {"path": str(file), **fields}))
    assert isinstance(dataset, DatasetSource)
    return list(dataset)


def texts(use: str, file: Path, **fields: Any) -> list[list[str]]:
    """What is said in each row, all of them good."""
    found = items(use, file, **fields)
    assert all(isinstance(item, Sample) for item in found), found
    return [[turn.text for turn in item.turns] for item in found if isinstance(item, Sample)]


def places(use: str, file: Path, **fields: Any) -> list[int]:
    return [item.where.line for item in items(use, file, **fields)]


# ---- encodings


def test_gb18030_without_a_mark(write: Write) -> None:
    table = f"department,title,ask,answer\n消化科,胃病,{ASK},{ANSWER}\n消化科,㐂𠮷,{ASK},{ANSWER}\n"
    file = write("cmd.csv", table, "gb18030")
    with pytest.raises(UnicodeDecodeError):
        file.read_text("utf-8")
    assert texts("huatuo-26m", file, **CMD) == [[f"胃病\n{ASK}", ANSWER], [f"㐂𠮷\n{ASK}", ANSWER]]
    line = json.dumps({"query": ASK, "response": ANSWER}, ensure_ascii=False)
    assert texts("chatmed-consult", write("rows.jsonl", f"{line}\n{line}\n", "gb18030")) == [[ASK, ANSWER]] * 2


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [(codecs.BOM_UTF8, "utf-8"), ("\ufeff".encode("gb18030"), "gb18030")],
    ids=["utf-8", "gb18030"],
)
def test_a_byte_order_mark_is_no_part_of_the_first_field(write: Write, mark: bytes, encoding: str) -> None:
    table = write("table.csv", mark + f"questions,answers\n{ASK},{ANSWER}\n".encode(encoding))
    assert texts("huatuo-26m", table) == [[ASK, ANSWER]]
    row = json.dumps({"query": ASK, "response": ANSWER}, ensure_ascii=False).encode(encoding)
    assert texts("chatmed-consult", write("rows.jsonl", mark + row)) == [[ASK, ANSWER]]
    assert texts("chatmed-consult", write("rows.json", mark + b"[" + row + b"]")) == [[ASK, ANSWER]]


# ---- JSON


def test_an_array_on_one_line_without_a_final_newline(write: Write) -> None:
    rows = [{"instruction": f" <user>: {ASK}{n}", "output": ANSWER, "input": ""} for n in range(300)]
    file = write("liver.json", json.dumps(rows, ensure_ascii=False))
    assert b"\n" not in file.read_bytes()
    assert texts("bentsao-literature", file) == [[f"{ASK}{n}", ANSWER] for n in range(300)]
    assert set(places("bentsao-literature", file)) == {1}


def test_json_lines_named_json(write: Write) -> None:
    rows = [{"instruction": f"{ASK}{n}", "input": "", "output": ANSWER} for n in range(3)]
    file = write("llama_data.json", "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    with pytest.raises(json.JSONDecodeError, match="Extra data"):
        json.loads(file.read_bytes())
    assert texts("bentsao-knowledge", file) == [[f"{ASK}{n}", ANSWER] for n in range(3)]
    assert places("bentsao-knowledge", file) == [1, 2, 3]


def test_windows_line_ends(write: Write) -> None:
    line = json.dumps({"query": ASK, "response": f"{ANSWER}\r\n{ANSWER}"}, ensure_ascii=False)
    # A line break inside a text is the text's own, and stays.
    assert texts("chatmed-consult", write("rows.jsonl", f"{line}\r\n{line}")) == [[ASK, f"{ANSWER}\r\n{ANSWER}"]] * 2
    table = write("table.csv", f"questions,answers\r\n{ASK},{ANSWER}\r\n{ASK},{ANSWER}\r\n")
    assert texts("huatuo-26m", table) == [[ASK, ANSWER]] * 2


# ---- a backslash and an n

WRITTEN = r"A 胃\nB 脾"
READ = "A 胃\nB 脾"
LITERAL: dict[str, Any] = {
    "alpaca": {
        "instruction": WRITTEN,
        "input": "",
        "output": WRITTEN,
        "history": [[WRITTEN, WRITTEN]],
        "system": WRITTEN,
    },
    "messages": {
        "messages": [{"role": "user", "content": WRITTEN}, {"role": "assistant", "content": WRITTEN}],
        "system": WRITTEN,
    },
    "sharegpt": {"conversations": [{"from": "human", "value": WRITTEN}, {"from": "gpt", "value": WRITTEN}]},
    "huatuo-26m": {"questions": WRITTEN, "answers": WRITTEN},
}


@pytest.mark.parametrize("use", LITERAL)
def test_a_written_out_line_break_is_one_only_where_the_recipe_says_so(use: str, write: Write) -> None:
    file = write("rows.jsonl", json.dumps(LITERAL[use], ensure_ascii=False))
    assert set(texts(use, file)[0]) == {WRITTEN}
    assert set(texts(use, file, literal_newlines=True)[0]) == {READ}


def test_a_written_out_line_break_in_a_table(write: Write) -> None:
    file = write("exam.csv", f"Question,Options,Answer\n{ASK},{WRITTEN},B\n")
    names = {"question": ["Question", "Options"], "answer": "Answer"}
    assert texts("huatuo-26m", file, **names) == [[f"{ASK}\n{WRITTEN}", "B"]]
    assert texts("huatuo-26m", file, literal_newlines=True, **names) == [[f"{ASK}\n{READ}", "B"]]


# ---- CSV


def test_columns_without_a_name(write: Write) -> None:
    file = write("dev.csv", f",Question,A, ,\n0,{ASK},{ANSWER},x,y\n")
    assert texts("huatuo-26m", file, question="Question", answer="A") == [[ASK, ANSWER]]
    assert texts("huatuo-26m", file, question="column1", answer="column4") == [["0", "x"]]
    (item,) = items("huatuo-26m", file, question="问题", answer="A")
    assert isinstance(item, BadRow)
    assert item.why == "no field '问题'; the row's fields: 'column1', 'Question', 'A', 'column4', 'column5'"


def test_cells_of_many_lines(write: Write) -> None:
    file = write("table.csv", f'questions,answers\n"A 胃\nB ""脾"", 肾\n",{ANSWER}\n\n{ASK},"一\r\n二"\n{ASK}\n')
    (first, second, third) = items("huatuo-26m", file)
    assert isinstance(first, Sample) and isinstance(second, Sample)
    assert [turn.text for turn in first.turns] == ['A 胃\nB "脾", 肾\n', ANSWER]
    assert [turn.text for turn in second.turns] == [ASK, "一\r\n二"]
    assert [item.where.line for item in (first, second, third)] == [2, 6, 8]
    assert isinstance(third, BadRow)
    assert third.why == "1 cells, the header has 2"


def test_a_table_without_a_header_is_not_misread_in_silence(write: Write) -> None:
    file = write("triples.tsv", "喜热饮\t胃中虚火证\t证候\n腹痛\t心经积热证\t证候\n")
    (item,) = items("huatuo-26m", file)
    assert isinstance(item, BadRow)
    assert item.why == "no field 'questions'; the row's fields: '喜热饮', '胃中虚火证', '证候'"


# ---- public files


@public
def test_the_public_consultations_in_gb18030() -> None:
    file = RAW / "cmd_neike.gb18030.csv"
    with file.open(encoding="gb18030", newline="") as text:
        rows = list(csv.DictReader(text))
    assert len(rows) == 622
    assert sum("\n" in "".join(row.values()) for row in rows) == 7
    assert all(row["title"] and row["ask"] for row in rows)
    assert texts("huatuo-26m", file, **CMD) == [[f"{row['title']}\n{row['ask']}", row["answer"]] for row in rows]


@public
def test_the_public_diseases_with_five_nameless_columns() -> None:
    found = texts("cmekg", RAW / "disease.gb18030.csv", head="name")
    assert len(found) == 60
    assert all(question.startswith("请介绍一下") and "的symptom：" in answer for question, answer in found)
    assert not any("的column" in answer for _, answer in found)


@public
def test_the_other_public_files() -> None:
    assert len(texts("bentsao-literature", RAW / "one_line_array.json")) == 20
    assert len(texts("bentsao-knowledge", RAW / "lines_named.json")) == 30
    assert len(texts("huatuo-26m", RAW / "empty_first_header.csv", question="Question", answer="Answer")) == 5
    names = {"question": ["Question", "Options"], "answer": "Explanation"}
    exam = texts("huatuo-26m", RAW / "multiline_options.csv", **names)
    assert len(exam) == 20
    assert all("\nA " in question and "\nB " in question for question, _ in exam)
    assert len(texts("sharegpt", RAW / "sharegpt.jsonl")) == 20
    triples = items("huatuo-26m", RAW / "head_tail_relation.tsv")
    assert len(triples) == 42
    assert all(isinstance(item, BadRow) for item in triples)
