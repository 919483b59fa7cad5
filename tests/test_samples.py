"""The bundled samples that embedded profiles learn from: nothing in them twice, nothing that a tiny tokenizer lacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Consultations

from medframe.compose import compose
from medframe.prepare import prepare
from medframe.recipe import build
from medframe_backbones.tiny import characters

SAMPLES = Path(__file__).parents[1] / "plugins/medframe_datasets/samples"
COUNTS = {
    "shennong_tcm.jsonl": 320,
    "bentsao_knowledge.jsonl": 320,
    "bentsao_literature.json": 240,
    "disc_med_sft.jsonl": 280,
}


def rows_of(name: str) -> list[dict[str, Any]]:
    text = (SAMPLES / name).read_text("utf-8")
    return list(json.loads(text)) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]


def turns_of(row: dict[str, Any]) -> list[str]:
    """What is said in a row, the patient first."""
    if "conversation" in row:
        return [message["content"] for message in row["conversation"]]
    return [row.get("query") or row["instruction"], row.get("response") or row["output"]]


@pytest.mark.parametrize("name", COUNTS)
def test_no_question_and_no_answer_of_a_sample_occurs_twice(name: str) -> None:
    rows = rows_of(name)
    assert len(rows) == COUNTS[name]
    assert len({turns_of(row)[0] for row in rows}) == len(rows)
    assert len({turns_of(row)[-1] for row in rows}) == len(rows)
    assert (SAMPLES / name).stat().st_size < 200_000


@pytest.mark.parametrize("name", COUNTS)
def test_a_sample_has_no_character_that_a_tiny_tokenizer_spells_in_bytes(name: str) -> None:
    said = {character for row in rows_of(name) for turn in turns_of(row) for character in turn}
    assert said - {" "} <= set(characters())


@pytest.mark.parametrize("name", COUNTS)
def test_the_facts_of_a_row_are_in_its_last_answer(name: str) -> None:
    for row in rows_of(name):
        answers = [m["content"] for m in row.get("conversation", []) if m["role"] == "assistant"] or turns_of(row)
        assert len(row["facts"]) >= 3
        assert all(fact in answers[-1] for fact in row["facts"]), row


def test_the_literature_sample_is_an_array_on_one_line_as_published() -> None:
    text = (SAMPLES / "bentsao_literature.json").read_text("utf-8")
    assert "\n" not in text
    counts = set()
    for row in json.loads(text):
        dialogue = row["instruction"]
        assert dialogue.startswith(" <user>: ")
        assert "  " not in dialogue
        assert dialogue.count(" <user>: ") == dialogue.count(" <bot>: ") + 1
        counts.add(dialogue.count(" <user>: "))
    assert counts == {1, 2, 3, 4}


def test_some_consultations_of_the_sample_end_with_the_patient_as_real_ones_do() -> None:
    last = [row["conversation"][-1]["role"] for row in rows_of("disc_med_sft.jsonl")]
    assert last.count("user") == 3


def test_rows_of_an_array_on_one_line_are_held_out_one_by_one(recipe: Path, consultations: Consultations) -> None:
    rows = [{"query": f"第{i}天了，还咳嗽怎么办？", "response": f"再观察{i}天。"} for i in range(1, 13)]
    consultations([json.dumps(rows, ensure_ascii=False)])
    both = prepare(build(compose(recipe, ["held_out.rows=3"])))
    assert len(both.train) == 9
    assert both.held_out is not None
    assert len(both.held_out) == 3
