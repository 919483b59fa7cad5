"""Baichuan's tokenizer: sentencepiece's own ids, no text lost, no control token typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from transformers import AutoTokenizer

from medframe import BackboneError
from medframe.fingerprint import tokenizer_fingerprint
from medframe.testing import PromptContract
from medframe_backbones.baichuan import Baichuan

SHARED = Path(__file__).parents[2] / "shared" / "golden"

TEXTS = [
    "患者头痛3天，CT正常，38.5℃。",
    "  开头有空格",
    "末尾有空格和换行 \n\n",
    "两  个   空格\t和制表符",
    "",
    " ",
    "😀🩺 é ä 𠮷",
    "\u3000全角空格",
    "<s>问</s><unk><0xC0><0xC1>",
    "<reserved_102>你好<reserved_103>",
    "1234567890",
]


class TestAFormatOnBaichuan(PromptContract):
    component = "chatmed"
    backbone = "baichuan"


@pytest.fixture(params=["tiny", "declared as words", "reference"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tokenizer of each kind: ids 195 and 196 are control pieces, ordinary words of the vocabulary, bytes."""
    if request.param == "reference":
        if not SHARED.is_dir():
            pytest.skip("the reference values are not here")
        return SHARED / "tokenizers" / "baichuan_spm"
    tiny = Baichuan().tokenizer_directory()
    if request.param == "tiny":
        return tiny
    pb2: Any = sentencepiece_model_pb2
    proto = pb2.ModelProto.FromString((tiny / "tokenizer.model").read_bytes())
    for index in (195, 196):
        proto.pieces[index].type = pb2.ModelProto.SentencePiece.USER_DEFINED
    shutil.copytree(tiny, tmp_path / "words")
    (tmp_path / "words" / "tokenizer.model").write_bytes(proto.SerializeToString())
    typed = SentencePieceProcessor(model_file=str(tmp_path / "words" / "tokenizer.model")).encode("<reserved_102>")
    assert typed == [195]  # sentencepiece itself would let it be typed
    return tmp_path / "words"


@pytest.fixture
def tokenizer(directory: Path) -> Any:
    return Baichuan(tokenizer=str(directory)).load_tokenizer()


def test_ids_are_sentencepieces(tokenizer: Any, directory: Path) -> None:
    pieces = SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    texts = [text for text in TEXTS if "reserved" not in text or directory.name != "words"]
    expected = pieces.encode(texts)
    assert tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"] == expected
    one_by_one = [tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) for text in texts]
    assert one_by_one == expected
    assert len(tokenizer) == len(pieces)
    assert tokenizer.convert_ids_to_tokens(list(range(len(pieces)))) == [
        pieces.id_to_piece(i) for i in range(len(pieces))
    ]


def test_no_text_is_lost(tokenizer: Any) -> None:
    for text in TEXTS:
        for split in (True, False):
            ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=split)
            assert tokenizer.decode(ids) == text
        assert tokenizer.convert_tokens_to_string(tokenizer.tokenize(text)) == text


def test_control_tokens_are_read_but_cannot_be_typed(tokenizer: Any) -> None:
    names = tokenizer.convert_ids_to_tokens([1, 2, 195, 196, 0])
    text = f"{names[0]}{names[2]}你{names[3]}好{names[1]}{names[4]}"
    inner = [tokenizer.encode(each, add_special_tokens=False) for each in "你好"]
    assert tokenizer.encode(text) == [1, 195, *inner[0], 196, *inner[1], 2, 0]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == "你好"
    typed = tokenizer([text], split_special_tokens=True)["input_ids"][0]
    assert not {0, 1, 2, 195, 196} & set(typed)
    assert tokenizer.decode(typed, skip_special_tokens=True) == text
    assert set(tokenizer.all_special_ids) == {0, 1, 2, 195, 196}
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (0, 0)


def test_a_chat_template_lays_out_with_the_pieces_of_195_and_196(tokenizer: Any) -> None:
    user, assistant = tokenizer.convert_ids_to_tokens([195, 196])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '" + user + "' if m.role == 'user' else '" + assistant + "' }}{{ m.content }}"
        "{% if m.role != 'user' %}{{ eos_token }}{% endif %}{% endfor %}{{ '" + assistant + "' }}"
    )
    said = ["胃疼 ", "多久了？", "两天\n"]
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), said, strict=True)]
    first, second, third = (tokenizer.encode(text, add_special_tokens=False) for text in said)
    found = tokenizer.apply_chat_template(turns, tokenize=True)["input_ids"]
    assert found == [195, *first, 196, *second, 2, 195, *third, 196]


