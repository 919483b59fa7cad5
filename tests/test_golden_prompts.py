"""The published pipelines' own ids: every row of BenTsao and DISC-MedLLM, every Baichuan chat prompt.

What they cut, their rule cuts here, from the ids that the format lays out whole.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from medframe import PromptError, Sample, Turn, Where
from medframe.encode import Encoded, Encoder, Example, Limits
from medframe.plugins import catalog

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden values are not here")

USER, ASSISTANT, EOS, CUTOFF = 195, 196, 2, 256
FORMATS = {
    "med_template": "bentsao-med",
    "bloom_deploy": "bentsao-bloom",
    "literature_template": "bentsao-literature",
}


@cache
def tokenizer(name: str) -> PreTrainedTokenizerBase:
    """One of the golden tokenizers, as its family's backbone loads it."""
    directory = str(GOLDEN / "tokenizers" / name)
    backbone = catalog().find("backbone", name.partition("_")[0]).load()
    return backbone(tokenizer=directory).load_tokenizer()  # type: ignore[no-any-return]


def encoder(name: str, vocabulary: str, limits: Limits | None = None, **fields: Any) -> Encoder:
    return Encoder(catalog().find("prompt", name).load()(**fields), tokenizer(vocabulary), limits)


def golden(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text("utf-8"))


def rows(name: str) -> list[Any]:
    return [json.loads(line) for line in (GOLDEN / name).read_text("utf-8").splitlines()]


def dialogue(instruction: str) -> list[Turn]:
    """The turns of an instruction ` <user>: … <bot>: … <user>: …`."""
    turns = []
    for part in instruction.replace(" <bot>: ", " <user>: ").split(" <user>: ")[1:]:
        turns.append(Turn("assistant" if len(turns) % 2 else "user", part))
    return turns


def labels(example: Example) -> list[int]:
    return [i if trained else -100 for i, trained in zip(example.ids, example.trained, strict=True)]


def bentsao(template: str) -> tuple[list[list[Turn]], list[str]]:
    """The rows of a template's file: the turns that ask, and the answers."""
    if template == "literature_template":
        given = golden("huatuo/liver_cancer_00-24.json")
        asked = [dialogue(row["instruction"]) for row in given]
    else:
        given = rows("huatuo/llama_data_000-099.jsonl")
        asked = [[Turn("user", row["instruction"])] for row in given]
    return asked, [row["output"] for row in given]


@pytest.mark.parametrize("vocabulary", ["llama_spm", "bloom_bpe"])
@pytest.mark.parametrize("template", FORMATS)
def test_bentsao(template: str, vocabulary: str) -> None:
    """The first 256 ids and labels of every row, so that what was cut lost its end token."""
    published = golden(f"huatuo/{vocabulary.partition('_')[0]}.{template}.json")
    lays_out = encoder(FORMATS[template], vocabulary)
    asked, answers = bentsao(template)
    examples = [
        lays_out.example([*turns, Turn("assistant", answer)]) for turns, answer in zip(asked, answers, strict=True)
    ]

    assert len(examples) == len(published["rows"])
    for turns, example, expected in zip(asked, examples, published["rows"], strict=True):
        assert example.ids[:CUTOFF] == expected["input_ids"]
        assert labels(example)[:CUTOFF] == expected["labels"]
        question = lays_out.question(turns)
        assert question[:CUTOFF] == expected["input_ids"][: len(question)]
    assert sum(len(example.ids) >= CUTOFF for example in examples) == published["meta"]["n_at_cutoff"]

    # The batch of the first four, its padding on the left taken away.
    batch = published["collated_first4"]
    for k, example in enumerate(examples[:4]):
        mask = batch["attention_mask"][k]
        padding = mask.index(1)
        assert sum(mask) == len(mask) - padding == len(example.ids[:CUTOFF])
        assert batch["input_ids"][k][padding:] == example.ids[:CUTOFF]
        assert batch["labels"][k][padding:] == labels(example)[:CUTOFF]


