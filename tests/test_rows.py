"""Files and rows as a user meets them: every trap in a file either reads right or is named with its place."""

from __future__ import annotations

import itertools
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from medframe.dataset import BadRow, Row
from medframe.errors import DataError
from medframe.files import find, fingerprint
from medframe.rows import read

REAL = Path(__file__).parents[2] / "shared" / "data" / "raw-formats"
ASK, ANSWER = "胃痛怎么办", "先做胃镜检查"


def rows_of(file: Path) -> list[Row | BadRow]:
    return list(read([file]))


def values(file: Path) -> list[Any]:
    rows = rows_of(file)
    assert all(isinstance(row, Row) for row in rows), rows
    return [row.value for row in rows if isinstance(row, Row)]


def lines(file: Path) -> list[int]:
    return [row.where.line for row in rows_of(file)]


def bad(file: Path) -> dict[int, str]:
    return {row.where.line: row.why for row in rows_of(file) if isinstance(row, BadRow)}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(name: str, content: str | bytes, encoding: str = "utf-8") -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return file

    return write


# ---- which files a path names


def test_a_glob_names_its_files_in_sorted_order_and_goes_into_folders(write: Any, tmp_path: Path) -> None:
    b, a, deep = write("b.jsonl", ""), write("a.jsonl", ""), write("x/y/c.jsonl", "")
    (tmp_path / "folder.jsonl").mkdir()
    assert find(str(tmp_path / "*.jsonl")) == [a, b]
    assert find(str(tmp_path / "**" / "*.jsonl")) == [a, b, deep]


def test_a_list_keeps_its_order_and_a_file_named_twice_is_read_once(write: Any, tmp_path: Path) -> None:
    b, a = write("b.jsonl", ""), write("a.jsonl", "")
    (tmp_path / "x").mkdir()
    assert find([str(b), str(tmp_path / "*.jsonl"), str(tmp_path / "x" / ".." / "a.jsonl")]) == [b, a]


