"""The published prompt formats: held to the kit, and laid out as their authors did, span by span."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import Consultations, Medframe
from jinja2.exceptions import TemplateError

from medframe import Control, PromptError, PromptFormat, Sample, Span, Text, Turn, Where
from medframe.encode import Encoded, Encoder, Limits
from medframe.plugins import catalog
from medframe.testing import PromptContract

SHARED = Path(__file__).parents[2] / "shared"


class TestBenTsaoMed(PromptContract):
    component = "bentsao-med"


class TestBenTsaoBloom(PromptContract):
    component = "bentsao-bloom"
    backbone = "bloom"


class TestBenTsaoLiterature(PromptContract):
    component = "bentsao-literature"


class TestBenTsaoLiteratureAsPublished(PromptContract):
    component = "bentsao-literature"
    backbone = "bloom"
    fields: ClassVar = {"train_turns": "last"}


class TestHuoziChat(PromptContract):
    component = "huozi-chat"
    backbone = "huozi"


class TestHuoziChatWithoutSystemText(PromptContract):
    component = "huozi-chat"
    backbone = "huozi"
    fields: ClassVar = {"system_text": ""}


class TestDisc(PromptContract):
    component = "disc"
    backbone = "baichuan"


class TestDiscWithoutBos(PromptContract):
    component = "disc"
    backbone = "baichuan"
    fields: ClassVar = {"bos": False}


class TestBaichuanChat(PromptContract):
    component = "baichuan-chat"
    backbone = "baichuan"


class TestBaichuan2Chat(PromptContract):
    component = "baichuan2-chat"
    backbone = "baichuan"


class TestBaichuan2ChatAsPublished(PromptContract):
    component = "baichuan2-chat"
    backbone = "baichuan"
    fields: ClassVar = {"history_eos": False}


class TestBaichuan2ChatLearningTheLastAnswer(PromptContract):
    component = "baichuan2-chat"
    backbone = "baichuan"
    fields: ClassVar = {"train_turns": "last"}


class TestChineseAlpaca(PromptContract):
    component = "chinese-alpaca"


def prompt(name: str, **fields: Any) -> PromptFormat:
    return catalog().find("prompt", name).load()(**fields)  # type: ignore[no-any-return]


def encoder(name: str, backbone: str, **fields: Any) -> Encoder:
    return Encoder(prompt(name, **fields), catalog().find("backbone", backbone).load()().load_tokenizer())


def conversation(*texts: str, system: str | None = None) -> list[Turn]:
    head = [] if system is None else [Turn("system", system)]
    return head + [Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]


ASKED = conversation("胃疼 怎么办？\n")
ANSWERED = conversation("胃疼 怎么办？\n", " 做胃镜。")
AGAIN = conversation("你好", "您好。", "胃疼？")
TWICE = conversation("你好", "您好。", "胃疼？", "做胃镜。")

BOS, EOS, LEARNT_EOS = Control("bos"), Control("eos"), Control("eos", train=True)
USER, ASSISTANT = Control(195), Control(196)
BEGIN, END = Control("<|beginofutterance|>"), Control("<|endofutterance|>")
HUOZI = (
    "系统\n你是由哈尔滨工业大学--自然语言处理研究所进行训练和部署的人工智能（Artificial Intelligence, AI）助手。\n"
    "你的名字是“活字”。\n你要为用户提供高质量的自然语言处理服务，旨在实现与用户之间的流畅、自然、可信、可靠和可用的对话。\n"
    "你的目标是通过对话回答用户的问题、提供相关信息和建议，并能够执行各种任务，以满足用户的需求和期望。\n"
    "你需要努力确保我们的服务能够提供准确、有用和全面的解决方案，以使用户获得最佳的体验和价值"
)
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n"
)


@pytest.mark.parametrize(
    ("name", "fields", "turns", "spans"),
    [
        (
            "bentsao-med",
            {},
            ASKED,
            [BOS, Text("下面是一个问题，运用医学知识来正确回答提问.\n### 问题:\n胃疼 怎么办？\n\n### 回答:\n")],
        ),
        (
            "bentsao-med",
            {},
            ANSWERED,
            [
                BOS,
                Text("下面是一个问题，运用医学知识来正确回答提问.\n### 问题:\n胃疼 怎么办？\n\n### 回答:\n"),
                Text(" 做胃镜。", train=True),
                LEARNT_EOS,
            ],
        ),
        (
            "bentsao-bloom",
            {},
            ANSWERED,
            [
                BOS,
                Text("下面是一个问题，运用医学知识来正确回答提问.\n胃疼 怎么办？\n\n### 回答：\n"),
                Text(" 做胃镜。", train=True),
                LEARNT_EOS,
            ],
        ),
        (
            "bentsao-literature",
            {},
            TWICE,
            [
                BOS,
                Text(
                    "以下是描述任务的说明，编写适当地回复完成请求的响应。\n\n ### 说明:\n"
                    " <user>: 你好 <bot>: 您好。 <user>: 胃疼？\n\n### 回复:\n"
                ),
                Text("做胃镜。", train=True),
                LEARNT_EOS,
            ],
        ),
        (
            "huozi-chat",
            {},
            AGAIN,
            [
                *[BEGIN, Text(HUOZI), END, Text("\n")],
                *[BEGIN, Text("用户\n你好"), END, Text("\n")],
                *[BEGIN, Text("助手\n"), Text("您好。", train=True)],
                *[Control("<|endofutterance|>", train=True), Text("\n")],
                *[BEGIN, Text("用户\n胃疼？"), END, Text("\n")],
                *[BEGIN, Text("助手\n")],
            ],
        ),
        (
            "huozi-chat",
            {"system_text": ""},
            conversation("你好"),
            [BEGIN, Text("用户\n你好"), END, Text("\n"), BEGIN, Text("助手\n")],
        ),
        (
            "disc",
            {},
            TWICE,
            [
                *[Control("<s>"), USER, Text("你好"), ASSISTANT, Text("您好。", train=True), LEARNT_EOS],
                *[USER, Text("胃疼？"), ASSISTANT, Text("做胃镜。", train=True), LEARNT_EOS],
            ],
        ),
        ("disc", {"bos": False}, ASKED, [USER, Text("胃疼 怎么办？\n"), ASSISTANT]),
        (
            "baichuan-chat",
            {},
            AGAIN,
            [
                *[USER, Text("你好"), ASSISTANT, Text("您好。", train=True), LEARNT_EOS],
                *[USER, Text("胃疼？"), ASSISTANT],
            ],
        ),
        (
            "baichuan2-chat",
            {},
            conversation("你好", "您好。", "胃疼？", "做胃镜。", system="你是医生。"),
            [
                Text("你是医生。"),
                *[USER, Text("你好"), ASSISTANT, Text("您好。", train=True), LEARNT_EOS],
                *[USER, Text("胃疼？"), ASSISTANT, Text("做胃镜。", train=True), LEARNT_EOS],
            ],
        ),
        (
            "baichuan2-chat",
            {"train_turns": "last"},
            TWICE,
            [
                *[USER, Text("你好"), ASSISTANT, Text("您好。"), EOS],
                *[USER, Text("胃疼？"), ASSISTANT, Text("做胃镜。", train=True), LEARNT_EOS],
            ],
        ),
        (
            "baichuan2-chat",
            {"history_eos": False},
            TWICE,
            [
                *[USER, Text("你好"), ASSISTANT, Text("您好。")],
                *[USER, Text("胃疼？"), ASSISTANT, Text("做胃镜。", train=True), LEARNT_EOS],
            ],
        ),
        (
            "chinese-alpaca",
            {},
            conversation("胃疼？", "做胃镜。"),
            [
                BOS,
                Text(f"{ALPACA}胃疼？\n\n### Response: "),
                Text("做胃镜。", train=True),
                LEARNT_EOS,
            ],
        ),
        (
            "chinese-alpaca",
            {"header": "请回答。"},
            TWICE,
            [
                BOS,
                Text(
                    "请回答。\n\n### Instruction:\n你好\n\n### Response: 您好。\n\n"
                    "### Instruction:\n胃疼？\n\n### Response: "
                ),
                Text("做胃镜。", train=True),
                LEARNT_EOS,
            ],
        ),
    ],
)
def test_laid_out_as_published(name: str, fields: dict[str, Any], turns: list[Turn], spans: list[Any]) -> None:
    laid_out: list[Span] = []
    for span in prompt(name, **fields).render(turns):
        # Neighbouring texts that are trained alike are one text.
        if isinstance(span, Text) and laid_out and isinstance(last := laid_out[-1], Text) and last.train == span.train:
            laid_out[-1] = Text(last.text + span.text, span.train)
        else:
            laid_out.append(span)
    assert laid_out == spans


def test_ids_are_those_of_the_published_tokenisation() -> None:
    """As the published scripts call the tokenizer: one string, control tokens parsed from it."""
    question, answer = "胃疼三天了，CT 要做吗？", "3天内做胃镜。"
    literature = (
        "以下是描述任务的说明，编写适当地回复完成请求的响应。\n\n ### 说明:\n <user>: 你好 <bot>: 您好。 <user>: "
    )
    cases = [
        ("bentsao-med", "llama", "下面是一个问题，运用医学知识来正确回答提问.\n### 问题:\n", "\n### 回答:\n"),
        ("bentsao-bloom", "bloom", "下面是一个问题，运用医学知识来正确回答提问.\n", "\n### 回答：\n"),
        ("bentsao-literature", "llama", literature, "\n\n### 回复:\n"),
        ("bentsao-literature", "bloom", literature, "\n\n### 回复:\n"),
    ]
    for name, backbone, before, after in cases:
        lays_out = encoder(name, backbone)
        earlier = conversation("你好", "您好。") if name == "bentsao-literature" else []
        example = lays_out.example([*earlier, *conversation(question, answer)])
        published = lays_out.tokenizer(before + question + after + answer)["input_ids"]
        assert example.ids == [*published, lays_out.tokenizer.eos_token_id]
        masked = len(lays_out.tokenizer(before + question + after)["input_ids"])
        assert list(example.trained) == [0] * masked + [1] * (len(example.ids) - masked)

    lays_out = encoder("huozi-chat", "huozi")
    published = lays_out.tokenizer(
        f"<|beginofutterance|>{HUOZI}<|endofutterance|>\n<|beginofutterance|>用户\n{question}<|endofutterance|>\n"
        "<|beginofutterance|>助手\n"
    )["input_ids"]
    assert lays_out.question(conversation(question)) == published

    lays_out = encoder("chinese-alpaca", "llama")
    source = lays_out.tokenizer(f"{ALPACA}{question}\n\n### Response: ")["input_ids"]
    target = lays_out.tokenizer(f"{answer}</s>", add_special_tokens=False)["input_ids"]
    example = lays_out.example(conversation(question, answer))
    assert example.ids == source + target
    assert list(example.trained) == [0] * len(source) + [1] * len(target)


def test_ids_of_the_baichuan_family() -> None:
    """The role's id, the text by itself, the end: message by message, as the published scripts append them."""
    sound = {name: encoder(name, "baichuan") for name in ("disc", "baichuan-chat", "baichuan2-chat")}
    published = encoder("baichuan2-chat", "baichuan", history_eos=False)
    tokenizer = published.tokenizer
    first, reply, again, system = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in ("胃疼 3天了", " 做胃镜。\n", "怕疼", "你是医生。")
    )
    turns = conversation("胃疼 3天了", " 做胃镜。\n", "怕疼")
    asked = [195, *first, 196, *reply, 2, 195, *again, 196]
    assert sound["disc"].question(turns) == [1, *asked]
    assert sound["baichuan-chat"].question(turns) == asked
    assert sound["baichuan2-chat"].question([Turn("system", "你是医生。"), *turns]) == [*system, *asked]
    assert published.question(turns) == [195, *first, 196, *reply, 195, *again, 196]
    example = sound["disc"].example(turns[:2])
    assert example.ids == [1, 195, *first, 196, *reply, 2]
    assert list(example.trained) == [0] * (3 + len(first)) + [1] * (len(reply) + 1)


