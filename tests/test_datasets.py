"""The bundled data sets: each held to the kit, what is peculiar to it, and every row of the public files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from omegaconf import OmegaConf

from medframe import BadRow, DataError, DatasetSource, Sample, Turn
from medframe.plugins import catalog
from medframe.testing import DatasetContract

SHARED = Path(__file__).parents[2] / "shared" / "data"
public = pytest.mark.skipif(not SHARED.is_dir(), reason="the public files are not here")

ROUND: Any = [("user", "胃疼怎么办？"), ("assistant", "请先做胃镜。")]
TWO: Any = [*ROUND, ("user", "要空腹吗？"), ("assistant", "要，前一晚起禁食。")]


def source(name: str, **fields: Any) -> DatasetSource:
    """The data set as a recipe builds it."""
    section = OmegaConf.structured(catalog().find("dataset", name).load())
    made = OmegaConf.to_object(OmegaConf.merge(section, fields))
    assert isinstance(made, DatasetSource)
    return made


def samples(name: str, file: Path, **fields: Any) -> list[Sample]:
    """Every row of the file, all of them good."""
    found = list(source(name, path=str(file), **fields))
    bad = [f"{item.where}: {item.why}" for item in found if isinstance(item, BadRow)]
    assert not bad, bad[:5]
    return [item for item in found if isinstance(item, Sample)]


def write(folder: Path, *rows: Any) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), "utf-8")
    return file


def only(name: str, folder: Path, row: Any, **fields: Any) -> Sample:
    (sample,) = samples(name, write(folder, row), **fields)
    return sample


def refused(name: str, folder: Path, row: Any, **fields: Any) -> str:
    """Why the row is bad."""
    (item,) = source(name, path=str(write(folder, row)), **fields)
    assert isinstance(item, BadRow), f"{row!r} was taken for good: {item.turns}"
    return item.why


def said(sample: Sample) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in sample.turns]


# ---- ChatMed's second set


class TestShenNong(DatasetContract):
    component = "shennong-tcm"
    rows: ClassVar = [{"query": "胃疼怎么办？", "response": "请先做胃镜。"}]
    turns: ClassVar = [ROUND]
    bad_rows: ClassVar = [{"query": "胃疼怎么办？"}, {"query": 7, "response": "请先做胃镜。"}]


@public
def test_every_public_row_of_shennong() -> None:
    file = SHARED / "tcm" / "shennong_tcm_pairs.jsonl"
    found = samples("shennong-tcm", file)
    assert len(found) == 201
    assert [sample.meta["id"] for sample in found[:2]] == ["shennong-tcm/1", "shennong-tcm/2"]
    other = samples("shennong-tcm", file, response="response_base")
    assert [sample.turns[0] for sample in other] == [sample.turns[0] for sample in found]
    assert [sample.turns[1] for sample in other] != [sample.turns[1] for sample in found]


# ---- BenTsao


class TestBenTsaoKnowledge(DatasetContract):
    component = "bentsao-knowledge"
    rows: ClassVar = [
        {"instruction": "胃疼怎么办？", "input": "", "output": "请先做胃镜。"},
        {"instruction": "胃疼怎么办？", "input": None, "output": "请先做胃镜。"},
        {"instruction": "胃疼怎么办？", "output": "请先做胃镜。"},
        {"instruction": "挂哪个科？", "input": " 胃疼三天 ", "output": "消化内科。"},
    ]
    turns: ClassVar = [ROUND, ROUND, ROUND, [("user", "挂哪个科？\n 胃疼三天 "), ("assistant", "消化内科。")]]
    bad_rows: ClassVar = [{"instruction": "胃疼怎么办？", "input": ""}, {"input": "胃疼", "output": "请先做胃镜。"}]
    optional: ClassVar = ["input"]


def test_an_input_is_refused_where_the_recipe_says_so(tmp_path: Path) -> None:
    row = {"instruction": "挂哪个科？", "input": "胃疼三天", "output": "消化内科。"}
    assert "'input' is not empty" in refused("bentsao-knowledge", tmp_path, row, on_input="refuse")
    assert said(only("bentsao-knowledge", tmp_path, {**row, "input": ""}, on_input="refuse"))[0][1] == "挂哪个科？"


@public
def test_every_public_row_of_bentsao_knowledge() -> None:
    found = samples("bentsao-knowledge", SHARED / "bentsao" / "llama_data.rows0000-5999.json")
    assert len(found) == 6000
    assert all([turn.role for turn in sample.turns] == ["user", "assistant"] for sample in found)
    assert all(turn.text.strip() for sample in found for turn in sample.turns)
    assert len(samples("bentsao-knowledge", SHARED / "bentsao" / "infer.json")) == 5


class TestBenTsaoLiterature(DatasetContract):
    component = "bentsao-literature"
    rows: ClassVar = [
        {"instruction": " <user>: 胃疼怎么办？", "input": "", "output": "请先做胃镜。", "id": 3},
        {
            "instruction": " <user>: 胃疼怎么办？ <bot>: 请先做胃镜。 <user>: 要空腹吗？",
            "output": "要，前一晚起禁食。",
        },
        {"instruction": " <user>:  <bot>:  好\n <user>: <b>1</b> ", "input": None, "output": "要"},
        {"instruction": " <user>: 胃疼", "input": "三天", "output": "要"},
    ]
    turns: ClassVar = [
        ROUND,
        TWO,
        [("user", ""), ("assistant", " 好\n"), ("user", "<b>1</b> "), ("assistant", "要")],
        [("user", "胃疼\n三天"), ("assistant", "要")],
    ]
    bad_rows: ClassVar = [{"instruction": "胃疼怎么办？", "output": "请先做胃镜。"}]
    optional: ClassVar = ["input"]


def literature(turns: Sequence[Turn]) -> str:
    """The history as the file writes it."""
    return "".join(f" <{'user' if turn.role == 'user' else 'bot'}>: {turn.text}" for turn in turns)


@pytest.mark.parametrize(
    ("history", "says"),
    [
        ("", "must begin with ' <user>: '"),
        ("胃疼怎么办？", "must begin with ' <user>: '"),
        ("<user>: 胃疼怎么办？", "must begin with ' <user>: '"),  # as published inference writes it
        ("问： <user>: 胃疼怎么办？", "must begin with ' <user>: '"),
        (" <bot>: 您好 <user>: 胃疼怎么办？", "turn 1 must be of the user"),
        (" <user>: 胃疼 <user>: 怎么办？", "turn 2 must be of the assistant"),
        (" <user>: 胃疼<bot>: 做胃镜 <user>: 好", "turn 1 holds another '<bot>:'"),
        (" <user>: 胃疼 <bot>:做胃镜 <user>: 好", "turn 1 holds another '<bot>:'"),
        (" <user>: 胃疼 <bot>: 做胃镜", "ends in a turn of the bot"),
    ],
)
def test_a_history_that_cannot_be_cut_up_unmistakably_is_bad(history: str, says: str, tmp_path: Path) -> None:
    why = refused("bentsao-literature", tmp_path, {"instruction": history, "input": "", "output": "好"})
    assert why.startswith("field 'instruction': ")
    assert says in why


@public
def test_every_public_history_of_the_literature_is_written_back_byte_for_byte() -> None:
    file = SHARED / "bentsao" / "liver_cancer.rows000-699.json"
    rows = json.loads(file.read_bytes())
    found = samples("bentsao-literature", file)
    assert len(found) == len(rows) == 700
    for row, sample in zip(rows, found, strict=True):
        assert literature(sample.turns[:-1]).encode() == row["instruction"].encode()
        assert sample.turns[-1] == Turn("assistant", row["output"])
    rounds = Counter(len(sample.turns) // 2 for sample in found)
    assert rounds == {1: 206, 2: 205, 3: 188, 4: 86, 5: 13, 6: 2}
    assert sum("id" in sample.meta for sample in found) == 145


def test_the_bundled_literature_is_written_back_byte_for_byte() -> None:
    dataset = source("bentsao-literature", path="sample")
    rows = json.loads(dataset.files()[0].read_bytes())
    found = list(dataset)
    assert len(found) == len(rows)
    for row, sample in zip(rows, found, strict=True):
        assert isinstance(sample, Sample)
        assert literature(sample.turns[:-1]) == row["instruction"]


# ---- CMeKG


class TestCMeKG(DatasetContract):
    component = "cmekg"
    rows: ClassVar = [
        {"中心词": "偏头痛", "相关疾病": ["丛集性头痛"], "相关症状": ["恶心", "畏光"], "并发症": [], "发病部位": None},
    ]
    turns: ClassVar = [
        [
            ("user", "请介绍一下偏头痛。"),
            ("assistant", "偏头痛的相关疾病：丛集性头痛。\n偏头痛的相关症状：恶心、畏光。"),
        ],
    ]
    bad_rows: ClassVar = [
        {"中心词": "偏头痛"},
        {"中心词": "偏头痛", "相关症状": []},
        {"中心词": "偏头痛", "相关症状": ["恶心", 7]},
        {"中心词": "偏头痛", "相关症状": {"恶心": 1}},
        {"中心词": "", "相关症状": ["恶心"]},
        {"相关症状": ["恶心"]},
    ]


class TestCMeKGOneAttribute(DatasetContract):
    component = "cmekg"
    fields: ClassVar = {
        "attribute": "相关症状",
        "question": "{head}会有什么{attribute}？",
        "answer": "{values}。",
        "separator": "，",
    }
    rows: ClassVar = [{"中心词": "偏头痛", "相关症状": ["恶心", "畏光"], "相关疾病": ["丛集性头痛"]}]
    turns: ClassVar = [[("user", "偏头痛会有什么相关症状？"), ("assistant", "恶心，畏光。")]]
    bad_rows: ClassVar = [{"中心词": "偏头痛", "相关疾病": ["丛集性头痛"]}]

    # Not every centre word of the sample has this attribute.
    test_bundled_sample_is_whole = None


def test_an_attribute_may_be_one_text_and_the_id_is_none(tmp_path: Path) -> None:
    row = {"_id": 7, "中心词": "偏头痛", "所属科室": "神经内科"}
    sample = only("cmekg", tmp_path, row)
    assert sample.turns[1].text == "偏头痛的所属科室：神经内科。"
    assert sample.meta == {"_id": 7}


@pytest.mark.parametrize("wording", ["{name}有哪些？", "{head", "{}", "{head.x}", "{0}"])
def test_a_wording_with_a_blank_that_cannot_be_filled_is_an_error(wording: str) -> None:
    with pytest.raises(ValueError, match=r"question: only \{head\}, \{attribute\} can be filled in"):
        source("cmekg", path="sample", question=wording)


# ---- DISC


class TestDisc(DatasetContract):
    component = "disc-med-sft"
    rows: ClassVar = [
        {
            "_id": "1",
            "source": "meddial",
            "conversation": [
                {"role": "user", "content": "胃疼怎么办？"},
                {"role": "assistant", "content": "请先做胃镜。"},
                {"role": "user", "content": " 要空腹吗\n"},
            ],
        },
    ]
    turns: ClassVar = [[*ROUND, ("user", " 要空腹吗\n")]]
    bad_rows: ClassVar = [
        {"_id": "1", "source": "meddial"},
        {"conversation": "胃疼怎么办？"},
        {"conversation": ["胃疼怎么办？"]},
        {"conversation": [{"role": "user"}]},
        {"conversation": [{"role": "user", "content": 7}]},
        {"conversation": [{"role": "system", "content": "你是医生"}, {"role": "user", "content": "胃疼"}]},
    ]


def test_disc_names_the_role_that_published_training_passes_over(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "胃疼"}, {"role": "doctor", "content": "做胃镜"}]
    why = refused("disc-med-sft", tmp_path, {"_id": "1", "conversation": messages})
    assert why.startswith("field 'conversation', message 2: role 'doctor' is none of user, assistant")
    sample = only("disc-med-sft", tmp_path, {"_id": "1", "conversation": messages}, roles={"doctor": "assistant"})
    assert said(sample) == [("user", "胃疼"), ("assistant", "做胃镜")]
    with pytest.raises(ValueError, match="'doctor' must be system, user or assistant, not 'physician'"):
        source("disc-med-sft", path="sample", roles={"doctor": "physician"})


@public
def test_every_public_row_of_disc() -> None:
    file = SHARED / "disc" / "test_examples.rows000-099.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    found = samples("disc-med-sft", file)
    assert len(found) == 100
    for row, sample in zip(rows, found, strict=True):
        assert said(sample) == [(each["role"], each["content"]) for each in row["conversation"]]
        assert sample.meta == {"_id": row["_id"], "source": "meddial"}
    assert sum(sample.turns[-1].role == "user" for sample in found) == 2
    roles = {"patient": "user", "doctor": "assistant"}
    spoken = samples("disc-med-sft", SHARED / "disc/eval/dialogues/huatuo-chat_cmb-clin.json", roles=roles)
    assert len(spoken) == 73
    assert {len(sample.turns) for sample in spoken} == {6}


# ---- MedDialog


class TestMedDialog(DatasetContract):
    component = "meddialog"
    rows: ClassVar = [
        {
            "dialogue_id": 1,
            "dialogue_turns": [
                {"speaker": "病人", "utterance": "胃疼"},
                {"speaker": "病人", "utterance": "怎么办？"},
                {"speaker": "医生", "utterance": "请先做胃镜。"},
            ],
        },
        {"dialogue_turns": {"speaker": [0, 1], "utterance": ["胃疼怎么办？", "请先做胃镜。"]}},
        {"utterances": ["病人：胃疼怎么办？", "医生：请先做胃镜。"]},
        ["病人：胃疼怎么办？", "医生：请先做胃镜。", "病人：要空腹吗？", "医生：要，前一晚起禁食。"],
    ]
    turns: ClassVar = [[("user", "胃疼\n怎么办？"), ("assistant", "请先做胃镜。")], ROUND, ROUND, TWO]
    bad_rows: ClassVar = [
        {"dialogue_id": 1},
        {"dialogue_turns": "病人：胃疼"},
        {"dialogue_turns": [{"speaker": "护士", "utterance": "请进"}]},
        {"dialogue_turns": [{"speaker": "病人"}]},
        {"dialogue_turns": [{"speaker": "医生", "utterance": "您好"}, {"speaker": "病人", "utterance": "胃疼"}]},
        {"dialogue_turns": {"speaker": [0, 1], "utterance": ["胃疼"]}},
        {"utterances": ["病人：胃疼", "请先做胃镜。"]},
        {"utterances": "病人：胃疼"},
        ["病人：胃疼", 7],
    ]


def test_what_the_doctor_says_before_any_question_is_left_out_on_request(tmp_path: Path) -> None:
    row = {"utterances": ["医生：您好。", "医生：请说。", "病人：胃疼", "医生：做胃镜", "医生：别吃饭"]}
    assert "the doctor speaks first; leading_doctor: drop" in refused("meddialog", tmp_path, row)
    sample = only("meddialog", tmp_path, row, leading_doctor="drop", joiner=" ")
    assert said(sample) == [("user", "胃疼"), ("assistant", "做胃镜 别吃饭")]


def test_a_file_of_bare_lists_is_one_array(tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    file.write_text('[["病人：胃疼", "医生：做胃镜"], ["病人：头疼", "医生：量血压"]]', "utf-8")
    first, second = samples("meddialog", file)
    assert said(first) == [("user", "胃疼"), ("assistant", "做胃镜")]
    assert said(second) == [("user", "头疼"), ("assistant", "量血压")]


def test_the_speakers_of_another_file_are_named_in_the_recipe(tmp_path: Path) -> None:
    row = {"talk": [{"who": "患者", "words": "胃疼"}, {"who": "医师", "words": "做胃镜"}]}
    fields = {"dialogue": "talk", "speaker": "who", "utterance": "words"}
    assert "speaker '患者' is none of 病人" in refused("meddialog", tmp_path, row, **fields)
    sample = only("meddialog", tmp_path, row, speakers={"患者": "user", "医师": "assistant"}, **fields)
    assert said(sample) == [("user", "胃疼"), ("assistant", "做胃镜")]
    with pytest.raises(ValueError, match="'护士' must be user or assistant, not 'system'"):
        source("meddialog", path="sample", speakers={"护士": "system"})


# ---- MOSS


def moss(*rounds: tuple[str, str], **parts: str) -> dict[str, Any]:
    """A row of moss-003-sft-data."""
    silent = {
        "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n",
        "Commands": "<|Commands|>: None<eoc>\n",
        "Tool Responses": "<|Results|>:\nNone\n<eor>\n",
    }
    chat = {
        f"turn_{number}": {"Human": f"<|Human|>: {asked}<eoh>\n", **silent, **parts, "MOSS": f"<|MOSS|>: {told}<eom>\n"}
        for number, (asked, told) in enumerate(rounds, 1)
    }
    return {"conversation_id": "1", "meta_instruction": "You are MOSS.\n", "num_turns": len(rounds), "chat": chat}


class TestMoss(DatasetContract):
    component = "moss-sft"
    rows: ClassVar = [
        moss(("胃疼怎么办？", "请先做胃镜。"), ("要空腹吗？", "要，前一晚起禁食。")),
        moss(*[(f" 问{number}\n", f"<答>{number} ") for number in range(12)]),
        {"id": 1, "prefix": "MOSS is.", "plain_text": "[Human]: 胃疼怎么办？<eoh> [MOSS]: 请先做胃镜。<eoa>"},
        {
            "plain_text": "[Human]: 胃疼怎么办？<eoh> [MOSS]: 请先做胃镜。<eoa> "
            "[Human]: 要空腹吗？<eoh> [MOSS]: 要，前一晚起禁食。<eoa>"
        },
    ]
    turns: ClassVar = [
        TWO,
        [turn for n in range(12) for turn in (("user", f" 问{n}\n"), ("assistant", f"<答>{n} "))],
        ROUND,
        TWO,
    ]
    bad_rows: ClassVar = [
        {"conversation_id": "1"},
        {"chat": []},
        {"chat": {"turn_2": moss(("胃疼", "做胃镜"))["chat"]["turn_1"]}},
        {"chat": {"turn_1": {"Human": "<|Human|>: 胃疼<eoh>\n"}}},
        {"chat": {"turn_1": {"Human": "胃疼", "MOSS": "<|MOSS|>: 做胃镜<eom>\n"}}},
        {"chat": {"turn_1": {"Human": "<|Human|>: 胃疼<eoh>\n", "MOSS": "<|MOSS|>: 做胃镜，还要"}}},
        {"chat": {"turn_1": {"Human": "<|Human|>: 胃疼<eoh>\n", "MOSS": None}}},
        {"chat": {"turn_1": {"Doctor": "做胃镜"}}},
        {"plain_text": "[Human]: 胃疼<eoh> [MOSS]: 做胃镜<eoa> [Human]: 好<eoh>"},
        {"plain_text": "胃疼"},
    ]


class TestMossWithSystem(DatasetContract):
    component = "moss-sft"
    fields: ClassVar = {"system": True}
    rows: ClassVar = [moss(("胃疼怎么办？", "请先做胃镜。"))]
    turns: ClassVar = [[("system", "You are MOSS.\n"), *ROUND]]
    bad_rows: ClassVar = [
        {"chat": moss(("胃疼", "做胃镜"))["chat"]},
        {"plain_text": "[Human]: 疼<eoh> [MOSS]: 好<eoa>"},
    ]


def test_a_turn_of_moss_that_uses_a_tool_is_bad_or_only_what_is_said(tmp_path: Path) -> None:
    row = moss(("2+2?", "4"), **{"Commands": '<|Commands|>: Calculate("2+2")<eoc>\n'})
    assert "turn_1: has Commands; on_tools: drop" in refused("moss-sft", tmp_path, row)
    assert said(only("moss-sft", tmp_path, row, on_tools="drop")) == [("user", "2+2?"), ("assistant", "4")]
    row = moss(("2+2?", "4"), **{"Inner Thoughts": "<|Inner Thoughts|>: 这是算术<eot>\n"})
    assert "turn_1: has Inner Thoughts" in refused("moss-sft", tmp_path, row)


# ---- questions and answers


class TestHuatuo26M(DatasetContract):
    component = "huatuo-26m"
    rows: ClassVar = [{"questions": "胃疼怎么办？", "answers": "请先做胃镜。", "id": 5}]
    turns: ClassVar = [ROUND]
    bad_rows: ClassVar = [{"questions": "胃疼怎么办？"}, {"questions": [["胃疼"]], "answers": ["做胃镜"]}]


class TestHuatuo26MLists(DatasetContract):
    component = "huatuo-26m"
    fields: ClassVar = {"lists": True}
    rows: ClassVar = [
        {"questions": [["胃疼怎么办？", "胃痛如何是好？"]], "answers": ["请先做胃镜。"]},
        {"questions": ["胃疼怎么办？"], "answers": ["请先做胃镜。"]},
    ]
    turns: ClassVar = [ROUND, ROUND]
    bad_rows: ClassVar = [
        {"questions": [["胃疼怎么办？", 7]], "answers": ["请先做胃镜。"]},
        {"questions": [["胃疼怎么办？"]], "answers": ["请先做胃镜。", "请量体温。"]},
        {"questions": [["胃疼怎么办？"]], "answers": {"text": "请先做胃镜。"}},
    ]


class TestHuatuo26MTwoQuestionFields(DatasetContract):
    component = "huatuo-26m"
    fields: ClassVar = {"question": ["title", "ask"], "answer": "answer"}
    rows: ClassVar = [
        {"department": "内科", "title": "胃疼", "ask": "怎么办？", "answer": "请先做胃镜。"},
        {"title": "", "ask": "胃疼怎么办？", "answer": "请先做胃镜。"},
    ]
    bad_rows: ClassVar = [{"title": "胃疼", "answer": "请先做胃镜。"}]
    turns: ClassVar = [[("user", "胃疼\n怎么办？"), ("assistant", "请先做胃镜。")], ROUND]

    # The sample's fields have the usual names.
    test_bundled_sample_is_whole = None


def test_a_list_without_the_field_that_reads_lists_says_which_it_is(tmp_path: Path) -> None:
    why = refused("huatuo-26m", tmp_path, {"questions": [["胃疼"]], "answers": ["做胃镜"]})
    assert why == "field 'questions' must be text, it is a list; lists: true reads lists"


def test_other_wordings_of_a_question_stay_with_the_sample(tmp_path: Path) -> None:
    row = {"id": 3, "questions": [["胃疼怎么办？", "胃痛如何是好？"]], "answers": ["做胃镜"]}
    assert only("huatuo-26m", tmp_path, row, lists=True).meta == {"id": 3, "other_wordings": ["胃痛如何是好？"]}


def test_a_question_without_a_field_is_an_error() -> None:
    with pytest.raises(ValueError, match="question: names no field"):
        source("huatuo-26m", path="sample", question=[])


class TestCMedQA2(DatasetContract):
    component = "cmedqa2"
    rows: ClassVar = [
        {"ans_id": "1", "question_id": "11", "content": "请先做胃镜。"},
        {"ans_id": "2", "question_id": "11", "content": "少吃辣。"},
        {"ans_id": "3", "question_id": "12", "content": "量血压。"},
    ]
    turns: ClassVar = [
        ROUND,
        [("user", "胃疼怎么办？"), ("assistant", "少吃辣。")],
        [("user", "头痛三天"), ("assistant", "量血压。")],
    ]
    bad_rows: ClassVar = [
        {"ans_id": "4", "question_id": "13", "content": "无此题"},
        {"ans_id": "5", "question_id": None, "content": "无此题"},
        {"ans_id": "6", "question_id": "11"},
    ]

    def make(self, **fields: Any) -> Any:
        if fields.get("path", "sample") != "sample":
            fields["questions"] = str(Path(fields["path"]).with_name("question.csv"))
        return super().make(**fields)

    def write(self, rows: Sequence[Any], folder: Path) -> Path:
        (folder / "question.csv").write_text("question_id,content\n11,胃疼怎么办？\n12,头痛三天\n", "utf-8")
        file = folder / "answer.jsonl"
        file.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), "utf-8")
        return file


@pytest.fixture
def cmedqa2(tmp_path: Path) -> Any:
    """Writes the two files and makes the data set."""

    def make(questions: str, answers: str) -> DatasetSource:
        (tmp_path / "question.csv").write_text(questions, "utf-8")
        (tmp_path / "answer.csv").write_text(answers, "utf-8")
        return source("cmedqa2", path=str(tmp_path / "answer.csv"), questions=str(tmp_path / "question.csv"))

    return make


def test_answers_find_their_questions(cmedqa2: Any) -> None:
    made = cmedqa2('question_id,content\n7,"胃疼,\n怎么办？"\n', "ans_id,question_id,content\n1,7,做胃镜\n2,8,无此题\n")
    first, second = made
    assert said(first) == [("user", "胃疼,\n怎么办？"), ("assistant", "做胃镜")]
    assert first.meta == {"ans_id": "1", "question_id": "7"}
    assert isinstance(second, BadRow)
    assert str(second.where).endswith("answer.csv:3")
    assert second.why.startswith("no question has question_id '8' in ")


def test_the_questions_count_as_content(cmedqa2: Any, tmp_path: Path) -> None:
    answers = "ans_id,question_id,content\n1,7,做胃镜\n"
    before = cmedqa2("question_id,content\n7,胃疼\n", answers).fingerprint()
    assert cmedqa2("question_id,content\n7,胃疼\n", answers).fingerprint() == before
    assert cmedqa2("question_id,content\n7,头疼\n", answers).fingerprint() != before


@pytest.mark.parametrize(
    ("questions", "says"),
    [
        ("question_id,content\n7,胃疼\n8\n", r"question\.csv:3: 1 cells, the header has 2"),
        ("number,content\n7,胃疼\n", r"question\.csv:2: no field 'question_id'"),
        ("question_id,content\n7,胃疼\n7,头疼\n", r"question\.csv:3: a second question with question_id '7'"),
        ("question_id,content\n", r"questions: .*question\.csv holds none"),
    ],
)
def test_a_flaw_in_the_questions_stops_with_its_place(cmedqa2: Any, questions: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        list(cmedqa2(questions, "ans_id,question_id,content\n1,7,做胃镜\n"))


def test_questions_that_are_not_given_or_not_there_are_asked_for(tmp_path: Path) -> None:
    answers = str(write(tmp_path, {"ans_id": "1", "question_id": "7", "content": "做胃镜"}))
    with pytest.raises(ValueError, match="questions: not given; name the file of questions"):
        source("cmedqa2", path=answers)
    with pytest.raises(DataError, match=r"questions: .*none\.csv: no such file; name one file"):
        list(source("cmedqa2", path=answers, questions=str(tmp_path / "none.csv")))


def exam(**fields: Any) -> dict[str, Any]:
    row = {"id": "a1", "question": "Which?", "opa": "one", "opb": "two", "opc": "three", "opd": "four", "cop": 2}
    return {**row, "exp": "Because.", **fields}


class TestMedMCQA(DatasetContract):
    component = "medmcqa"
    rows: ClassVar = [exam(), exam(cop="4", exp=None, opc=" ")]
    turns: ClassVar = [
        [("user", "Which?\nA. one\nB. two\nC. three\nD. four"), ("assistant", "B. two\nBecause.")],
        [("user", "Which?\nA. one\nB. two\nD. four"), ("assistant", "D. four")],
    ]
    bad_rows: ClassVar = [
        exam(cop=0),
        exam(cop=5),
        exam(cop=-1),
        exam(cop=None),
        exam(cop=True),
        exam(cop=1.0),
        exam(cop="b"),
        exam(opb=""),
        {key: value for key, value in exam().items() if key != "cop"},
    ]
    optional: ClassVar = ["exp"]


class TestMedMCQAFromZero(DatasetContract):
    component = "medmcqa"
    fields: ClassVar = {"first_option": 0, "explanation": "why", "options": ["opa", "opb"]}
    rows: ClassVar = [exam(cop=0, why="So."), exam(cop=1)]
    turns: ClassVar = [
        [("user", "Which?\nA. one\nB. two"), ("assistant", "A. one\nSo.")],
        [("user", "Which?\nA. one\nB. two"), ("assistant", "B. two")],
    ]
    bad_rows: ClassVar = [exam(cop=2), exam(cop=-1)]
    optional: ClassVar = ["why"]

    # The sample counts from 1 and has four options.
    test_bundled_sample_is_whole = None


def test_an_answer_out_of_range_says_how_it_is_counted(tmp_path: Path) -> None:
    assert refused("medmcqa", tmp_path, exam(cop=0)) == "field 'cop' must be 1 to 4, it is 0 (see first_option)"
    for fields, says in (
        ({"first_option": 2}, "first_option must be 0 or 1"),
        ({"options": ["opa"]}, "2 to 26 fields"),
    ):
        with pytest.raises(ValueError, match=says):
            source("medmcqa", path="sample", **fields)


# ---- general shapes


class TestMessages(DatasetContract):
    component = "messages"
    rows: ClassVar = [
        {
            "id": 1,
            "messages": [
                {"role": "system", "content": "你是医生"},
                {"role": "user", "content": "胃疼怎么办？"},
                {"role": "assistant", "content": "请先做胃镜。", "name": "张"},
            ],
        },
        {"system": "你是医生", "messages": [{"role": "human", "content": "胃疼"}, {"role": "doctor", "content": "好"}]},
    ]
    turns: ClassVar = [
        [("system", "你是医生"), *ROUND],
        [("system", "你是医生"), ("user", "胃疼"), ("assistant", "好")],
    ]
    bad_rows: ClassVar = [
        {"messages": [{"role": "user", "content": ["胃疼"]}]},
        {"messages": [{"role": "tool", "content": "胃疼"}]},
        {"messages": [{"content": "胃疼"}]},
        {"messages": [None]},
        {"messages": {"role": "user", "content": "胃疼"}},
        {"messages": None},
    ]
    optional: ClassVar = ["system"]


class TestMessagesByOtherFields(DatasetContract):
    component = "messages"
    fields: ClassVar = {
        "messages": "dialog",
        "role": "who",
        "content": "text",
        "roles": {"A": "user", "B": "assistant"},
    }
    rows: ClassVar = [{"dialog": [{"who": "A", "text": "胃疼怎么办？"}, {"who": "B", "text": "请先做胃镜。"}]}]
    turns: ClassVar = [ROUND]
    bad_rows: ClassVar = [{"dialog": [{"role": "user", "content": "胃疼"}]}]

    # The sample's fields have the usual names.
    test_bundled_sample_is_whole = None


class TestShareGPT(DatasetContract):
    component = "sharegpt"
    rows: ClassVar = [
        {"conversations": [{"from": "human", "value": "胃疼怎么办？"}, {"from": "gpt", "value": "请先做胃镜。"}]},
        {"conversations": [{"from": "system", "value": "你是医生"}, {"from": "human", "value": "胃疼"},
                           {"from": "gpt", "value": "好"}], "id": "x"},
    ]  # fmt: skip
    turns: ClassVar = [ROUND, [("system", "你是医生"), ("user", "胃疼"), ("assistant", "好")]]
    bad_rows: ClassVar = [
        {"conversations": [{"from": "function_call", "value": "胃疼"}]},
        {"conversations": [{"role": "user", "content": "胃疼"}]},
        {"messages": []},
    ]


class TestAlpaca(DatasetContract):
    component = "alpaca"
    rows: ClassVar = [
        {"instruction": "胃疼怎么办？", "input": "", "output": "请先做胃镜。"},
        {"instruction": "挂哪个科？", "input": "胃疼", "output": "消化内科。", "history": [], "system": ""},
        {
            "id": 1,
            "instruction": "要空腹吗？",
            "output": "要，前一晚起禁食。",
            "history": [["胃疼怎么办？", "请先做胃镜。"]],
            "system": "你是医生",
        },
    ]
    turns: ClassVar = [
        ROUND,
        [("user", "挂哪个科？\n胃疼"), ("assistant", "消化内科。")],
        [("system", "你是医生"), *TWO],
    ]
    bad_rows: ClassVar = [
        {"instruction": "胃疼", "output": ["做胃镜"]},
        {"instruction": "胃疼", "output": "好", "history": "胃疼"},
        {"instruction": "胃疼", "output": "好", "history": [["胃疼"]]},
        {"instruction": "胃疼", "output": "好", "history": [["胃疼", 7]]},
        {"instruction": "胃疼", "output": "好", "history": {"胃疼": "好"}},
        {"instruction": "胃疼", "output": "好", "system": 7},
    ]
    optional: ClassVar = ["input", "system"]


class TestAlpacaWithoutInstructions(DatasetContract):
    component = "alpaca"
    rows: ClassVar = [{"instruction": "", "input": "胃疼怎么办？", "output": "请先做胃镜。"}]
    turns: ClassVar = [[("user", "胃疼怎么办？"), ("assistant", "请先做胃镜。")]]
    optional: ClassVar = ["input"]

    # That of the component is tried above.
    test_bundled_sample_is_whole = None


class TestAlpacaByOtherFields(DatasetContract):
    component = "alpaca"
    fields: ClassVar = {"instruction": "问", "input": "补充", "output": "答", "history": "前文"}
    rows: ClassVar = [
        {"问": "要空腹吗？", "补充": "", "答": "要，前一晚起禁食。", "前文": [["胃疼怎么办？", "请先做胃镜。"]]}
    ]
    turns: ClassVar = [TWO]
    bad_rows: ClassVar = [{"instruction": "胃疼怎么办？", "input": "", "output": "请先做胃镜。"}]
    optional: ClassVar = ["补充"]

    # The sample's fields have the usual names.
    test_bundled_sample_is_whole = None


class TestAlpacaZh(DatasetContract):
    component = "alpaca-zh"
    rows: ClassVar = [{"instruction": "翻译", "input": "头痛", "output": "headache"}]
    turns: ClassVar = [[("user", "翻译\n头痛"), ("assistant", "headache")]]
    bad_rows: ClassVar = [{"instruction": "翻译"}]
    optional: ClassVar = ["input"]


class TestFirefly(DatasetContract):
    component = "firefly"
    rows: ClassVar = [
        {
            "conversation_id": 1,
            "conversation": [
                {"human": "胃疼怎么办？", "assistant": "请先做胃镜。"},
                {"human": "要空腹吗？", "assistant": "要，前一晚起禁食。"},
            ],
        }
    ]
    turns: ClassVar = [TWO]
    bad_rows: ClassVar = [
        {"conversation": [{"role": "user", "content": "胃疼"}]},
        {"conversation": [{"human": "胃疼"}]},
        {"conversation": "胃疼"},
        {"conversation": ["胃疼"]},
    ]


@public
def test_every_public_row_in_the_general_shapes() -> None:
    raw = SHARED / "raw-formats"
    rows = [json.loads(line) for line in (raw / "sharegpt.jsonl").read_text("utf-8").splitlines()]
    names = {"human": "user", "gpt": "assistant"}
    assert [said(sample) for sample in samples("sharegpt", raw / "sharegpt.jsonl")] == [
        [(names[each["from"]], each["value"]) for each in row["conversations"]] for row in rows
    ]
    assert len(rows) == 20
    assert len(samples("alpaca", raw / "lines_named.json")) == 30
    assert len(samples("bentsao-literature", raw / "one_line_array.json")) == 20


# ---- all of them


def test_no_empty_answer_is_refused_here(tmp_path: Path) -> None:
    # It is no learning material, which the ledger counts; the data set can still read it.
    for answer in ("", None):
        assert only("alpaca", tmp_path, {"instruction": "胃疼", "output": answer}).turns[1] == Turn("assistant", "")


def test_every_data_set_of_medframe_has_a_sample_of_its_own() -> None:
    own = [each for each in catalog().components if each.kind == "dataset" and each.distribution == "medframe"]
    assert len(own) == 16
    files = [file for each in own for file in source(each.name, path="sample").files()]
    assert len(set(files)) == len(own)
    for component in own:
        found = list(source(component.name, path="sample"))
        assert len(found) >= 6
        assert all(isinstance(item, Sample) for item in found)
