"""The contract of a data set: good rows become samples, bad rows become values with a place and a reason."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from medframe.dataset import BadRow, DatasetSource, Sample, Turn, Where
from medframe.plugins import Kind
from medframe.testing.component import ComponentContract

STRANGE: tuple[Any, ...] = (None, 7, "只有一段文字", [], ["甲", "乙"], {}, {"": None})
"""Rows that no data set expects."""


class DatasetContract(ComponentContract):
    """A data set, read from files that the kit writes, and its bundled sample."""

    kind: ClassVar[Kind] = "dataset"
    rows: ClassVar[Sequence[Any]] = ()
    """Good rows, as the file holds them."""
    turns: ClassVar[Sequence[Sequence[tuple[str, str]]]] = ()
    """What the good rows become: (role, text) of every turn. Not compared where it is left out."""
    bad_rows: ClassVar[Sequence[Any]] = ()
    """Rows that cannot be a conversation: each must become a BadRow."""
    optional: ClassVar[Sequence[str]] = ()
    """Fields that a row may lack."""

    def write(self, rows: Sequence[Any], folder: Path) -> Path:
        """A file of the data set's own layout that holds these rows; JSON lines unless this is overridden."""
        file = folder / "rows.jsonl"
        file.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), "utf-8")
        return file

    def read(self, rows: Sequence[Any], folder: Path) -> list[Sample | BadRow]:
        """What the data set makes of these rows."""
        source = self.make(path=str(self.write(rows, folder)))
        assert isinstance(source, DatasetSource)
        found = list(source)
        for item in found:
            # The frame turns any error into a bad row; a data set says itself what is wrong with a row.
            slip = item.why if isinstance(item, BadRow) and ".sample failed: " in item.why else None
            assert not slip, f"{slip}: raise DataError with the reason"
        return found

    def test_is_built_from_its_fields(self) -> None:
        assert isinstance(self.make(path="sample"), self.cls())

    def test_good_rows_become_samples(self, tmp_path: Path) -> None:
        rows = self._good_rows()
        found = self.read(rows, tmp_path)
        assert len(found) == len(rows), f"{len(rows)} rows became {len(found)} samples; none may be lost in silence"
        for number, (row, sample) in enumerate(zip(rows, found, strict=True)):
            assert isinstance(sample, Sample), f"{row!r} is refused: {sample.why}"
            _check_turns(sample)
            assert learnable(sample), f"{row!r} has no answer to learn"
            if self.turns:
                assert sample.turns == tuple(Turn(*turn) for turn in self.turns[number])  # type: ignore[arg-type]

    def test_rows_know_their_place(self, tmp_path: Path) -> None:
        rows = self._good_rows()
        file = self.write([*rows, *self.bad_rows], tmp_path)
        places = [item.where for item in self.make(path=str(file))]
        if type(self).write is DatasetContract.write:
            assert places == [Where(str(file), line + 1) for line in range(len(rows) + len(self.bad_rows))]
        assert all(place.file == str(file) and place.line >= 1 for place in places)
        assert len(set(places)) == len(places), "two rows have the same place"

    def test_bad_rows_become_values(self, tmp_path: Path) -> None:
        if not self.bad_rows:
            pytest.skip("bad_rows is empty")
        found = self.read(self.bad_rows, tmp_path)
        assert len(found) == len(self.bad_rows)
        for row, item in zip(self.bad_rows, found, strict=True):
            assert isinstance(item, BadRow), f"{row!r} was taken for good"
            assert item.why, f"{row!r} is refused without a reason"

    @pytest.mark.parametrize("row", STRANGE, ids=repr)
    def test_strange_rows_raise_nothing(self, row: Any, tmp_path: Path) -> None:
        self._good_rows()
        for item in self.read([row], tmp_path):
            assert isinstance(item, Sample | BadRow)

    def test_a_broken_field_is_named(self, tmp_path: Path) -> None:
        """A field that is missing or no text is a BadRow that names it; null is one too, or reads as empty."""
        for row in self._good_rows():
            for name in _used_texts(self, row, tmp_path):
                (missing,) = self.read([{k: v for k, v in row.items() if k != name}], tmp_path)
                if name not in self.optional:
                    _check_named(missing, name, "is missing")
                for value in (7, {"text": "头痛"}, ["头痛"]):
                    (wrong,) = self.read([{**row, name: value}], tmp_path)
                    _check_named(wrong, name, f"is {value!r}")
                (null,) = self.read([{**row, name: None}], tmp_path)
                if isinstance(null, BadRow):
                    _check_named(null, name, "is null")
                else:
                    _check_turns(null)

    def test_bundled_sample_is_whole(self) -> None:
        if self.cls().bundled is None:
            pytest.skip("no bundled sample")
        found = list(self.make(path="sample"))
        for item in found:
            assert isinstance(item, Sample), f"{item.where}: {item.why}"
            _check_turns(item)
        assert any(learnable(item) for item in found if isinstance(item, Sample)), "no answer in the bundled sample"

    def test_reads_the_same_twice(self, tmp_path: Path) -> None:
        rows = [*self._good_rows(), *self.bad_rows]
        source = self.make(path=str(self.write(rows, tmp_path)))
        assert list(source) == list(source)

    def test_says_where_it_comes_from(self) -> None:
        cls = self.cls()
        assert cls.licence not in ("", "not stated"), "licence: say under which the data may be used"
        assert cls.homepage.startswith(("https://", "http://")), "homepage: give the data's address"

    def test_fingerprint_follows_the_content(self, tmp_path: Path) -> None:
        rows = self._good_rows()
        found = []
        for name, content in (("one", rows), ("same", rows), ("other", [*rows, rows[0]])):
            (tmp_path / name).mkdir()
            found.append(self.make(path=str(self.write(content, tmp_path / name))).fingerprint())
        one, same, other = found
        if one is None:
            pytest.skip("fingerprint() is None: the data are read anew each run")
        assert one == same, "the same content under another name has another fingerprint"
        assert one != other, "the file has changed and the fingerprint has not: a stale store would be reused"

    def _good_rows(self) -> Sequence[Any]:
        if not self.rows and self.cls().__iter__ is not DatasetSource.__iter__:
            pytest.skip("rows is empty, and the data set reads no files")
        assert self.rows, "give the contract some good rows: rows = [{...}, ...]"
        return self.rows


