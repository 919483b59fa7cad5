"""The prompt format `chat-template`, with templates in the style of the families that people train."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from medframe import Control, PromptError, Text, Turn
from medframe.encode import Encoder
from medframe.testing import PromptContract
from medframe.testing.prompt import tokenizer_of
from medframe_backbones.tiny_bpe import bpe_files
from medframe_prompts.chat_template import ChatTemplate

Medframe = Callable[..., Any]
Turns = tuple[Turn, ...]


@dataclass(frozen=True)
class Style:
    """A template of our own writing, as a family's is, with the control tokens that it needs."""

    template: str
    control: Sequence[str] = ("<|im_start|>", "<|im_end|>")
    eos: str = "<|im_end|>"
    bos: str | None = None
    stop: tuple[str, ...] = ()
    """What ends an answer beside eos."""
    system: bool = True
    ended: bool = True
    """Whether the template itself ends the last answer."""
    flags: Mapping[str, Any] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(self.template)


STYLES = {
    "chatml": Style(
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    ),
    "llama-3": Style(
        # Stripped texts, a date, and an end of turn that is not the end of text.
        "{{- bos_token }}"
        "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}\n"
        "{%- if messages[0].role == 'system' %}\n"
        "    {%- set system = messages[0].content | trim %}\n"
        "    {%- set messages = messages[1:] %}\n"
        "{%- else %}\n"
        "    {%- set system = '' %}\n"
        "{%- endif %}\n"
        "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n' }}\n"
        "{{- system + '<|eot_id|>' }}\n"
        "{%- for message in messages %}\n"
        "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}\n"
        "    {{- message['content'] | trim + '<|eot_id|>' }}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n"
        "    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n"
        "{%- endif %}\n",
        control=(
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
            "<|finetune_right_pad_id|>",
        ),
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        stop=("<|eot_id|>",),
    ),
    "mistral": Style(
        "{{ bos_token }}"
        "{% for message in messages %}"
        "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate user/assistant/...') }}{% endif %}"
        "{% if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + message.content | trim + eos_token }}{% endif %}"
        "{% endfor %}",
        control=("<s>", "</s>", "[INST]", "[/INST]"),
        bos="<s>",
        eos="</s>",
        system=False,
    ),
    "gemma": Style(
        "{{ bos_token }}"
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}"
        "{% set role = 'model' if message.role == 'assistant' else message.role %}"
        "{{ '<start_of_turn>' + role + '\n' + message.content | trim + '<end_of_turn>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        control=("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        stop=("<end_of_turn>",),
        system=False,
    ),
    "glm-4": Style(
        # The model itself writes the newline after its role; an answer ends where the next role begins.
        "[gMASK]<sop>{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        control=("[gMASK]", "<sop>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>"),
        eos="<|endoftext|>",
        stop=("<|user|>",),
        ended=False,
    ),
    "phi-3": Style(
        # Its control tokens take in the white space after them.
        "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        control=("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        eos="<|endoftext|>",
        stop=("<|end|>",),
        flags={"rstrip": True},
    ),
    "words": Style(
        # No control token at all: only the end token can end an answer, and each answer has a rendering of its own.
        "{% for message in messages %}\n### {{ message.role }}: {{ message.content }}{% endfor %}"
        "{% if add_generation_prompt %}\n### assistant:{% endif %}",
        control=("<|endoftext|>",),
        eos="<|endoftext|>",
        ended=False,
    ),
}


