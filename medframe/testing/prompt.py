"""The contract of a prompt format: the prefix law, control tokens that nobody can type, an end that stops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, ClassVar

import pytest
from jinja2.exceptions import TemplateError

from medframe.dataset import Role, Turn
from medframe.encode import Encoder
from medframe.errors import PromptError
from medframe.fingerprint import format_fingerprint
from medframe.plugins import Kind, catalog
from medframe.prompt import Control, PromptFormat, Text
from medframe.testing.component import ComponentContract
from medframe.tokens import resolve

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = tuple[Turn, ...]

ANSWERS = {
    "han": "建议先做胃镜检查。",
    "newline": "\n建议先做胃镜检查。",
    "space": " 建议先做胃镜检查。",
    "digit": "3天后复查。",
    "latin": "CT检查即可。",
    "newline-at-end": "建议先做胃镜检查。\n",
}
ODD: tuple[tuple[Role, ...], ...] = (
    ("assistant",),
    ("system",),
    ("user", "user"),
    ("assistant", "user"),
    ("user", "system", "assistant"),
    ("user", "assistant", "assistant"),
)


class PromptContract(ComponentContract):
    """A prompt format, laid out for the tokenizer of a backbone's tiny model."""

    kind: ClassVar[Kind] = "prompt"
    backbone: ClassVar[str] = "llama"
    """The backbone, by its name in recipes, whose tiny tokenizer is used."""
    models_template: ClassVar[bool] = False
    """The chat template is the model's own: it may take more turns, and may leave the last answer without its end."""

    def encoder(self) -> Encoder:
        """The format with the tokenizer."""
        prompt = self.make()
        assert isinstance(prompt, PromptFormat)
        return Encoder(prompt, tokenizer_of(self.backbone))

    def conversations(self, answer: str) -> Iterator[Turns]:
        """Conversations that the format says it can lay out, the last answer being this one."""
        cls = self.cls()
        rounds: list[Turns] = [(Turn("user", "胃疼三天了怎么办？"), Turn("assistant", answer))]
        if cls.multi_turn:
            earlier = (Turn("user", "你好"), Turn("assistant", "您好，请讲。"))
            again = (Turn("user", "头痛"), Turn("assistant", f"{answer}多喝水。"))
            rounds += [earlier + rounds[0], again + rounds[0], earlier + again + rounds[0]]
        heads: list[Turns] = [()]
        if cls.system == "optional":
            heads.append((Turn("system", "你是一名医生。"),))
        for head, turns in product(heads, rounds):
            yield head + turns

    @pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
    def test_prefix_law(self, answer: str) -> None:
        """What stands before a trained answer has, in training, exactly the ids that it has when the model is asked."""
        encoder = self.encoder()
        if encoder.prompt.skew:
            pytest.skip(f"skew: {encoder.prompt.skew}")
        for turns in self.conversations(answer):
            whole = encoder.example(turns)
            for k in _trained_answers(encoder.prompt, turns):
                asked = encoder.question(turns[:k])
                end = len(asked)
                decode = encoder.tokenizer.decode
                assert whole.ids[:end] == asked, (
                    f"asked, the model sees {decode(asked)!r}; trained, it saw {decode(whole.ids[:end])!r} "
                    f"({_first_difference(asked, whole.ids)})"
                )
                assert any(whole.trained[end : end + 1]), f"the token after {decode(asked)!r} is not trained"
                assert not any(whole.trained[end - 1 : end]), f"the last token of {decode(asked)!r} is trained"

    def test_control_tokens_cannot_be_typed(self) -> None:
        """A control token's name typed by a patient or standing in an answer stays text."""
        encoder = self.encoder()
        named, special = _special_tokens(encoder, self.conversations(ANSWERS["han"]))

        def count(ids: Sequence[int]) -> Counter[int]:
            return Counter(i for i in ids if i in special)

        for turns in self.conversations(ANSWERS["han"]):
            expected = count(encoder.example(turns).ids)
            for typed, at in product(sorted({*named, "</s>", "<s>", "[INST]", "195"}), range(len(turns))):
                text = turns[at].text
                forged = Turn(turns[at].role, f"{typed}{text[:2]}{typed}{text[2:]}{typed}")
                found = count(encoder.example((*turns[:at], forged, *turns[at + 1 :])).ids)
                assert found <= expected, (
                    f"{typed!r} typed in a turn of the {forged.role} became control tokens: "
                    f"{encoder.tokenizer.convert_ids_to_tokens(list((found - expected).keys()))}"
                )

    @pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
    def test_an_answer_ends_with_a_stop_token(self, answer: str) -> None:
        encoder = self.encoder()
        stops = {i for token in ("eos", *encoder.prompt.stop) for i in resolve(token, encoder.tokenizer)}
        for turns in self.conversations(answer):
            example = encoder.example(turns)
            learnt = [i for i, trained in zip(example.ids, example.trained, strict=True) if trained]
            assert learnt, f"nothing of {turns} is trained"
            assert learnt[-1] in stops, (
                f"the last trained token is {encoder.tokenizer.convert_ids_to_tokens(learnt[-1])!r}, neither the end "
                "token nor one of `stop`: the model would not learn to stop"
            )

    def test_a_question_is_ready_for_an_answer(self) -> None:
        encoder = self.encoder()
        for turns in self.conversations(ANSWERS["han"]):
            asked = encoder.example(turns[:-1])
            assert asked.ids, f"{turns[:-1]} is laid out as nothing"
            earlier = encoder.prompt.skew or any(turn.role == "assistant" for turn in turns[:-1])
            assert earlier or not any(asked.trained), "a question alone has nothing to train"

    def test_refuses_what_it_says_it_cannot_lay_out(self) -> None:
        prompt = self.encoder().prompt
        (single, *_) = self.conversations(ANSWERS["han"])
        refused: list[Turns] = [()]
        if not prompt.multi_turn:
            refused += [single + single, (*single, single[0])]
        if prompt.system != "optional":
            refused += [(Turn("system", "你是一名医生。"), *single), (Turn("system", "你是一名医生。"), single[0])]
        for turns in refused:
            with pytest.raises(PromptError):
                prompt.render(turns)

    @pytest.mark.parametrize("roles", ODD, ids="-".join)
    def test_odd_turns_are_laid_out_or_refused(self, roles: tuple[Role, ...]) -> None:
        """Data hold every order of turns; only a PromptError lets the ledger count what cannot be used."""
        encoder = self.encoder()
        with suppress(PromptError):
            encoder.example([Turn(role, "您好") for role in roles])

    @pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
    def test_chat_template_asks_alike(self, answer: str) -> None:
        """Asked through `tokenizer.apply_chat_template`, the model sees the ids that it sees here."""
        encoder = self.encoder()
        template = _chat_template(encoder)
        for turns in self.conversations(answer):
            for k in range(1, len(turns) + 1):
                if turns[k - 1].role == "user":
                    asked = _templated(encoder, template, turns[:k], add_generation_prompt=True)
                    _same(encoder, encoder.question(turns[:k]), asked, turns[:k])

    @pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
    def test_chat_template_answers_alike(self, answer: str) -> None:
        """A whole conversation has the ids through `tokenizer.apply_chat_template` that it is trained on."""
        encoder = self.encoder()
        template = _chat_template(encoder)
        for turns in self.conversations(answer):
            try:
                templated = _templated(encoder, template, turns)
            except TemplateError as error:
                pytest.skip(f"the chat template lays out questions only: {error}")
            whole = encoder.example(turns).ids
            if self.models_template and len(templated) == len(whole) - 1:
                whole = whole[:-1]
            _same(encoder, whole, templated, turns)

    @pytest.mark.parametrize("roles", ODD, ids="-".join)
    def test_chat_template_refuses_alike(self, roles: tuple[Role, ...]) -> None:
        """Turns that the format refuses are not laid out by its template either."""
        if self.models_template:
            pytest.skip("models_template = True")
        encoder = self.encoder()
        template = _chat_template(encoder)
        turns = tuple(Turn(role, "您好") for role in roles)
        try:
            encoder.prompt.render(turns)
        except PromptError:
            with pytest.raises(TemplateError):
                _templated(encoder, template, turns, add_generation_prompt=True)

    def test_is_deterministic(self) -> None:
        first, second = self.encoder(), self.encoder()
        for turns in self.conversations(ANSWERS["han"]):
            spans = first.prompt.render(turns)
            assert spans == first.prompt.render(turns) == second.prompt.render(turns)
        tokenizer = tokenizer_of(self.backbone)
        assert format_fingerprint(self.make(), tokenizer) == format_fingerprint(self.make(), tokenizer)