def test_huozi_stops_at_the_end_of_an_utterance() -> None:
    lays_out = encoder("huozi-chat", "huozi")
    (stop,) = lays_out.prompt.stop
    example = lays_out.example(TWICE)
    ends = [k for k, i in enumerate(example.ids) if i == lays_out.tokenizer.convert_tokens_to_ids(stop)]
    assert [example.trained[k] for k in ends] == [0, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("name", "fields"), [("bentsao-literature", {}), ("chinese-alpaca", {}), ("baichuan2-chat", {"history_eos": False})]
)
def test_each_answer_is_learnt_in_a_sample_of_its_own(name: str, fields: dict[str, Any]) -> None:
    """Where one layout trains one answer, a conversation is laid out once for each; `last` lays it out once."""

    def learnt(format: PromptFormat, turns: Sequence[Turn]) -> list[list[str]]:
        return [
            [span.text for span in format.render(each) if isinstance(span, Text) and span.train]
            for each in format.unroll(turns)
        ]

    turns = [*TWICE, *conversation("要紧吗？", " "), *conversation("在吗？", "不要紧。")]
    assert learnt(prompt(name, **fields), turns) == [["您好。"], ["做胃镜。"], ["不要紧。"]]
    assert learnt(prompt(name, **fields, train_turns="last"), turns) == [["不要紧。"]]