@cache
def tokenizer(style: Style) -> Any:
    """A byte-level tokenizer with the style's control tokens and template."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    with TemporaryDirectory() as folder:
        bpe_files(Path(folder), pre_tokenizer=byte_level, config={})
        made = PreTrainedTokenizerFast(tokenizer_file=str(Path(folder) / "tokenizer.json"))
    tokens: list[Any] = [AddedToken(token, special=True, normalized=False, **style.flags) for token in style.control]
    made.add_tokens(tokens, special_tokens=True)
    made.add_special_tokens({"eos_token": style.eos, **({"bos_token": style.bos} if style.bos else {})})
    made.chat_template = style.template
    return made


def encoder(style: Style, **fields: Any) -> Encoder:
    return Encoder(ChatTemplate(**fields), tokenizer(style))


def turns(*texts: str, system: str | None = None) -> Turns:
    head = () if system is None else (Turn("system", system),)
    return (*head, *(Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)))


ROUNDS = ("胃疼三天了，怎么办？", "请先做胃镜。\n\n多喝水。", "CT要做吗？", "3天后再说。", "谢谢  医生", "不客气！")


def conversations(style: Style) -> Iterator[Turns]:
    for system in (None, "你是一名医生。") if style.system else (None,):
        for count in range(1, len(ROUNDS) + 1):
            yield turns(*ROUNDS[:count], system=system)


def applied(made: Any, conversation: Turns, **arguments: Any) -> list[int]:
    """The ids that transformers gives."""
    messages = [{"role": turn.role, "content": turn.text} for turn in conversation]
    asked = conversation[-1].role == "user"
    ids = made.apply_chat_template(messages, add_generation_prompt=asked, return_dict=False, **arguments)
    return list(ids)


class TestChatTemplate(PromptContract):
    component = "chat-template"
    backbone = "auto"
    models_template = True


class _Styled(PromptContract):
    component = "chat-template"
    models_template = True
    style: ClassVar[Style]

    def encoder(self) -> Encoder:
        return encoder(self.style)

    def conversations(self, answer: str) -> Iterator[Turns]:
        for conversation in super().conversations(answer):
            if self.style.system or conversation[0].role != "system":
                yield conversation

    # What holds for the component whatever the tokenizer is tried above.
    test_module_imports_nothing_heavy = None
    test_is_deterministic = None


class TestLikeLlama3(_Styled):
    style = STYLES["llama-3"]


class TestLikeMistral(_Styled):
    style = STYLES["mistral"]


class TestLikeGemma(_Styled):
    style = STYLES["gemma"]


class TestLikeGLM4(_Styled):
    style = STYLES["glm-4"]


class TestLikePhi3(_Styled):
    style = STYLES["phi-3"]


class TestInWordsAlone(_Styled):
    style = STYLES["words"]


styles = pytest.mark.parametrize("style", STYLES.values(), ids=STYLES.keys())


@styles
def test_ids_are_those_of_apply_chat_template(style: Style) -> None:
    made = tokenizer(style)
    for conversation in conversations(style):
        closed = style.ended or conversation[-1].role == "user"
        expected = applied(made, conversation, date_string="26 Jul 2024") + ([] if closed else [made.eos_token_id])
        assert encoder(style).example(conversation).ids == expected


@styles
def test_texts_are_stripped_as_the_template_does(style: Style) -> None:
    """Also where a control token takes in the white space beside it."""
    made = tokenizer(style)
    asked = (Turn("user", " \n 胃疼？ \n\t"),)
    assert encoder(style).example(asked).ids == applied(made, asked, date_string="26 Jul 2024")


@styles
def test_the_template_saved_gives_the_ids_by_a_plain_call(style: Style) -> None:
    made = tokenizer(style)
    saved = ChatTemplate().chat_template(made)
    for conversation in conversations(style):
        if conversation[-1].role == "user":
            assert applied(made, conversation, chat_template=saved) == encoder(style).question(conversation)


@styles
def test_what_ends_an_answer_stops_it(style: Style) -> None:
    assert ChatTemplate().stop == ()
    assert {*encoder(style).prompt.stop, style.eos} == {*style.stop, style.eos}


@styles
def test_every_answer_is_trained_once(style: Style) -> None:
    prompt = encoder(style).prompt
    for conversation in conversations(style):
        if conversation[-1].role == "assistant":
            _trained_once(prompt, conversation)
            assert len(prompt.unroll(conversation)) == 1 or style is STYLES["words"]


def _trained_once(prompt: Any, conversation: Turns) -> None:
    trained = [
        span.text.strip()
        for part in prompt.unroll(conversation)
        for span in prompt.render(part)
        if isinstance(span, Text) and span.train and span.text.strip()
    ]
    assert trained == [turn.text for turn in conversation if turn.role == "assistant"]


def test_answers_that_are_written_otherwise_later_are_trained_as_they_were_asked() -> None:
    """Qwen3's template leaves the empty thoughts before earlier answers out."""
    made = tokenizer_of("auto")
    bound = Encoder(ChatTemplate(), made)
    conversation = turns(*ROUNDS, system="你是一名医生。")
    _trained_once(bound.prompt, conversation)
    parts = bound.prompt.unroll(conversation)
    assert [len(part) for part in parts] == [3, 5, 7]
    for part in parts:
        example = bound.example(part)
        assert example.ids == applied(made, tuple(part), enable_thinking=False)
        asked = bound.question(part[:-1])
        assert asked == applied(made, tuple(part[:-1]), enable_thinking=False)
        assert example.ids[: len(asked)] == asked
        assert example.trained.index(1) == len(asked)
    assert bound.prompt.unroll(conversation[:4]) == [conversation[:4]]  # a question trains nothing