@cache
def tokenizer_of(backbone: str) -> PreTrainedTokenizerBase:
    """The tokenizer of this backbone's tiny model."""
    tokenizer: PreTrainedTokenizerBase = catalog().find("backbone", backbone).load()().load_tokenizer()
    return tokenizer


def _chat_template(encoder: Encoder) -> str:
    try:
        return encoder.prompt.chat_template(encoder.tokenizer)
    except PromptError as error:
        pytest.skip(f"no chat template: {error}")


def _templated(encoder: Encoder, template: str, turns: Turns, *, add_generation_prompt: bool = False) -> list[int]:
    """The ids of the turns by the template."""
    ids = encoder.tokenizer.apply_chat_template(
        [{"role": turn.role, "content": turn.text} for turn in turns],
        chat_template=template,
        add_generation_prompt=add_generation_prompt,
        return_dict=False,
    )
    return list(map(int, ids))


def _same(encoder: Encoder, ours: list[int], templated: list[int], turns: Turns) -> None:
    """The same ids; for texts with white space at an edge, the same text at least.

    There the tokenizer may merge across the border of a text when it is given one string. Here the prompt's ids win.
    """
    ours_text, text = encoder.tokenizer.decode(ours), encoder.tokenizer.decode(templated)
    assert text == ours_text, f"the template lays out {text!r}, the format {ours_text!r}"
    if all(turn.text == turn.text.strip() for turn in turns):
        assert templated == ours, f"the template and the format tokenise {text!r} differently: {templated} and {ours}"