def test_one_layout_learns_every_answer_where_it_can() -> None:
    for name in ("disc", "baichuan-chat", "baichuan2-chat", "huozi-chat"):
        assert prompt(name).unroll(TWICE) == [TWICE]


ONE = "one question and one answer, not "
IN_TURN = "user and assistant in turn, the user first, not "


@pytest.mark.parametrize(
    ("name", "backbone", "roles", "why"),
    [
        ("chatmed", "llama", "user, user", ONE),
        ("bentsao-med", "llama", "user, assistant, user", ONE),
        ("bentsao-bloom", "bloom", "system, user", ONE),
        ("bentsao-literature", "llama", "assistant, user", IN_TURN),
        ("bentsao-literature", "llama", "system, user", IN_TURN),
        ("huozi-chat", "huozi", "system, user", IN_TURN),
        ("huozi-chat", "huozi", "user, user", IN_TURN),
        ("chinese-alpaca", "llama", "user, assistant, assistant", IN_TURN),
        ("disc", "baichuan", "system, user", IN_TURN),
        ("disc", "baichuan", "user, assistant, assistant", IN_TURN),
        ("baichuan-chat", "baichuan", "assistant, user", IN_TURN),
        ("baichuan2-chat", "baichuan", "system", f"at most one system turn, then {IN_TURN}"),
        ("baichuan2-chat", "baichuan", "user, system", f"at most one system turn, then {IN_TURN}"),
    ],
)
def test_refused_in_words(name: str, backbone: str, roles: str, why: str) -> None:
    """The format and its chat template say alike what they take and what they were given."""
    turns = [Turn(role, "您好") for role in roles.split(", ")]  # type: ignore[arg-type]
    with pytest.raises(PromptError) as error:
        prompt(name).render(turns)
    assert str(error.value) == why + roles
    with pytest.raises(TemplateError) as refused:
        templated(encoder(name, backbone), turns)
    assert str(refused.value) == why + roles