def test_saved_and_loaded_it_is_the_same(tokenizer: Any, directory: Path, tmp_path: Path) -> None:
    import medframe_backbones.baichuan.model  # noqa: F401

    tokenizer.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.model").read_bytes() == (directory / "tokenizer.model").read_bytes()
    assert "auto_map" not in json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text("utf-8"))
    again: Any = Baichuan(tokenizer=str(tmp_path / "saved")).load_tokenizer()
    for other in (again, AutoTokenizer.from_pretrained(tmp_path / "saved"), AutoTokenizer.from_pretrained(directory)):
        assert type(other) is type(tokenizer)
        assert tokenizer_fingerprint(other) == tokenizer_fingerprint(tokenizer)
        for split in (True, False):
            texts = [*TEXTS, "<s>你好"]
            assert other(texts, split_special_tokens=split) == tokenizer(texts, split_special_tokens=split)


@pytest.mark.parametrize(
    ("said", "expected"),
    [({}, [1]), ({"add_bos_token": False}, []), ({"add_bos_token": True, "add_eos_token": True}, [1, 2])],
)
def test_what_is_added_is_what_the_directory_says(said: dict[str, bool], expected: list[int], tmp_path: Path) -> None:
    """Where it says nothing, the published code adds a start token; and saving keeps what holds."""
    folder = tmp_path / "own"
    shutil.copytree(Baichuan().tokenizer_directory(), folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BaiChuanTokenizer", **said}), "utf-8")
    tokenizer: Any = Baichuan(tokenizer=str(folder)).load_tokenizer()
    tokenizer.save_pretrained(tmp_path / "saved")
    for each in (tokenizer, Baichuan(tokenizer=str(tmp_path / "saved")).load_tokenizer()):
        (inner,) = each.encode("头", add_special_tokens=False)
        for split in (True, False):
            added = [i for i in each(["头"], split_special_tokens=split)["input_ids"][0] if i != inner]
            assert added == expected
        assert (each.eos_token_id, each.pad_token_id) == (2, 0)


def test_batches_are_padded_and_cut(tokenizer: Any) -> None:
    texts = ["头痛三天", "胃"]
    alone = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)
    assert alone["attention_mask"] == [[1] * len(ids) for ids in alone["input_ids"]]
    rows = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, padding=True, return_tensors="pt")
    longest = max(map(len, alone["input_ids"]))
    assert rows["input_ids"].tolist() == [[0] * (longest - len(ids)) + ids for ids in alone["input_ids"]]
    assert rows["attention_mask"].sum(1).tolist() == [len(ids) for ids in alone["input_ids"]]
    cut = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, truncation=True, max_length=1)
    assert cut["input_ids"] == [ids[:1] for ids in alone["input_ids"]]


def test_an_end_token_never_pads(tmp_path: Path) -> None:
    shutil.copytree(Baichuan().tokenizer_directory(), tmp_path / "own")
    file = tmp_path / "own" / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "pad_token": "</s>"}), "utf-8")
    assert Baichuan(tokenizer=str(tmp_path / "own")).load_tokenizer().pad_token_id == 0


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer.model", None, "has no tokenizer.model"),
        ("tokenizer.model", "no sentencepiece", "cannot be loaded"),
        ("tokenizer_config.json", "{", "is broken"),
        ("tokenizer_config.json", '{"tokenizer_class": "QWenTokenizer"}', "which is no Baichuan tokenizer"),
    ],
)
def test_a_broken_directory_is_said(file: str, content: str | None, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(Baichuan().tokenizer_directory(), folder)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content, "utf-8")
    with pytest.raises(BackboneError, match=said):
        Baichuan(tokenizer=str(folder)).load_tokenizer()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the reference values are not here")
def test_rows_are_tokenised_as_the_reference_does() -> None:
    """DISC's training rows: user and assistant turns by their ids, contents by sentencepiece."""
    tokenizer: Any = Baichuan(tokenizer=str(SHARED / "tokenizers" / "baichuan_spm")).load_tokenizer()
    rows = [json.loads(line) for line in (SHARED / "disc" / "rows_00-24.jsonl").read_text("utf-8").splitlines()]
    expected = json.loads((SHARED / "disc" / "max1200.json").read_text("utf-8"))["rows"]
    for row, want in zip(rows, expected, strict=True):
        ids = [1]
        for turn in row["conversation"]:
            (content,) = tokenizer([turn["content"]], add_special_tokens=False, split_special_tokens=True)["input_ids"]
            ids += [195, *content] if turn["role"] == "user" else [196, *content, 2]
        assert ids[: len(want["input_ids"])] == want["input_ids"]