def learnable(sample: Sample) -> bool:
    """Whether the sample holds an answer that says something."""
    return any(turn.role == "assistant" and turn.text.strip() for turn in sample.turns)


def _check_turns(sample: Sample) -> None:
    assert isinstance(sample.turns, tuple), f"turns must be a tuple, not {sample.turns!r}"
    for turn in sample.turns:
        assert turn.role in ("system", "user", "assistant"), f"{sample.where}: role {turn.role!r}"
        assert isinstance(turn.text, str), f"{sample.where}: text {turn.text!r}"


def _check_named(item: Sample | BadRow, name: str, how: str) -> None:
    assert isinstance(item, BadRow), f"a row whose field {name!r} {how} was taken for good: {item.turns}"
    assert name in item.why, f"field {name!r} {how}, and the reason does not name it: {item.why}"


def _used_texts(contract: DatasetContract, row: Any, folder: Path) -> list[str]:
    """The text fields of the row that the sample depends on."""
    if not isinstance(row, Mapping):
        return []
    (before,) = contract.read([row], folder)
    assert isinstance(before, Sample), f"{row!r} is refused: {before.why}"
    used = []
    for name in [name for name, value in row.items() if isinstance(value, str)]:
        (after,) = contract.read([{**row, name: f"{row[name]}甲"}], folder)
        if isinstance(after, BadRow) or after.turns != before.turns:
            used.append(name)
    return used