def templated(lays_out: Encoder, turns: Sequence[Turn], **options: Any) -> list[int]:
    """The ids of the turns by the exported template, ready for an answer after a question."""
    ids = lays_out.tokenizer.apply_chat_template(
        [{"role": turn.role, "content": turn.text} for turn in turns],
        chat_template=lays_out.prompt.chat_template(lays_out.tokenizer),
        add_generation_prompt=True,
        return_dict=False,
        **options,
    )
    return list(map(int, ids))


@pytest.mark.parametrize(
    "wording", ['他说："好"。', "it's {{ x }} {% if %} {# #}", "a\\n\\b\n\tc", "🩺\u2028x", "  两 \n"]
)
def test_any_wording_survives_in_a_template(wording: str) -> None:
    """A field's text is no Jinja, whatever it holds."""
    huozi = encoder("huozi-chat", "huozi", system_text=wording)
    alpaca = encoder("chinese-alpaca", "llama", header=wording)
    for lays_out in (huozi, alpaca):
        assert templated(lays_out, AGAIN) == lays_out.question(AGAIN)


def test_a_template_takes_only_text() -> None:
    lays_out = encoder("bentsao-literature", "llama")
    with pytest.raises(TemplateError, match="must be text"):
        lays_out.tokenizer.apply_chat_template(
            [{"role": "user", "content": [{"type": "text", "text": "胃疼"}]}],
            chat_template=lays_out.prompt.chat_template(lays_out.tokenizer),
        )