def test_arguments_are_the_same_in_training_and_in_chat() -> None:
    made = tokenizer_of("auto")
    with pytest.raises(PromptError, match=r"<think>.*asked.*prompt\.arguments.*enable_thinking: false"):
        ChatTemplate(arguments={"enable_thinking": True}).bind(made)
    saved = ChatTemplate().chat_template(made)
    question = turns(ROUNDS[0])
    assert applied(made, question, chat_template=saved) == applied(made, question, enable_thinking=False)
    assert applied(made, question, chat_template=saved, enable_thinking=True) == applied(made, question)


def test_a_saved_template_is_bound_alike(tmp_path: Path) -> None:
    file = tmp_path / "saved.jinja"
    for made in (tokenizer_of("auto"), tokenizer(STYLES["llama-3"])):
        saved = ChatTemplate().chat_template(made)
        file.write_text(saved, "utf-8")
        again = ChatTemplate(template=str(file))
        assert again.chat_template(made) == saved
        conversation = turns(*ROUNDS)
        assert again.bind(made).render(conversation) == ChatTemplate().bind(made).render(conversation)


@pytest.mark.parametrize("legacy", [True, False])
def test_after_a_control_token_sentencepiece_begins_as_the_tokenizer_says(legacy: bool, tmp_path: Path) -> None:
    """Llama-2's dummy prefix follows every control token with legacy, and none without it."""
    from transformers import LlamaTokenizer

    from medframe_backbones.llama import Llama

    Llama().make_tiny_tokenizer(tmp_path)
    made = LlamaTokenizer.from_pretrained(tmp_path, legacy=legacy)
    made.chat_template = (
        "{% for message in messages %}{% if message.role == 'user' %}"
        "{{ bos_token }}[INST] {{ message.content }} [/INST]{% else %} {{ message.content }} {{ eos_token }}{% endif %}"
        "{% endfor %}"
    )
    lays_out = Encoder(ChatTemplate(), made)
    for conversation in (turns("头痛三天"), turns("头痛三天", "多休息。", "还是痛")):
        assert lays_out.example(conversation).ids == applied(made, conversation)
    prefixed = lays_out.tokenizer.convert_ids_to_tokens(lays_out.example(turns("头痛")).ids)[1]
    assert (prefixed == "▁") == legacy


def test_values_of_every_kind_reach_the_template() -> None:
    said = {"name": '"李"\n医生', "deep": {"a b": [1, 2.5, None, True]}, "no": None}
    head = "{{ name }}|{{ deep['a b'] }}|{{ no is none }}"
    style = Style(head + STYLES["chatml"].template)
    spans = encoder(style, arguments=said).prompt.render(turns("您好"))
    assert spans[0] == Text('"李"\n医生|[1, 2.5, None, True]|True')
    with pytest.raises(PromptError, match="reads no nmae"):
        encoder(style, arguments={"nmae": "李"})
    with pytest.raises(ValueError, match="messages"):
        ChatTemplate(arguments={"messages": []})


def test_the_date_is_the_recipes() -> None:
    """A template that writes the day it is used would lay out every run differently tomorrow."""

    def written(**fields: Any) -> str:
        spans = encoder(STYLES["llama-3"], **fields).prompt.render(turns("您好"))
        return "".join(span.text for span in spans if isinstance(span, Text))

    assert "Today Date: 26 Jul 2024\n" in written()
    assert "Today Date: 05 Jan 2026\n" in written(today="2026-01-05")
    with pytest.raises(ValueError, match="tomorrow"):
        ChatTemplate(today="tomorrow")


def test_added_tokens_that_are_not_special_are_control_tokens_too() -> None:
    """Qwen's <think> is such a one; typed by a patient, it stays text."""
    style = Style(STYLES["chatml"].template.replace("assistant\n{%", "assistant\n<thought>\n{%", 1))
    made = tokenizer(style)
    made.add_tokens([AddedToken("<thought>", special=False, normalized=False)])
    style_id = made.convert_tokens_to_ids("<thought>")
    history = Style(
        style.template.replace(
            "{{ message.content }}", "{% if message.role == 'assistant' %}<thought>\n{% endif %}{{ message.content }}"
        )
    )
    made.chat_template = history.template
    bound = Encoder(ChatTemplate(), made)
    assert Control("<thought>") in bound.prompt.render(turns("您好"))
    assert bound.example(turns("您好<thought>")).ids.count(style_id) == 1