@pytest.mark.parametrize("vocabulary", ["llama_spm", "bloom_bpe"])
@pytest.mark.parametrize("template", FORMATS)
def test_bentsao_truncated_by_the_recipes_limits(template: str, vocabulary: str) -> None:
    """`on_overflow: truncate` cuts as published; what then has nothing to learn is left out, and said."""
    published = golden(f"huatuo/{vocabulary.partition('_')[0]}.{template}.json")
    fields = {"train_turns": "last"} if template == "literature_template" else {}
    limits = Limits(max_length=CUTOFF, on_overflow="truncate")
    asked, answers = bentsao(template)
    samples = [
        Sample((*turns, Turn("assistant", answer)), Where("rows", line))
        for line, (turns, answer) in enumerate(zip(asked, answers, strict=True), 1)
    ]
    outcomes = list(encoder(FORMATS[template], vocabulary, limits, **fields).encode(samples))
    for outcome, expected in zip(outcomes, published["rows"], strict=True):
        if isinstance(outcome, Encoded):
            (example,) = outcome.examples
            assert (example.ids, labels(example)) == (expected["input_ids"], expected["labels"])
        else:
            assert set(expected["labels"]) == {-100}
    assert sum(not isinstance(outcome, Encoded) for outcome in outcomes) == published["meta"]["n_without_target"]


@pytest.mark.parametrize("vocabulary", ["llama_spm", "bloom_bpe"])
@pytest.mark.parametrize("template", FORMATS)
def test_bentsao_chat_templates(template: str, vocabulary: str) -> None:
    """The exported templates, with vocabularies that merge characters into words."""
    lays_out = encoder(FORMATS[template], vocabulary)
    for turns, answer in zip(*bentsao(template), strict=True):
        for conversation in (turns, [*turns, Turn("assistant", answer)]):
            if all(turn.text == turn.text.strip() for turn in conversation):
                assert templated(lays_out, conversation) == lays_out.example(conversation).ids


def templated(lays_out: Encoder, turns: Sequence[Turn]) -> list[int]:
    """The ids of the turns by the exported template, ready for an answer after a question."""
    ids = lays_out.tokenizer.apply_chat_template(
        [{"role": turn.role, "content": turn.text} for turn in turns],
        chat_template=lays_out.prompt.chat_template(lays_out.tokenizer),
        add_generation_prompt=True,
        return_dict=False,
    )
    return list(map(int, ids))


@pytest.mark.parametrize("limit", [1200, 300])
def test_disc(limit: int) -> None:
    """Every row, as far as its messages fit: the first that does not ends it."""
    published = golden(f"disc/max{limit}.json")
    lays_out = encoder("disc", "baichuan_spm")
    examples = []
    for row in rows("disc/rows_00-24.jsonl"):
        turns = [Turn(message["role"], message["content"]) for message in row["conversation"]]
        fitting = Example([1], b"\0")
        for end in range(1, len(turns) + 1):
            longer = lays_out.example(turns[:end])
            if turns[end - 1].role == "user":
                # The published training row ends with the question; the format goes on to ask for the answer.
                assert longer.ids[-1] == ASSISTANT
                longer = Example(longer.ids[:-1], longer.trained[:-1])
            if len(longer.ids) > limit:
                break
            fitting = longer
        examples.append(fitting)

    assert len(examples) == len(published["rows"])
    for example, expected in zip(examples, published["rows"], strict=True):
        assert example.ids == expected["input_ids"]
        assert list(example.trained) == expected["target_mask"]
    unanswered = sum(not example.trained[-1] for example in examples)
    assert unanswered == published["meta"]["n_ending_without_target"]

    # The batch of the first four, its padding on the right taken away.
    batch = published["collated_first4"]
    for k, example in enumerate(examples[:4]):
        length = sum(batch["attention_mask"][k])
        assert batch["input_ids"][k][:length] == example.ids
        assert batch["target_mask"][k][:length] == list(example.trained)
        learnt = [i if trained else 0 for i, trained in zip(example.ids, example.trained, strict=True)]
        assert batch["loss_labels"][k][:length] == learnt