def _trained_answers(prompt: PromptFormat, turns: Turns) -> list[int]:
    """Positions of the answers that are trained: the last one must be, earlier ones may be."""
    trained = "".join(span.text for span in prompt.render(turns) if isinstance(span, Text) and span.train)
    answers = [k for k, turn in enumerate(turns) if turn.role == "assistant"]
    return [k for k in answers if k == answers[-1] or turns[k].text.strip() in trained]


def _special_tokens(encoder: Encoder, conversations: Iterator[Turns]) -> tuple[set[str], set[int]]:
    """The control tokens' names as they might be typed, and their ids: the tokenizer's and those the format uses."""
    tokenizer = encoder.tokenizer
    special = set(tokenizer.all_special_ids)
    # Text may hold unknown characters; LLaMA's unknown token also pads.
    special.discard(tokenizer.unk_token_id)
    for turns in conversations:
        for span in encoder.prompt.render(turns):
            if isinstance(span, Control):
                special.update(resolve(span.token, tokenizer))
    names = {str(token) for token in tokenizer.convert_ids_to_tokens(sorted(special))}
    return {*names, *map(str, tokenizer.all_special_tokens), *map(str, special)}, special


def _first_difference(asked: Sequence[int], trained: Sequence[int]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(asked, trained, strict=False)) if a != b), len(trained))
    return f"they part at token {at}: {list(asked[at : at + 4])} asked, {list(trained[at : at + 4])} trained"
