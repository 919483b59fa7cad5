"""Questions -> answers: many at a time, the longest first, each once."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medframe import files
from medframe.answer import Answerer
from medframe.dataset import DatasetSource
from medframe.decoding import Decoding
from medframe.errors import DataError, PromptError
from medframe.generate.journal import Journal
from medframe.generate.questions import Question, questions

if TYPE_CHECKING:
    from medframe.engine.request import Request
    from medframe.trained import Opened

Told = Callable[[int, int], None]
"""Called with the number of answers that there are and how many there will be."""


def generate(
    opened: Opened,
    source: Path,
    output: Path,
    decoding: Decoding,
    seed: int = 0,
    tokens: int = 16384,
    reads: DatasetSource | None = None,
    told: Told = lambda done, of: None,
    anew: bool = False,
) -> Counter[str]:
    """Answer every row of the file; `output` then holds a JSON line for each, in order. How many ended how.

    A row that cannot be read, laid out or answered is written with `error`, and the others go on. The answers that
    have come are kept beside the output: called again, it goes on without repeating or losing one, unless it is to
    begin `anew`. Each answer depends on its own row, its place and `seed` alone. `tokens` is the most that is held in
    memory at a time, questions and answers. DataError and RunError as `questions` and `Journal` say.
    """
    if output.resolve() in [file.resolve() for file in files.find(str(source))]:
        raise DataError(f"{output}: the questions are read from there; name another file for the answers")
    asked = list(questions(source, reads))
    if not asked:
        raise DataError(f"{source}: holds no rows")
    of = {
        "model": opened.fingerprint,
        "weights_dtype": opened.backbone.weights_dtype,
        "format": opened.manifest["prompt"],
        "input": files.fingerprint(files.find(str(source))),
        "decoding": {**asdict(decoding), "stop": list(decoding.stop)},
        "seed": seed,
        "source": reads and repr(reads),
    }
    with Journal(output, of, anew) as journal:
        told(len(journal), len(asked))
        missing = [number for number in range(len(asked)) if number not in journal]
        if missing:
            answerer = Answerer(opened.model(), opened.encoder)
            requests: dict[int, Request] = {}
            for number in missing:
                try:
                    requests[number] = _request(answerer, asked[number], decoding, f"{seed}/{number}")
                except PromptError as error:
                    journal.add(number, {**_told(asked[number]), "error": str(error)})
            numbers = {id(request): number for number, request in requests.items()}
            for request in _answered(answerer.model, list(requests.values()), tokens):
                number = numbers[id(request)]
                journal.add(number, {**_told(asked[number]), **_answer(request)})
                told(len(journal), len(asked))
        return journal.finish()


def _request(answerer: Answerer, question: Question, decoding: Decoding, seed: str) -> Request:
    if question.why:
        raise PromptError(question.why)
    return answerer.request(question.turns, decoding, seed)


def _answered(model: Any, requests: Sequence[Request], tokens: int) -> Iterator[Request]:
    """The requests in the order in which they end, the longest having been begun first."""
    import torch

    from medframe.engine.beams import searched
    from medframe.engine.engine import Engine

    waiting = deque(sorted(requests, key=lambda request: -request.longest))
    if requests and requests[0].decoding.num_beams > 1:
        while waiting:
            width = waiting[0].longest * waiting[0].decoding.num_beams
            some = [waiting.popleft() for _ in range(min(len(waiting), max(1, tokens // width)))]
            searched(model, some)
            yield from some
        return
    engine = Engine(model, tokens)
    at_work: list[Request] = []
    while waiting or at_work:
        while waiting and engine.fits(waiting[0]):
            at_work.append(waiting.popleft())
            engine.add(at_work[-1])
        try:
            ended = [request for request in engine.step() if request.finish]
        except torch.OutOfMemoryError:
            if len(at_work) == 1:
                at_work[0].end("broken")
                ended = list(at_work)
            else:  # fewer at a time, and those that were at work once more
                tokens, ended = sum(request.longest for request in at_work) // 2, []
                waiting.extendleft(reversed(at_work))
                for request in at_work:
                    request.begin()
                at_work = []
            engine = Engine(model, tokens)
        at_work = [request for request in at_work if request not in ended]
        yield from ended


def _told(question: Question) -> dict[str, Any]:
    told: dict[str, Any] = {"where": str(question.where)}
    if question.id is not None:
        told["id"] = question.id
    told["messages"] = [{"role": turn.role, "content": turn.text} for turn in question.turns]
    if question.expected is not None:
        told["expected"] = question.expected
    return told


def _answer(request: Request) -> dict[str, Any]:
    if request.finish == "broken":
        return {"error": "the model computes no numbers for it, or its memory does not hold it even alone"}
    return {
        "answer": request.said.strip(),
        "finish": request.finish,
        "tokens": {"question": len(request.ids), "answer": len(request.tokens)},
    }