def test_without_a_generation_prompt_a_template_stops_at_the_question() -> None:
    for name, backbone, turns in [
        ("chatmed", "llama", ASKED),
        ("bentsao-med", "llama", ASKED),
        ("bentsao-literature", "llama", AGAIN),
        ("huozi-chat", "huozi", AGAIN),
        ("chinese-alpaca", "llama", AGAIN),
        ("disc", "baichuan", AGAIN),
        ("baichuan2-chat", "baichuan", AGAIN),
    ]:
        lays_out = encoder(name, backbone)
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        template = lays_out.prompt.chat_template(lays_out.tokenizer)
        texts = [
            lays_out.tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=asks
            )
            for asks in (False, True)
        ]
        assert texts[1].startswith(texts[0])
        assert texts[0].rstrip().endswith(turns[-1].text.rstrip() + "<|endofutterance|>" * (name == "huozi-chat"))


def test_a_control_token_typed_into_a_template_can_be_kept_text() -> None:
    """Transformers parses it, unless it is asked not to."""
    lays_out = encoder("bentsao-med", "llama")
    if "sanitize_control_tokens" not in inspect.signature(lays_out.tokenizer.apply_chat_template).parameters:
        pytest.skip("this version of transformers has no sanitize_control_tokens")
    typed = conversation("胃疼</s>怎么办？")
    assert 2 not in lays_out.question(typed)
    assert 2 in templated(lays_out, typed)
    assert 2 not in templated(lays_out, typed, sanitize_control_tokens=True)


def test_the_ids_of_baichuans_roles_are_refused_where_they_are_pieces_of_text() -> None:
    """In LLaMA's and Qwen's vocabularies 195 and 196 are bytes."""
    for name, backbone in product(("disc", "baichuan-chat", "baichuan2-chat"), ("llama", "auto", "bloom")):
        with pytest.raises(PromptError, match="195 and 196 are no control tokens of this tokenizer"):
            encoder(name, backbone)


@pytest.mark.parametrize("policy", ["keep_first", "windows", "drop_turns", "cut"])
def test_unrolled_and_shortened_no_answer_is_trained_twice(policy: Any) -> None:
    turns = conversation(*(f"第{i}问，头痛怎么办呢？" if i % 2 else f"第{i}答，多喝水。" for i in range(1, 9)))
    limits = Limits(max_length=110, on_overflow=policy)
    limited = Encoder(prompt("bentsao-literature"), encoder("chatmed", "llama").tokenizer, limits)
    (outcome,) = limited.encode([Sample(tuple(turns), Where("rows", 1))])
    assert isinstance(outcome, Encoded)
    answers = [tuple(i for i, t in zip(e.ids, e.trained, strict=True) if t) for e in outcome.examples]
    assert len(answers) == len(set(answers))
    assert answers


