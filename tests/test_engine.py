"""Answers written side by side are those that transformers writes alone, whatever joins or leaves them meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import pytest
import torch
from transformers import (
    GenerationConfig,
    RepetitionPenaltyLogitsProcessor,
    RwkvConfig,
    RwkvForCausalLM,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from medframe.answer import Answerer
from medframe.backbone import Backbone
from medframe.dataset import Turn
from medframe.decoding import Decoding
from medframe.encode import Encoder
from medframe.engine.choice import choose
from medframe.engine.engine import PREFILL, Engine
from medframe.engine.request import Request
from medframe.errors import BackboneError
from medframe.prompt import Span
from medframe_backbones.auto import Auto
from medframe_backbones.baichuan import Baichuan
from medframe_backbones.bloom import Bloom
from medframe_backbones.llama import Llama
from medframe_prompts.bentsao import BenTsaoLiterature
from medframe_prompts.chatmed import ChatMed

QUESTIONS = ["头晕怎么办？", "孩子咳嗽三天了，夜里更重，要不要去医院拍片子？" * 3, "胃疼。", "血压150/95，吃什么药好？"]
BACKBONES: dict[str, Callable[[], Backbone]] = {
    "llama": Llama,
    "bloom": Bloom,
    "baichuan": Baichuan,
    "qwen": Auto,
}


@pytest.fixture(scope="module", params=BACKBONES)
def answerer(request: pytest.FixtureRequest) -> Answerer:
    """A tiny random model, whose answers ramble on until they are cut."""
    torch.manual_seed(0)
    backbone = BACKBONES[request.param]()
    tokenizer = backbone.load_tokenizer()
    return Answerer(backbone.load_model().float().eval(), Encoder(ChatMed(), tokenizer))


def alone(answerer: Answerer, request: Request) -> list[int]:
    """What transformers answers."""
    ids = torch.tensor([request.ids])
    settings = GenerationConfig(
        do_sample=False,
        num_beams=request.decoding.num_beams,
        repetition_penalty=request.decoding.repetition_penalty,
        max_new_tokens=request.decoding.max_new_tokens,
        eos_token_id=sorted(request.ends),
        pad_token_id=answerer.encoder.tokenizer.pad_token_id,
    )
    found = answerer.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return [token for token in found[0, ids.shape[1] :].tolist() if token not in request.ends]


def requests(answerer: Answerer, **settings: Any) -> list[Request]:
    """One for each question, each answer longer than the one before."""
    return [
        answerer.request([Turn("user", question)], Decoding(max_new_tokens=5 + 6 * number, **settings), number)
        for number, question in enumerate(QUESTIONS)
    ]


def together(engine: Engine, wanted: list[Request], every: int = 3) -> None:
    """One joins after every few steps."""
    waiting, steps = list(wanted), 0
    while waiting or len(engine):
        if waiting and steps % every == 0:
            engine.add(waiting.pop(0))
        engine.step()
        steps += 1


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_answers_that_come_and_go_are_those_of_transformers_alone(answerer: Answerer, penalty: float) -> None:
    wanted = requests(answerer, repetition_penalty=penalty)
    together(Engine(answerer.model), wanted)
    assert [request.tokens for request in wanted] == [alone(answerer, request) for request in wanted]
    assert {request.finish for request in wanted} <= {"length", "stop"}


def test_one_that_is_dropped_changes_nothing_for_the_others(answerer: Answerer) -> None:
    engine, wanted = Engine(answerer.model), requests(answerer)
    for request in wanted:
        engine.add(request)
    for _ in range(4):
        engine.step()
    engine.drop(wanted[3])
    engine.drop(wanted[3])  # a second time it is not there
    while len(engine):
        engine.step()
    assert len(wanted[3].tokens) == 4
    assert [request.tokens for request in wanted[:3]] == [alone(answerer, request) for request in wanted[:3]]


def test_what_is_drawn_depends_on_the_seed_alone(answerer: Answerer) -> None:
    settings = {"temperature": 1.5, "top_k": 50, "top_p": 0.9}
    first, again = requests(answerer, **settings), requests(answerer, **settings)
    together(Engine(answerer.model), first)
    for request in again:
        together(Engine(answerer.model), [request])
    assert [request.tokens for request in first] == [request.tokens for request in again]
    other = answerer.request([Turn("user", QUESTIONS[3])], first[3].decoding, "another")
    together(Engine(answerer.model), [other])
    assert other.tokens != first[3].tokens


@pytest.mark.parametrize("answerer", ["llama"], indirect=True)
class TestOneModel:
    """What does not depend on the architecture."""

    def test_a_long_question_is_read_in_parts_and_keeps_nobody_waiting(self, answerer: Answerer) -> None:
        engine = Engine(answerer.model)
        short = answerer.request([Turn("user", "胃疼。")], Decoding(max_new_tokens=8))
        long = answerer.request([Turn("user", "咳嗽，" * 450)], Decoding(max_new_tokens=3))
        assert len(long.ids) > 2 * PREFILL
        engine.add(short)
        engine.step()
        engine.add(long)
        engine.step()
        assert (len(short.tokens), len(long.tokens)) == (2, 0)
        while len(engine):
            engine.step()
        assert [short.tokens, long.tokens] == [alone(answerer, short), alone(answerer, long)]

    def test_it_takes_no_more_than_its_room(self, answerer: Answerer) -> None:
        wanted = requests(answerer)
        engine = Engine(answerer.model, tokens=3 * wanted[1].longest)
        taken = 0
        for request in [wanted[1]] * 4:
            if engine.fits(request):
                engine.add(request)
                taken += 1
        assert taken == 3
        assert Engine(answerer.model, tokens=1).fits(wanted[0])  # alone, any request does

    def test_beams_are_those_of_transformers(self, answerer: Answerer) -> None:
        wanted = answerer.request([Turn("user", QUESTIONS[1])], Decoding(max_new_tokens=12, num_beams=4))
        said = "".join(answerer.answered(wanted))
        assert wanted.tokens == alone(answerer, wanted)
        assert said == answerer.encoder.tokenizer.decode(wanted.tokens, skip_special_tokens=True)

    def test_the_pieces_make_the_text(self, answerer: Answerer) -> None:
        for request in requests(answerer, temperature=3.0):  # rambling, and through characters of several tokens
            pieces = list(answerer.answered(request))
            assert "".join(pieces) == answerer.encoder.tokenizer.decode(request.tokens, skip_special_tokens=True)
            assert len(pieces) > 1

    def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(self, answerer: Answerer) -> None:
        whole = answerer.answer([Turn("user", "胃疼。")], Decoding(max_new_tokens=40))
        stop = whole[7:10]
        request = answerer.request([Turn("user", "胃疼。")], Decoding(max_new_tokens=40, stop=(stop, "不会来的")))
        pieces = list(answerer.answered(request))
        assert "".join(pieces) == whole[: whole.index(stop)]
        assert request.finish == "stop"
        assert len(request.tokens) < 40

    def test_a_long_conversation_loses_its_oldest_rounds_and_a_long_question_is_refused(
        self, answerer: Answerer
    ) -> None:
        from medframe.errors import PromptError

        context = answerer.context
        assert context
        request = answerer.request([Turn("user", "咳嗽" * 100)], Decoding(max_new_tokens=10 * context))
        assert request.longest == context
        with pytest.raises(PromptError, match="the question alone takes"):
            answerer.request([Turn("user", "咳嗽" * context)])

    def test_of_a_long_conversation_the_most_rounds_that_fit_are_asked_with(self, answerer: Answerer) -> None:
        class Counting(BenTsaoLiterature):
            rendered = 0

            def render(self, turns: Sequence[Turn]) -> list[Span]:
                self.rendered += 1
                return super().render(turns)

        prompt = Counting()
        encoder = Encoder(prompt, answerer.encoder.tokenizer)
        said = [[Turn("user", "咳嗽" * (n % 7 + 1)), Turn("assistant", f"第{n}天")] for n in range(300)]
        ids = [
            encoder.question([*chain.from_iterable(said[n:]), Turn("user", "还咳")]) for n in range(290, len(said) + 1)
        ]
        for room in range(len(ids[-1]), len(ids[0])):
            prompt.rendered = 0
            found = encoder.question([*chain.from_iterable(said), Turn("user", "还咳")], room)
            assert found == next(each for each in ids if len(each) <= room)
            assert prompt.rendered < 15  # of 301 that there are

    def test_log_probabilities_are_the_models_own(self, answerer: Answerer) -> None:
        request = answerer.request([Turn("user", "胃疼。")], Decoding(max_new_tokens=4, temperature=2.0))
        request.logprobs = 3
        together(Engine(answerer.model), [request])
        ids = torch.tensor([request.ids + request.tokens])
        with torch.no_grad():
            expected = answerer.model(ids).logits[0, len(request.ids) - 1 :].log_softmax(-1)
        for place, chance in enumerate(request.chances):
            assert chance.token == request.tokens[place]
            assert chance.logprob == pytest.approx(float(expected[place, chance.token]), abs=1e-4)
            assert [token for token, _ in chance.likeliest] == expected[place].topk(3).indices.tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 5},
        {"temperature": 0.9, "top_p": 0.6},
        {"temperature": 2.0, "top_p": 0.999},
        {"temperature": 0.8, "top_k": 40, "top_p": 0.5, "repetition_penalty": 1.4},
    ],
)
def test_tokens_are_drawn_as_often_as_transformers_warpers_say(settings: dict[str, Any]) -> None:
    torch.manual_seed(1)
    logits, ids = torch.randn(1, 700) * 3, [3, 4, 5, 650]
    decoding = Decoding(max_new_tokens=4000, **settings)
    scores = RepetitionPenaltyLogitsProcessor(decoding.repetition_penalty)(torch.tensor([ids]), logits.clone())
    scores = TemperatureLogitsWarper(decoding.temperature)(torch.tensor([ids]), scores)
    if decoding.top_k:
        scores = TopKLogitsWarper(decoding.top_k)(torch.tensor([ids]), scores)
    if decoding.top_p < 1:
        scores = TopPLogitsWarper(decoding.top_p)(torch.tensor([ids]), scores)
    expected = scores.softmax(-1)[0]
    counts = torch.zeros(700)
    tokenizer = Llama().load_tokenizer()
    for seed in range(3000):
        request = Request(list(ids), decoding, frozenset(), tokenizer, seed)
        choose(logits, [request])
        counts[request.tokens[0]] += 1
    assert not counts[expected == 0].any()
    assert float((counts / 3000 - expected).abs().max()) < 0.04
    assert set(counts.nonzero()[:, 0].tolist()) >= set((expected > 0.01).nonzero()[:, 0].tolist())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_end_one_answer_and_not_the_others(value: float) -> None:
    tokenizer = Llama().load_tokenizer()
    good, bad, none = (Request([1, 2], Decoding(temperature=1), frozenset(), tokenizer) for _ in range(3))
    logits = torch.randn(3, 100)
    logits[1, 7] = value
    logits[2] = -torch.inf
    choose(logits, [good, bad, none])
    assert (good.finish, len(good.tokens), bad.finish, bad.tokens) == (None, 1, "broken", [])
    assert none.finish == "broken"


@pytest.mark.parametrize("temperature", [1e-6, 1e-50, 5e-324])
def test_the_lowest_temperatures_draw_the_likeliest(temperature: float) -> None:
    logits = torch.randn(1, 100) * 30
    request = Request([1], Decoding(temperature=temperature), frozenset(), Llama().load_tokenizer())
    choose(logits, [request])
    assert request.tokens == [int(logits.argmax())]


def test_who_sees_that_an_answer_has_ended_sees_all_of_it() -> None:
    tokenizer, seen = Llama().load_tokenizer(), list[object]()

    class Watching:
        def decode(self, ids: list[int], **settings: Any) -> object:
            seen.append(request.finish)
            return tokenizer.decode(ids, **settings)

    request = Request([1], Decoding(max_new_tokens=1), frozenset(), tokenizer)
    request.tokenizer = Watching()  # type: ignore[assignment]
    request.begin()
    request.take(7)
    assert request.finish == "length"
    assert set(seen) == {None}  # another thread may look between any two lines


def test_a_model_that_keeps_a_state_instead_of_keys_and_values_is_refused() -> None:
    config = RwkvConfig(vocab_size=20, hidden_size=8, num_hidden_layers=2)
    with pytest.raises(BackboneError, match="side by side"):
        Engine(RwkvForCausalLM(config))
