"""What clients ask for: OpenAI's API, ChatMed's, and what operators and the page want to know."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from medframe.dataset import Turn
from medframe.decoding import Decoding
from medframe.engine import request as engine
from medframe.errors import PromptError, TooLong
from medframe.serve.answering import Exchange
from medframe.serve.asked import Chat, Completion, Legacy, Refused
from medframe.serve.audit import Audit
from medframe.serve.metrics import Metrics
from medframe.serve.models import Served
from medframe.serve.remote import Remote
from medframe.serve.scheduler import Overloaded, Scheduler
from medframe.serve.settings import Settings
from medframe.serve.told import Answer

T = TypeVar("T", bound=BaseModel)

DISCLAIMER = {
    "zh": "本模型的回答不能代替医生进行医学诊断和给出医学建议。如有需要，请咨询专业医生或前往医院就诊。",
    "en": "The model's answers do not replace a physician's diagnosis or advice. If in need, see a doctor.",
}
"""What the authors of all three published systems say of their models."""


@dataclass(frozen=True)
class Service:
    """The endpoints."""

    served: dict[str, Served]
    settings: Settings
    audit: Audit
    scheduler: Scheduler | Remote
    metrics: Metrics = field(init=False)

    def __post_init__(self) -> None:
        metrics = Metrics(lambda: self.scheduler.running, lambda: self.scheduler.waiting)
        object.__setattr__(self, "metrics", metrics)

    async def health(self) -> dict[str, str]:
        """Whether the process answers at all."""
        return {"status": "ok"}

    async def ready(self) -> Response:
        """Whether a question to one of the models would be answered."""
        if not self.scheduler.alive:
            return JSONResponse({"status": "ended"}, 503)
        for name in self.served:
            with suppress(Overloaded):
                self.scheduler.check(name, 1)
                return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "overloaded"}, 503)

    async def numbers(self) -> Response:
        """For Prometheus."""
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(self) -> dict[str, Any]:
        """All names."""
        return {"object": "list", "data": [_listed(each) for each in self.served.values()]}

    async def model(self, name: str) -> dict[str, Any]:
        """One of them."""
        return _listed(self._named(name))

    async def page_settings(self) -> dict[str, Any]:
        """What the page needs to know before it has a key."""
        return {
            "title": self.settings.title,
            "key_needed": bool(self.settings.keys),
            "disclaimer": DISCLAIMER,
            "tiny": any(each.opened.is_tiny for each in self.served.values()),
            "max_tokens": self.settings.limits.new_tokens,
        }

    async def chat(self, request: Request) -> Response:
        """/v1/chat/completions."""
        asked = await self._read(request, Chat)
        served = self._named(asked.model)
        asked.check(self.settings.limits.choices)
        decoding = asked.decoding(served.decoding, self.settings.limits.new_tokens)
        turns, likeliest = asked.turns(self.settings.ignore_system), asked.likeliest()
        requests = self._laid_out(served, turns, decoding, asked.seed, asked.n)
        for each in requests:
            each.logprobs = likeliest
        answer = Answer("chat", served.name, served.encoder.tokenizer, each=asked.n)
        counted = bool(asked.stream_options and asked.stream_options.include_usage)
        return await self._answer(request, served, answer, requests, asked.stream, counted)

    async def completion(self, request: Request) -> Response:
        """/v1/completions: what the model writes after a text, laid out by no format."""
        asked = await self._read(request, Completion)
        served = self._named(asked.model)
        asked.check(self.settings.limits.choices)
        decoding = asked.decoding(served.decoding, self.settings.limits.new_tokens)
        prompts = asked.prompts()
        if len(prompts) * asked.n > self.settings.limits.choices:
            raise Refused(f"at most {self.settings.limits.choices} answers may be asked for at a time", "prompt")
        requests = []
        for prompt in prompts:
            ids = self._ids(served, prompt)
            for index in range(asked.n):
                each = served.answerer.after(ids, decoding, f"{_seed(asked.seed)}/{index}")
                each.logprobs = asked.logprobs
                each.ends |= frozenset(asked.stop_token_ids)
                requests.append(each)
        answer = Answer("text", served.name, served.encoder.tokenizer, asked.return_token_ids, asked.n)
        counted = bool(asked.stream_options and asked.stream_options.include_usage)
        return await self._answer(request, served, answer, requests, asked.stream, counted)

    async def chatmed(self, request: Request) -> Response:
        """ChatMed's own service: {query, max_new_tokens} in, {query, response} out, by the first model."""
        asked = await self._read(request, Legacy)
        served = next(iter(self.served.values()))
        longest = min(asked.max_new_tokens or served.decoding.max_new_tokens, self.settings.limits.new_tokens)
        decoding = replace(served.decoding, max_new_tokens=longest)
        requests = self._laid_out(served, [Turn("user", asked.question())], decoding, None, 1)
        answer = Answer("chat", served.name, served.encoder.tokenizer)
        told = await self._answer(request, served, answer, requests, stream=False, counted=False)
        if told.status_code != 200:
            return told
        said = json.loads(bytes(told.body))["choices"][0]["message"]["content"]
        return JSONResponse({"query": asked.query, "response": said})

    def refused(self, status: int, key: str | None = None) -> None:
        """A request was refused before anything was asked of a model: it is counted, and leaves its line too."""
        self.metrics.requests.labels("", status).inc()
        self.audit.add(key=key, outcome=status)

    async def _read(self, request: Request, cls: type[T]) -> T:
        """The body; Refused where it is too large, no JSON, or not what it should be."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # What a web page elsewhere may send here without being asked is anything but JSON.
            raise Refused("the body must be application/json", status=415)
        body = bytearray()
        try:
            async with asyncio.timeout(self.settings.limits.arrival):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self.settings.limits.body:
                        raise Refused(f"the body is larger than {self.settings.limits.body:,} bytes", status=413)
        except TimeoutError:
            raise Refused("the body did not arrive in time", status=408) from None
        except ClientDisconnect:
            raise Refused("the client has gone", status=499) from None
        try:
            value = json.loads(body)
            if not isinstance(value, dict):
                raise ValueError("it is no object")
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
        except (ValueError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
            if isinstance(error, UnicodeError):
                reason = "it holds bytes, or half a character, that are no UTF-8"
            raise Refused(f"the body is no JSON object: {reason}") from None
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise Refused(f"{where}: {first['msg']}", where) from None

    def _named(self, name: str) -> Served:
        if name not in self.served:
            known = ", ".join(self.served)
            raise Refused(f"no model {name[:100]!r} here; there is {known}", "model", 404, "model_not_found")
        return self.served[name]

    def _laid_out(
        self, served: Served, turns: Sequence[Turn], decoding: Decoding, seed: int | None, count: int
    ) -> list[engine.Request]:
        chosen = _seed(seed)
        try:
            return [served.answerer.request(turns, decoding, f"{chosen}/{index}") for index in range(count)]
        except PromptError as error:
            code = "context_length_exceeded" if isinstance(error, TooLong) else None
            raise Refused(str(error), "messages", code=code) from None

    def _ids(self, served: Served, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return served.encoder.text(prompt)
        if not self.settings.token_ids:
            raise Refused("token ids may spell control tokens, and are not taken here (--token-ids)", "prompt")
        if not all(0 <= token < len(served.encoder.tokenizer) for token in prompt):
            raise Refused(f"a token is not in the vocabulary of {len(served.encoder.tokenizer)}", "prompt")
        return prompt

    async def _answer(
        self,
        http: Request,
        served: Served,
        answer: Answer,
        requests: list[engine.Request],
        stream: bool,
        counted: bool,
    ) -> Response:
        """Have them answered, at once or as a stream; Overloaded where there is no place."""
        if isinstance(self.scheduler, Remote) and any(each.logprobs is not None for each in requests):
            raise Refused("log-probabilities are not told by this engine", "logprobs")
        if not all(each.ids for each in requests):
            raise Refused("nothing is left of the prompt in tokens", "prompt")
        context = served.answerer.context
        if any(context and len(each.ids) >= context for each in requests):
            longest = max(len(each.ids) for each in requests)
            message = f"the question takes {longest} tokens; with its answer there is room for {context}"
            raise Refused(message, code="context_length_exceeded")
        answering = _Answering(self, http, answer, requests)
        try:
            self.scheduler.check(served.name, len(requests))
        except Overloaded:
            answering.tell(429)
            raise
        exchange = Exchange(
            answer=answer,
            tickets=[self.scheduler.submit(served.name, each) for each in requests],
            closing=f"\n\n{DISCLAIMER['zh']}" if self.settings.disclaimer else "",
            tell=answering.tell,
        )
        if stream:
            return exchange.stream(counted, answering.tell_first, self.settings.limits.timeout)
        return await exchange.whole(http)


@dataclass(frozen=True)
class _Answering:
    """What is counted and kept in the audit of one client's requests."""

    service: Service
    http: Request
    answer: Answer
    requests: list[engine.Request]
    began: float = field(default_factory=time.monotonic)

    def tell_first(self) -> None:
        """The first piece has come."""
        self.service.metrics.first.labels(self.answer.model).observe(time.monotonic() - self.began)

    def tell(self, outcome: int | str) -> None:
        """It has ended."""
        metrics, audit, model = self.service.metrics, self.service.audit, self.answer.model
        took, usage = time.monotonic() - self.began, self.answer.usage(self.requests)
        metrics.requests.labels(model, outcome).inc()
        if outcome == 200:
            metrics.asked.labels(model).inc(usage["prompt_tokens"])
            metrics.whole.labels(model).observe(took)
        metrics.answered.labels(model).inc(usage["completion_tokens"])
        audit.add(
            id=self.answer.id,
            key=getattr(self.http.state, "key_id", None),
            model=model,
            question=audit.hash(token for each in self.requests[:: self.answer.each] for token in each.ids),
            answers=[audit.hash(each.tokens) for each in self.requests],
            prompt_tokens=usage["prompt_tokens"],
            answer_tokens=usage["completion_tokens"],
            seconds=round(took, 3),
            outcome=outcome,
        )


def _seed(seed: int | None) -> int:
    return random.getrandbits(63) if seed is None else seed


def _listed(served: Served) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": 0, "owned_by": "medframe", "medframe": served.told()}