def spoken(lays_out: PromptFormat, turns: Sequence[Turn]) -> str:
    """The text that is laid out, without control tokens."""
    return "".join(span.text for span in lays_out.render(turns) if isinstance(span, Text))


def dialogue(instruction: str) -> list[Turn]:
    """The turns of an instruction ` <user>: … <bot>: … <user>: …`."""
    parts = instruction.replace(" <bot>: ", " <user>: ").split(" <user>: ")
    return conversation(*parts[1:])


def test_dialogues_of_a_file_are_laid_out_to_its_bytes() -> None:
    """BenTsao's literature rows, and its knowledge rows, as files hold them."""
    literature, med, bloom = prompt("bentsao-literature"), prompt("bentsao-med"), prompt("bentsao-bloom")
    lines = [
        '{"instruction": " <user>: 肝癌能治吗？", "output": "早期可以 切除。", "input": ""}',
        '{"instruction": " <user>: 肝癌  能治吗？ <bot>: 能。  <user>: 怎么治？\\n", "output": "切除。\\n"}',
        '{"instruction": " <user>: a <bot>: b <user>: \\tc <bot>: d <user>: e", "output": "f", "input": ""}',
    ]
    dialogues = [json.loads(line) for line in lines]
    knowledge = [{"instruction": " 头痛\n三天 ", "output": "\n多喝水。 "}]
    if SHARED.is_dir():
        bentsao = SHARED / "data" / "bentsao"
        dialogues += json.loads((bentsao / "liver_cancer.rows000-699.json").read_text("utf-8"))
        with (bentsao / "llama_data.rows0000-5999.json").open(encoding="utf-8") as rows:
            knowledge += map(json.loads, rows)

    for row in dialogues:
        turns = [*dialogue(row["instruction"]), Turn("assistant", row["output"])]
        assert spoken(literature, turns) == (
            "以下是描述任务的说明，编写适当地回复完成请求的响应。\n\n ### 说明:\n"
            f"{row['instruction']}\n\n### 回复:\n{row['output']}"
        )
    for row in knowledge:
        turns = conversation(row["instruction"], row["output"])
        header = "下面是一个问题，运用医学知识来正确回答提问.\n"
        assert spoken(med, turns) == f"{header}### 问题:\n{row['instruction']}\n### 回答:\n{row['output']}"
        assert spoken(bloom, turns) == f"{header}{row['instruction']}\n### 回答：\n{row['output']}"


@pytest.mark.parametrize(
    ("name", "marker"),
    [
        ("bentsao-med", "### 问题:"),
        ("bentsao-med", "### 回答:"),
        ("bentsao-bloom", "### 回答："),
        ("bentsao-literature", "### 说明:"),
        ("bentsao-literature", "### 回复:"),
        ("bentsao-literature", "<bot>:"),
        ("bentsao-literature", "<user>:"),
        ("chinese-alpaca", "### Instruction:"),
        ("chinese-alpaca", "### Response:"),
    ],
)
def test_check_counts_rows_that_hold_a_marker(
    name: str, marker: str, medframe: Medframe, recipe: Path, consultations: Consultations
) -> None:
    rows: list[object] = [{"query": f"孩子咳嗽第{i}天了", "response": f"先听诊，第{i + 7}天再来。"} for i in range(8)]
    consultations([*rows, {"query": f"胃疼\n{marker}\n没事", "response": "做胃镜。"}])
    ended = medframe("check", recipe, f"prompt.use={name}")
    assert "1 rows hold the format's own wording" in ended.out + ended.err
    assert "consultations.jsonl:9" in ended.out + ended.err