@pytest.mark.parametrize("limit", [1200, 300])
def test_disc_shortened_by_the_recipes_limits(limit: int) -> None:
    """`on_overflow: keep_first` ends where the published row has its last answer: no question stays without one."""
    published = golden(f"disc/max{limit}.json")
    lays_out = encoder("disc", "baichuan_spm", Limits(max_length=limit, on_overflow="keep_first"))
    samples = [
        Sample(tuple(Turn(m["role"], m["content"]) for m in row["conversation"]), Where("rows", line))
        for line, row in enumerate(rows("disc/rows_00-24.jsonl"), 1)
    ]
    for outcome, expected in zip(lays_out.encode(samples), published["rows"], strict=True):
        mask = expected["target_mask"]
        end = max((i + 1 for i, target in enumerate(mask) if target), default=0)
        if end:
            assert isinstance(outcome, Encoded)
            (example,) = outcome.examples
            assert (example.ids, list(example.trained)) == (expected["input_ids"][:end], mask[:end])
        else:
            assert not isinstance(outcome, Encoded)


def chat_cases() -> list[tuple[list[Turn], int, int, dict[str, Any]]]:
    published = golden("chat/cases_00-39.json")
    messages = {each["id"]: each["messages"] for each in published["conversations"]}
    return [
        (
            [Turn(message["role"], message["content"]) for message in messages[case["conversation"]]],
            case["model_max_length"],
            case["max_new_tokens"],
            case,
        )
        for case in published["cases"]
    ]


def test_baichuan_chat() -> None:
    """Every prompt of Baichuan-13B-Chat: as many rounds as its budget holds; the newest always fits."""
    lays_out = encoder("baichuan-chat", "baichuan_spm")
    whole = dropped = 0
    for turns, length, new, case in chat_cases():
        cap = max(length // 2, length - new)
        ids = lays_out.question(turns, cap + 1)  # the 196 is appended beyond the budget
        assert ids == case["v1_13b"]
        full = lays_out.question(turns)
        whole += ids == full
        dropped += ids != full
    assert whole
    assert dropped


def test_baichuan2_chat() -> None:
    """Every prompt of Baichuan2: whole rounds within the budget, their answers without an end, then the last ids."""
    lays_out = encoder("baichuan2-chat", "baichuan_spm", history_eos=False)
    whole = dropped = cut = 0
    for turns, length, new, case in chat_cases():
        cap = length - new
        full = lays_out.question(turns)
        try:
            # The published code counts the rounds without the 196 that it appends, and cuts afterwards.
            ids = lays_out.question(turns, cap + 1)
        except PromptError:
            ids = lays_out.question(turns[-1:])
        if len(ids) <= cap:
            assert ids == case["v2"]
        assert ids[-cap:] == case["v2"]
        whole += ids == full and len(ids) <= cap
        dropped += ids != full
        cut += len(ids) > cap
    assert whole
    assert dropped
    assert cut


@pytest.mark.parametrize(
    ("name", "fields"),
    [("disc", {}), ("baichuan-chat", {}), ("baichuan2-chat", {}), ("baichuan2-chat", {"history_eos": False})],
)
def test_baichuan_chat_templates(name: str, fields: dict[str, Any]) -> None:
    """The exported templates, over real dialogues of many rounds."""
    lays_out = encoder(name, "baichuan_spm", **fields)
    for row in rows("disc/rows_00-24.jsonl"):
        turns = [Turn(message["role"], message["content"]) for message in row["conversation"]]
        for end in range(1, len(turns) + 1):
            assert templated(lays_out, turns[:end]) == lays_out.example(turns[:end]).ids


def test_baichuan2_chat_with_ends_differs_only_by_them() -> None:
    """The sound layout is the published one with an end token after each earlier answer."""
    published = encoder("baichuan2-chat", "baichuan_spm", history_eos=False)
    sound = encoder("baichuan2-chat", "baichuan_spm")
    for turns, *_ in chat_cases():
        with_ends = sound.question(turns)
        assert [i for i in with_ends if i != EOS] == published.question(turns)
        assert with_ends.count(EOS) == sum(turn.role == "assistant" for turn in turns)