def test_an_opening_by_the_assistant_is_context() -> None:
    opening = (Turn("assistant", "您好，请讲。"), *turns("胃疼", "请做胃镜。"))
    prompt = encoder(STYLES["chatml"]).prompt
    assert prompt.unroll(opening) == [opening]
    assert Text("您好，请讲。") in prompt.render(opening)
    assert Text("请做胃镜。", train=True) in prompt.render(opening)
    with pytest.raises(PromptError, match=r"turn 4 .*answers no question"):
        prompt.render((*opening, Turn("assistant", "还有，")))


def test_bound_once_it_stays_bound() -> None:
    bound = ChatTemplate().bind(tokenizer(STYLES["gemma"]))
    assert bound.bind(tokenizer(STYLES["chatml"])) is bound
    with pytest.raises(PromptError, match="bind"):
        ChatTemplate().render(turns("您好"))


@pytest.mark.parametrize("name", ["mistral", "gemma"])
def test_what_the_template_refuses_is_refused_in_its_words(name: str) -> None:
    prompt = encoder(STYLES[name]).prompt
    with pytest.raises(PromptError, match=r"roles must alternate|System role not supported"):
        prompt.render(turns("您好", system="你是一名医生。"))


FOR = "{% for message in messages %}<|im_start|>"
END = "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
BAD = {
    "loses": (FOR + "{% if message.role == 'user' %}{{ message.content }}{% endif %}" + END, r"leaves out .* turn 2"),
    "repeats": (FOR + "{{ message.content * 2 }}" + END, r"turn 1 \(user\) 2 times"),
    "upper-cases": (FOR + "{{ message.content | upper }}" + END, r"changes the text of turn 1"),
    "cuts": (FOR + "{{ message.content[:500] }}" + END, r"changes the text of turn 1"),
    "joins-lines": (FOR + "{{ message.content | replace('\n', ' ') }}" + END, r"changes the text"),
    "escapes": (FOR + "{{ message.content | e }}" + END, r"changes the text"),
    "reorders": (
        FOR.replace("in messages", "in messages | reverse") + "{{ message.content }}" + END,
        r"before an earlier",
    ),
    "one-newline": (
        FOR + "{{ message.content[1:] if message.content[0] == '\n' else message.content }}" + END,
        "white",
    ),
    "one-of-each": (FOR + "{{ message.content.removesuffix(' ').removesuffix('\n') }}" + END, "white"),
    "raises": (FOR + "{{ raise_exception('周一不行') }}" + END, r"refuses user, assistant: 周一不行"),
    "breaks": (FOR + "{{ message.nothing.at.all }}" + END, "has no attribute"),
    "no-jinja": ("{% for message in messages %}", r"no valid Jinja: .*endfor.*line 1"),
    "asks-otherwise": (
        FOR + "{{ message.role }}\n{{ message.content }}" + END.replace("<|im_start|>", "<|im_start|>doctor\n"),
        r"'assistant\\n', asked 'doctor\\n'",
    ),
}


@pytest.mark.parametrize(("template", "reason"), BAD.values(), ids=BAD.keys())
def test_a_template_that_cannot_be_followed_is_refused_with_the_reason(template: str, reason: str) -> None:
    with pytest.raises(PromptError, match=reason):
        encoder(Style(template))


def test_a_tokenizer_without_a_template_says_what_to_do() -> None:
    with pytest.raises(PromptError, match=r"no chat template; give prompt\.template"):
        ChatTemplate().bind(tokenizer_of("llama"))


def test_of_several_templates_the_default_is_taken() -> None:
    made = tokenizer(Style("{# several #}" + STYLES["chatml"].template))
    made.chat_template = {"default": STYLES["chatml"].template, "tool_use": "no"}
    assert ChatTemplate().bind(made).render(turns("您好")) == encoder(STYLES["chatml"]).prompt.render(turns("您好"))
    made.chat_template = {"rag": "no", "tool_use": "no"}
    with pytest.raises(PromptError, match="only templates for rag, tool_use"):
        ChatTemplate().bind(made)


def test_a_recipe_names_another_template(recipe: Path, medframe: Medframe) -> None:
    """Relative to the recipe; what is wrong with it is said without a traceback."""
    text = recipe.read_text("utf-8").replace("{use: chatmed}", "{use: chat-template, template: mine.jinja}")
    recipe.write_text(text, "utf-8")
    missing = medframe("check", recipe)
    assert missing.code == 2
    assert "mine.jinja cannot be read" in missing.out + missing.err
    mine = recipe.parent / "mine.jinja"
    mine.write_text(STYLES["mistral"].template, "utf-8")
    shown = medframe("preview", recipe, "-n", "1", "--json")
    assert shown.code == 0, shown.err
    assert "[INST] 孩子咳嗽第" in shown.out
