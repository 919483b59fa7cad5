"""Turns -> ids and labels; the only place that tokenises and masks. What is too long, `shorten` makes fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Literal

from medframe.dataset import BadRow, Sample, Turn, Where
from medframe.errors import PromptError, TooLong
from medframe.prompt import Control, PromptFormat, Span
from medframe.shorten import Overflow, flat, rounds_of, shorten
from medframe.tokens import resolve, text_only

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 1000
"""Samples handed to the tokenizer at a time: enough for its threads, little enough to stream."""


@dataclass(kw_only=True)
class Limits:
    """How long a sample may be, and what happens to one that cannot be used."""

    max_length: int | None = 2048
    """Most tokens in a sample; null: any length."""
    on_overflow: Literal["drop_turns", "cut", "windows", "skip", "keep_first", "truncate"] = "drop_turns"
    """Too long: drop the oldest rounds | then cut the start of a lone question | make several samples | skip.

    As published: keep_first, the turns after the last answer that fits are dropped (DISC-MedLLM) | truncate, the ids
    are cut where they reach the limit, and with them the end of the answer and its end token (BenTsao).
    """
    on_bad_row: Literal["stop", "skip"] = "stop"
    """A row that cannot be read: stop, or skip and count it."""
    on_unlearnable: Literal["skip", "stop"] = "skip"
    """A row with nothing to learn, or still too long: skip and count it, or stop."""
    on_repeat: Literal["keep", "skip"] = "keep"
    """A row that says just what an earlier row of the same section says: keep and count it, or skip it."""

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"max_length must be at least 2, not {self.max_length}")


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids, and for each whether it is trained, 1 or 0; both of the same length."""

    ids: list[int]
    trained: bytes

    @property
    def supervised(self) -> int:
        """Tokens with a loss. The first is never one: nothing stands before it to predict it from."""
        return self.trained.count(1, 1)


@dataclass(frozen=True, slots=True)
class Encoded:
    """What one sample became."""

    where: Where
    examples: tuple[Example, ...]
    shortened: str | None = None
    """What was left out to make it fit, in words."""
    lost: int = 0
    """Supervised tokens left out."""
    repeats: bool = False
    """An earlier row of the same source became the same."""


@dataclass(frozen=True, slots=True)
class Unlearnable:
    """A sample that was read and cannot be learnt from."""

    where: Where
    why: str