def test_a_tilde_is_the_home_folder(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write("a.jsonl", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find("~/a.jsonl") == [file]


def test_brackets_in_a_real_file_name_are_no_glob(write: Any) -> None:
    file = write("part[1].json", "")
    assert find(str(file)) == [file]


def test_a_misspelt_file_name_brings_the_nearest_one(write: Any, tmp_path: Path) -> None:
    write("consult_train.jsonl", "")
    with pytest.raises(DataError, match=r"consult_trian\.jsonl: no such file.*mean .*consult_train\.jsonl"):
        find(str(tmp_path / "consult_trian.jsonl"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("zzz", "zzz: no such file; give a file in"),
        ("nowhere/a.jsonl", "there is no folder .*nowhere"),
        ("*.parquet", r"\*\.parquet: matches no file"),
        ("", r"is a folder; .*\*\.jsonl"),
    ],
)
def test_a_path_that_names_no_file_says_what_would(write: Any, tmp_path: Path, name: str, says: str) -> None:
    write("a.jsonl", "")
    with pytest.raises(DataError, match=says):
        find(os.path.join(tmp_path, name))


@pytest.mark.parametrize("nothing", ["", [], ["a.jsonl", ""]])
def test_an_empty_path_is_an_error(nothing: str | list[str], write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write("a.jsonl", "").parent)
    with pytest.raises(DataError, match="path: empty"):
        find(nothing)


def test_a_pipe_is_refused_because_files_are_read_twice(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe: is not a regular file"):
        find(str(tmp_path / "pipe"))


# ---- JSON lines


def test_json_lines_are_known_by_content_not_by_name(write: Any) -> None:
    for name in ("a.json", "a.jsonl", "a.txt", "a.unknown", "a"):
        assert values(write(name, '{"q": "胃痛"}\n{"q": 2}')) == [{"q": "胃痛"}, {"q": 2}]


def test_rows_carry_the_file_and_the_line(write: Any) -> None:
    first, second = write("a.jsonl", '\n{"q": 1}\n  \n\n{"q": 2}\n'), write("b.jsonl", '{"q": 3}\n')
    assert [str(row.where) for row in read([first, second])] == [f"{first}:2", f"{first}:5", f"{second}:1"]


def test_windows_line_ends_and_a_byte_order_mark_do_not_show(write: Any) -> None:
    assert values(write("a.jsonl", '{"q": "甲"}\r\n\r\n{"q": "乙"}\r\n', "utf-8-sig")) == [
        {"q": "甲"},
        {"q": "乙"},
    ]


def test_a_unicode_line_separator_inside_text_does_not_split_the_row(write: Any) -> None:
    text = "一\u2028二\u0085三"
    file = write("a.jsonl", json.dumps({"q": text}, ensure_ascii=False) + '\n{"q": 2}\n')
    assert values(file) == [{"q": text}, {"q": 2}]
    assert lines(file) == [1, 2]


def test_rows_that_are_lists_or_text_are_passed_on(write: Any) -> None:
    assert values(write("a.jsonl", '{"q": 1}\n["病人：疼", "医生：好"]\n"text"\nnull\n12\n')) == [
        {"q": 1},
        ["病人：疼", "医生：好"],
        "text",
        None,
        12,
    ]


def test_a_line_that_is_not_json_is_named_with_its_column_and_the_rest_is_read(write: Any) -> None:
    file = write("a.jsonl", '{"q": 1}\n  {"q": tru}\n{"q": 3} {"q": 4}\n{"q": 5}\n')
    assert bad(file) == {
        2: "not JSON: Expecting value at column 9",
        3: "not JSON: a value, and then more text at column 10",
    }
    assert [row.value for row in rows_of(file) if isinstance(row, Row)] == [{"q": 1}, {"q": 5}]


def test_a_first_line_that_is_not_json_is_a_bad_row_of_a_json_file(write: Any) -> None:
    for name in ("a.json", "a.JSONL", "a.ndjson", "a.txt"):
        assert list(bad(write(name, 'oops\n{"q": 1}\n'))) == [1]


def test_one_pretty_printed_object_is_told_to_go_on_one_line(write: Any) -> None:
    file = write("a.json", json.dumps({"q": ASK, "a": ANSWER}, ensure_ascii=False, indent=2))
    assert "not a JSON object on one line" in bad(file)[1]
    assert "each row on one line, or all rows as one [array]" in bad(file)[1]


def test_a_line_that_was_cut_short_says_so(write: Any) -> None:
    file = write("a.jsonl", '{"q": 1}\n{"q": "胃')
    assert bad(file)[2].startswith("not a JSON object on one line: Unterminated string")


def test_nan_and_infinity_are_bad_rows_and_the_next_row_is_not(write: Any) -> None:
    text = '{"q": NaN}', '{"q": [1, -Infinity]}', '{"q": NaN', '{"q": NaN} x', '{"q": 5}'
    assert list(bad(write("a.jsonl", "\n".join(text)))) == [1, 2, 3, 4]
    array = write("a.json", "[" + ",\n".join((text[0], text[1], text[4])) + "]")
    assert list(bad(array)) == [1, 2]
    assert bad(array)[1] == "NaN is not JSON; write null or a number"


@pytest.mark.parametrize("half", ["\\ud800", "\\uDFFF", "\\ude00\\ud83d"])
def test_half_a_surrogate_pair_is_a_bad_row(write: Any, half: str) -> None:
    rows = f'{{"q": "{half}"}}', f'{{"{half}": 1}}', r'{"q": "\ud83d\ude00 \u80c3"}', r'{"q": "\\ud800"}'
    for file in (write("a.jsonl", "\n".join(rows)), write("a.json", "[" + ",\n".join(rows) + "]")):
        assert list(bad(file)) == [1, 2]
        assert "half of a surrogate pair" in bad(file)[1]
        assert [row.value for row in rows_of(file)[2:] if isinstance(row, Row)] == [
            {"q": "😀 胃"},
            {"q": "\\ud800"},
        ]


def test_json_that_python_cannot_hold_is_a_bad_row(write: Any) -> None:
    deep = '{"q": ' + "[" * 100_000 + "]" * 100_000 + "}"
    file = write("a.jsonl", f'{{"q": {"9" * 5000}}}\n{deep}\n{{"q": 1}}')
    assert bad(file) == {
        1: "not JSON that can be read: a number with too many digits",
        2: "not JSON that can be read: nested too deeply",
    }
    with pytest.raises(DataError, match=r"a\.json:2: element 2 of the array: nested too deeply"):
        rows_of(write("a.json", f"[1,\n{deep}]"))


def test_an_empty_or_blank_file_has_no_rows(write: Any) -> None:
    for name in ("a.json", "a.csv", "a.tsv", "a.whatever"):
        assert values(write(name, "")) == []
        assert values(write(name, "\n \n")) == []
        assert values(write(name, b"\xef\xbb\xbf")) == []


# ---- JSON arrays


def test_an_array_is_read_whatever_its_name_and_layout(write: Any) -> None:
    rows = [{"q": "胃痛"}, {"q": 'a ] , "'}, [1, [2]], "text", 3, None]
    for indent, name in itertools.product((None, 2), ("a.json", "a.jsonl", "a.txt", "a")):
        assert values(write(name, "\ufeff \n" + json.dumps(rows, ensure_ascii=False, indent=indent))) == rows


def test_an_element_carries_the_line_where_it_begins(write: Any) -> None:
    assert lines(write("a.json", '\n[{"q":\n1}, {"q":\r\n 2}\n,\n\n{"q": 3}\n]\n\n')) == [2, 3, 7]


def test_an_empty_array_has_no_rows(write: Any) -> None:
    assert values(write("a.json", " [ \n ] \n")) == []


def test_a_value_across_the_reading_buffer_stays_whole(write: Any) -> None:
    """Every kind of token meets the buffer's end at every offset; one element is longer than four buffers."""
    tail: list[Any] = [-12345.5e-10, True, None, 1234567, '\\u"胃', {"键": [False, "😀"]}, "长" * 300_000, 7]
    text = ", ".join(json.dumps(value) for value in tail)
    for pad in range((1 << 16) - 110, (1 << 16) + 2):
        head = '["' + "x" * (pad - 4) + '",'
        assert values(write("a.json", head + text + "]"))[1:] == tail


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ('[{"q": 1},\n{"q": tru},\n{"q": 3}]', 2, "element 2 of the array: not JSON: Expecting value"),
        ('[{"q": 1},\n{"q": tru}]', 2, "element 2 of the array: not JSON"),
        ('[{"q": 1},\n{"q":\n 2', 3, "element 2 of the array: the file ends inside it"),
        ('[{"q": 1},\n{"q": "胃痛', 2, "element 2 of the array: the file ends inside it"),
        ('[{"q": 1},\n{"q": 2}', 2, "element 2 of the array: the file ends before the array does"),
        ('[{"q": 1},\n{"q": 2},\n', 3, "element 3 of the array: the file ends inside it"),
        ('[{"q": 1},\n]', 2, "element 2 of the array: not JSON"),
        ('[{"q": 1}\n{"q": 2}]', 2, "element 1 of the array: no comma or bracket follows it"),
        ('[{"q": 1}]\n[{"q": 2}]', 2, "text after the array's closing bracket"),
        ("[", 1, "the file ends inside it"),
        ('[{"q": "line\nbreak"}, ' + '{"q": 2}, ' * 20 + "{}]", 1, "Invalid control character"),
    ],
)
def test_a_broken_array_stops_with_file_and_line(write: Any, text: str, line: int, says: str) -> None:
    with pytest.raises(DataError) as error:
        rows_of(write("a.json", text))
    assert f"a.json:{line}: " in str(error.value)
    assert says in str(error.value)


def test_rows_before_the_break_in_an_array_are_read(write: Any) -> None:
    reader = read([write("a.json", '[{"q": 1}, {"q" 2}]')])
    row = next(reader)
    assert isinstance(row, Row)
    assert row.value == {"q": 1}
    with pytest.raises(DataError, match="Expecting ':' delimiter"):
        next(reader)


# ---- CSV


def test_cells_may_hold_commas_quotes_and_line_breaks(write: Any) -> None:
    file = write("a.csv", 'ask,answer\n"A 甲\nB ""乙""",C\n\n"x,y",z\r\n"p\r\nq",r')
    assert values(file) == [
        {"ask": 'A 甲\nB "乙"', "answer": "C"},
        {"ask": "x,y", "answer": "z"},
        {"ask": "p\r\nq", "answer": "r"},
    ]
    assert lines(file) == [2, 5, 6]


def test_tab_separated_files_are_split_at_tabs(write: Any) -> None:
    assert values(write("a.TSV", "head\ttail\n胃,脾\t证候\n")) == [{"head": "胃,脾", "tail": "证候"}]


def test_a_csv_that_begins_like_json_is_still_csv(write: Any) -> None:
    assert values(write("a.csv", "[q],{a}\n1,2\n")) == [{"[q]": "1", "{a}": "2"}]


def test_columns_without_a_name_are_called_by_position(write: Any) -> None:
    assert values(write("a.csv", ",q, ,\n0,1,2,3\n")) == [{"column1": "0", "q": "1", "column3": "2", "column4": "3"}]


def test_two_columns_of_one_name_are_an_error(write: Any) -> None:
    with pytest.raises(DataError, match=r"a\.csv:2: two columns are named 'q'"):
        rows_of(write("a.csv", "\nq,a,q\n1,2,3\n"))


def test_a_record_with_too_many_or_too_few_cells_is_a_bad_row(write: Any) -> None:
    file = write("a.csv", "q,a\n1\n1,2,3\n4,5\n")
    assert bad(file) == {2: "1 cells, the header has 2", 3: "3 cells, the header has 2"}
    assert lines(file) == [2, 3, 4]


def test_blank_lines_in_csv_are_skipped_but_empty_cells_are_not(write: Any) -> None:
    assert values(write("a.csv", "\nq,a\n\n  \n,\n")) == [{"q": "", "a": ""}]
    assert values(write("b.csv", 'q\n""\n\nx\n')) == [{"q": ""}, {"q": "x"}]


def test_a_csv_with_a_header_only_has_no_rows(write: Any) -> None:
    assert values(write("a.csv", "q,a\n")) == []


@pytest.mark.parametrize("text", ['q,a\n1,2\n3,"4\n5,6\n7,8\n', 'q,a\n1,2\n3,"he said "hi" twice"\n5,6\n'])
def test_an_open_or_stray_quote_stops_with_the_line_where_its_record_began(write: Any, text: str) -> None:
    with pytest.raises(DataError, match=r"a\.csv:3: a quote in the record that begins here is not closed"):
        rows_of(write("a.csv", text))


def test_a_cell_may_be_a_whole_chapter(write: Any) -> None:
    chapter = "章" * 500_000
    assert values(write("a.csv", f'q,a\n1,"{chapter}"\n')) == [{"q": "1", "a": chapter}]


def test_an_open_quote_in_a_huge_csv_stops_before_the_file_is_in_memory(write: Any) -> None:
    file = write("a.csv", b'q,a\n1,"2\n' + b"3,4 " * (5 << 20))
    with pytest.raises(DataError, match=r"a\.csv:2: a quote"):
        rows_of(file)


# ---- encodings


def test_gb18030_is_read_in_every_format(write: Any) -> None:
    row = {"q": ASK + "㐂𠮷", "a": ANSWER}
    text = json.dumps(row, ensure_ascii=False)
    assert values(write("a.jsonl", f"{text}\n{text}\n", "gb18030")) == [row, row]
    assert values(write("a.json", f"[{text},\n{text}]", "gb18030")) == [row, row]
    assert values(write("a.csv", f"q,a\n{row['q']},{row['a']}\n", "gb18030")) == [row]
    assert values(write("b.csv", f"\ufeffq,a\n{row['q']},{row['a']}\n", "gb18030")) == [row]


def test_a_byte_order_mark_is_no_part_of_the_first_column_name(write: Any) -> None:
    assert values(write("a.csv", "q,a\n甲,乙\n", "utf-8-sig")) == [{"q": "甲", "a": "乙"}]


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_a_broken_byte_costs_one_row_not_the_file(write: Any, encoding: str) -> None:
    row = json.dumps({"q": ASK, "a": ANSWER}, ensure_ascii=False).encode(encoding)
    good = b"\n".join([row] * 3)
    broken = row.replace("胃".encode(encoding), b"\xff")
    file = write("a.jsonl", good + b"\n" + broken + b"\n" + good + b"\n{}\n")
    assert bad(file) == {4: f"bytes that are not {encoding.upper()}"}
    assert [row.value for row in rows_of(file) if isinstance(row, Row)][-2:] == [{"q": ASK, "a": ANSWER}, {}]


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_a_broken_byte_in_a_record_of_many_lines_is_one_bad_row(write: Any, encoding: str) -> None:
    good = f'"{ASK}\n{ASK}",{ANSWER}\n'.encode(encoding)
    broken = good.replace("怎".encode(encoding), b"\xff", 1)
    file = write("a.csv", b"q,a\n" + good + broken + good)
    assert bad(file) == {4: f"bytes that are not {encoding.upper()}"}
    assert lines(file) == [2, 4, 6]


def test_a_broken_byte_in_a_csv_header_is_an_error(write: Any) -> None:
    with pytest.raises(DataError, match=r"a\.csv:1: bytes that are not UTF-8 in the header"):
        rows_of(write("a.csv", b"q,\xff\n" + "甲,乙\n".encode() * 2))


def test_a_broken_byte_in_an_array_stops_with_the_line(write: Any) -> None:
    row = json.dumps({"q": ASK}, ensure_ascii=False).encode()
    array = b"[" + b",\n".join([row, row, row.replace(b"\xe8\x83\x83", b"\xff"), row]) + b"]"
    with pytest.raises(DataError, match=r"a\.json:3: element 3 of the array: bytes that are not UTF-8"):
        rows_of(write("a.json", array))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_an_encoding_that_is_neither_is_an_error_that_names_iconv(write: Any, name: str) -> None:
    with pytest.raises(DataError, match="neither UTF-8 nor GB18030; convert it, for example: iconv"):
        rows_of(write(name, b'{"q": "caf\xff\xe9"}\n' * 3))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_wide_encoding_is_named(write: Any, encoding: str, name: str) -> None:
    with pytest.raises(DataError, match=f"is {encoding.upper()}; convert it to UTF-8: iconv -f"):
        rows_of(write(name, "q,a\n甲,乙\n", encoding))


def test_a_long_gb18030_array_on_one_line_is_read_across_the_reading_blocks(write: Any) -> None:
    rows = [{"q": ASK * 10, "n": n} for n in range(10_000)]
    assert values(write("a.json", json.dumps(rows, ensure_ascii=False), "gb18030")) == rows


# ---- files that cannot be read


def test_a_file_of_another_kind_says_what_is_read(write: Any) -> None:
    with pytest.raises(DataError, match=r"a\.parquet: neither begins like JSON.*JSON lines and JSON arrays"):
        rows_of(write("a.parquet", b"PAR1\x00\xff\xfe"))


def test_a_file_that_vanished_says_so(write: Any) -> None:
    file = write("a.jsonl", "{}")
    file.unlink()
    for act in (lambda: rows_of(file), lambda: fingerprint([file])):
        with pytest.raises(DataError, match=r"a\.jsonl: cannot be read: No such file"):
            act()


def test_a_folder_or_a_forbidden_file_says_so(write: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        rows_of(tmp_path)
    file = write("a.jsonl", "{}")
    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("this user may read every file")
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        rows_of(file)


# ---- fingerprint


def test_the_fingerprint_knows_contents_and_order_not_names(write: Any) -> None:
    a, b, same = write("a", "{}\n"), write("b", "[]\n"), write("x/c", "{}\n")
    assert fingerprint([a, b]) == fingerprint([same, b])
    assert fingerprint([a, b]) != fingerprint([b, a])
    assert len(fingerprint([a])) == 64


def test_moving_a_row_to_the_next_file_changes_the_fingerprint(write: Any) -> None:
    before = fingerprint([write("a", "1\n2\n"), write("b", "3\n")])
    assert fingerprint([write("a", "1\n"), write("b", "2\n3\n")]) != before


# ---- size


@pytest.mark.parametrize("wanted", [1, None], ids=["first row", "all rows"])
def test_memory_stays_flat_on_a_large_array_on_one_line(write: Any, wanted: int | None) -> None:
    element = json.dumps({"q": ASK * 100, "a": "x" * 500})
    file = write("a.json", "[" + ", ".join([element] * (30_000_000 // len(element))) + "]")
    tracemalloc.start()
    try:
        assert all(isinstance(row, Row) for row in itertools.islice(read([file]), wanted))
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


def test_a_break_early_in_a_large_array_is_found_without_reading_the_rest(write: Any) -> None:
    file = write("a.json", '[{"q": 1}, {"q": oops}, ' + '{"q": 2}, ' * 2_000_000 + "{}]")
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"a\.json:1: element 2"):
            rows_of(file)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


# ---- real files, each a trap for a loader

REAL_FILES = {
    "cmd_neike.gb18030.csv": (622, {"department", "title", "ask", "answer"}),
    "disease.gb18030.csv": (60, {"name", "alias", "money", "column16", "column20"}),
    "one_line_array.json": (20, {"instruction", "output", "input"}),
    "lines_named.json": (30, {"instruction", "input", "output"}),
    "empty_first_header.csv": (5, {"column1", "Question", "A", "B", "C", "D", "Answer"}),
    "multiline_options.csv": (20, {"Question", "Options", "Answer", "Explanation"}),
    "sharegpt.jsonl": (20, {"conversations"}),
}


@pytest.mark.skipif(not REAL.is_dir(), reason="the real trap files are not here")
@pytest.mark.parametrize("name", REAL_FILES)
def test_a_real_trap_file_is_read_whole(name: str) -> None:
    count, fields = REAL_FILES[name]
    rows = values(REAL / name)
    assert len(rows) == count
    assert all(fields <= row.keys() for row in rows)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real trap files are not here")
def test_real_records_of_many_lines_carry_the_line_where_they_begin() -> None:
    file = REAL / "multiline_options.csv"
    text = file.read_text(encoding="utf-8-sig").split("\n")
    for row in rows_of(file):
        assert isinstance(row, Row)
        assert "\n" in row["Options"]
        assert text[row.where.line - 1].lstrip('"').startswith(row["Question"][:5])


@pytest.mark.skipif(not REAL.is_dir(), reason="the real trap files are not here")
def test_a_real_file_of_triples_without_a_header_takes_its_first_line_for_one() -> None:
    rows = values(REAL / "head_tail_relation.tsv")
    assert len(rows) == 42
    assert all(len(row) == 3 for row in rows)