class Encoder:
    """One prompt format with one tokenizer."""

    def __init__(self, prompt: PromptFormat, tokenizer: PreTrainedTokenizerBase, limits: Limits | None = None) -> None:
        self.tokenizer = tokenizer
        self.prompt = prompt.bind(tokenizer)
        self.limits = limits or Limits(max_length=None)
        self._backend = text_only(tokenizer)
        self._anchors: dict[str, list[int]] = {}
        self._controls: dict[str | int, list[int]] = {}

    def encode(self, samples: Iterable[Sample | BadRow]) -> Iterator[Encoded | Unlearnable | BadRow]:
        """What becomes of each sample, in order; bad rows are passed on."""
        stream = iter(samples)
        while chunk := list(islice(stream, CHUNK)):
            yield from self._chunk(chunk)

    def example(self, turns: Sequence[Turn]) -> Example:
        """The conversation as it is, whatever its length."""
        return self._examples([self.prompt.render(turns)])[0]

    def question(self, turns: Sequence[Turn], room: int | None = None) -> list[int]:
        """The ids that the assistant answers: exactly those before its answer in training.

        The oldest rounds are left out until `room` tokens hold the rest; TooLong when the last does not fit.
        """
        system, rounds = rounds_of(turns)
        ids = self.example([*system, *flat(rounds)]).ids
        if room is None or len(ids) <= room:
            return ids
        # By halves: a conversation of a thousand turns is not laid out five hundred times.
        too_many, enough = 0, len(rounds)
        while enough - too_many > 1:
            left_out = (too_many + enough) // 2
            fewer = self.example([*system, *flat(rounds[left_out:])]).ids
            if len(fewer) > room:
                too_many, ids = left_out, fewer
            else:
                enough, fitting = left_out, fewer
        if enough == len(rounds):
            raise TooLong(f"the question alone takes {len(ids)} tokens; there is room for {room}")
        return fitting

    def text(self, text: str) -> list[int]:
        """The ids of a text that no format lays out, after the token that begins every text where there is one."""
        return [*self._resolve("bos"), *self._tokenise([text])[0]]

    def _chunk(self, chunk: list[Sample | BadRow]) -> Iterator[Encoded | Unlearnable | BadRow]:
        results: list[Encoded | Unlearnable | BadRow | None] = []
        spans: list[list[Span]] = []
        readable: list[tuple[int, Sample, str | None, list[Sequence[Turn]]]] = []
        for item in chunk:
            if isinstance(item, BadRow):
                results.append(item)
                continue
            sample, note = _answered(item)
            try:
                if sample is None:
                    raise PromptError("no answer")
                parts = self.prompt.unroll(sample.turns)
                rendered = [self.prompt.render(turns) for turns in parts]
            except PromptError as error:
                results.append(Unlearnable(item.where, str(error)))
                continue
            spans += rendered
            readable.append((len(results), sample, note, parts))
            results.append(None)
        encoded = iter(self._examples(spans))
        for index, sample, note, parts in readable:
            results[index] = self._fitted(sample, list(zip(parts, encoded, strict=False)), note)
        for result in results:
            assert result is not None
            yield result

    def _fitted(
        self, sample: Sample, parts: Sequence[tuple[Sequence[Turn], Example]], note: str | None
    ) -> Encoded | Unlearnable:
        """What becomes of a sample, given the conversations it was unrolled into and what each is as a whole."""
        supervised = sum(whole.supervised for _, whole in parts)
        if not supervised:
            return Unlearnable(sample.where, "no supervised token")
        longest = self.limits.max_length
        if len(parts) == 1 and (longest is None or len(parts[0][1].ids) <= longest):
            return Encoded(sample.where, (parts[0][1],), note)  # as nearly all are
        kept: list[Example] = []
        notes = [note] if note else []
        refused: list[str] = []
        policy = self.limits.on_overflow
        if len(parts) > 1:
            # Every answer has a conversation of its own already: no other may be made of what comes before it.
            policy = {"windows": "drop_turns", "keep_first": "skip"}.get(policy, policy)  # type: ignore[assignment]
        for turns, whole in parts:
            examples, how = self._within_limit(turns, whole, policy)
            kept += [example for example in examples if example.supervised]
            if how:
                (notes if examples else refused).append(how)
        if not kept:
            return Unlearnable(sample.where, "; ".join(dict.fromkeys(refused or ["no supervised token is left"])))
        if refused:
            notes.append(f"{len(refused)} of {len(parts)} answers left out: {refused[0]}")
        lost = supervised - sum(example.supervised for example in kept)
        return Encoded(sample.where, tuple(kept), "; ".join(dict.fromkeys(notes)) or None, max(lost, 0))

    def _within_limit(
        self, turns: Sequence[Turn], whole: Example, policy: Overflow
    ) -> tuple[list[Example], str | None]:
        """The examples of a conversation that fit, and how they came to; none, and why none does."""
        limit = self.limits.max_length
        if limit is None or len(whole.ids) <= limit:
            return [whole], None
        too_long = f"{len(whole.ids)} tokens, more than {limit}"
        try:
            kept, how = shorten(turns, limit, policy, self.example)
        except PromptError as error:
            return [], f"{too_long}, and shortened: {error}"
        return (kept, how) if any(example.supervised for example in kept) else ([], too_long + how)

    def _examples(self, rendered: Sequence[Sequence[Span]]) -> list[Example]:
        """Each list of spans as ids and labels, all texts tokenised in one call.

        A joined run of Texts is cut where `train` changes. Each part is encoded as the continuation of the text before
        it, so that what stands before an answer has the same ids whether the answer is there yet or not. Where nothing
        merges across the cut, and in every published format for LLaMA, this equals encoding the run as a whole.
        """
        texts: list[str] = []
        plans: list[list[tuple[list[int] | None, str, bool]]] = []
        for spans in rendered:
            plan: list[tuple[list[int] | None, str, bool]] = []
            for ids, text, before, train in self._parts(spans):
                plan.append((ids, before, train))
                if ids is None:
                    texts.append((before[-1:] if before else "") + text)
            plans.append(plan)
        encoded = iter(zip(texts, self._tokenise(texts), strict=True))
        examples = []
        for plan in plans:
            all_ids: list[int] = []
            trained = b""
            for control, before, train in plan:
                ids = control
                if ids is None:
                    text, ids = next(encoded)
                    if before:
                        ids = self._continued(before, text[1:], ids)
                all_ids += ids
                trained += (b"\1" if train else b"\0") * len(ids)
            examples.append(Example(all_ids, trained))
        return examples

    def _parts(self, spans: Sequence[Span]) -> Iterator[tuple[list[int] | None, str, str, bool]]:
        """(ids of a control token | None, text, the text of the same run before it, train), in order."""
        before = text = ""
        train = False
        for span in spans:
            if not isinstance(span, Control):
                if text and (span.train != train or not self.prompt.joined):
                    yield None, text, before, train
                    before, text = (before + text if self.prompt.joined else ""), ""
                text, train = text + span.text, span.train
                continue
            if text:
                yield None, text, before, train
            before = text = ""
            yield self._resolve(span.token), "", "", span.train
        if text:
            yield None, text, before, train

    def _continued(self, before: str, text: str, with_anchor: list[int]) -> list[int]:
        """The ids of `text` after `before`, given those of `text` after the last character of `before`."""
        anchor = self._anchor(before[-1])
        if with_anchor[: len(anchor)] == anchor:
            return with_anchor[len(anchor) :]
        # The tokenizer would merge across the border. What stands before keeps its ids, so that the text is
        # encoded after some other character with which it does not merge.
        head, *joint = self._tokenise([before, before + text])
        if joint[0][: len(head)] == head:
            return joint[0][len(head) :]
        for character in "\n。a1 ":
            anchor, (ids,) = self._anchor(character), self._tokenise([character + text])
            if ids[: len(anchor)] == anchor:
                return ids[len(anchor) :]
        return self._tokenise([text])[0]

    def _anchor(self, character: str) -> list[int]:
        if character not in self._anchors:
            self._anchors[character] = self._tokenise([character])[0]
        return self._anchors[character]

    def _tokenise(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text alone; control tokens spelt out in it stay text."""
        if not texts:
            return []
        if self._backend is not None:
            return [each.ids for each in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        result = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False)
        return [list(ids) for ids in result["input_ids"]]

    def _resolve(self, token: str | int) -> list[int]:
        if token not in self._controls:
            self._controls[token] = resolve(token, self.tokenizer)
        return self._controls[token]


def _answered(sample: Sample) -> tuple[Sample | None, str | None]:
    """The sample less what is asked and not answered, and what that is, in words; None when nothing is answered.

    An empty answer would be learnt as an answer.
    """
    turns = sample.turns
    if turns and turns[-1].role == "assistant" and all(t.text.strip() for t in turns if t.role == "assistant"):
        return sample, None  # as nearly all are
    end = len(turns)
    while end and (turns[end - 1].role != "assistant" or not turns[end - 1].text.strip()):
        end -= 1
    if end == 0:
        return None, None
    notes = [f"{len(turns) - end} closing turn(s) without an answer left out"] if end < len(turns) else []
    system, rounds = rounds_of(turns[:end])
    said = [[turn for turn in round_ if turn.role != "assistant" or turn.text.strip()] for round_ in rounds]
    kept = [now for was, now in zip(rounds, said, strict=True) if len(now) == len(was) or now[1:]]
    if changed := sum(len(now) < len(was) for was, now in zip(rounds, said, strict=True)):
        notes.append(f"{changed} round(s) with an empty answer left out")
    if not notes:
        return sample, None
    return replace(sample, turns=(*system, *flat(kept))), "; ".join(notes)
