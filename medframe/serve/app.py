"""The HTTP server: OpenAI's API over the scheduler, the page, and what operators ask."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from medframe.dataset import Turn
from medframe.decoding import Decoding
from medframe.engine import request as engine
from medframe.errors import PromptError, TooLong
from medframe.serve.asked import Chat, Completion, Legacy, Refused
from medframe.serve.audit import Audit
from medframe.serve.guard import Guard
from medframe.serve.limits import Limits
from medframe.serve.metrics import Metrics
from medframe.serve.models import Served
from medframe.serve.remote import Remote
from medframe.serve.scheduler import Failed, Overloaded, Scheduler, Ticket, TimedOut
from medframe.serve.told import Answer, problem

T = TypeVar("T", bound=BaseModel)

DISCLAIMER = {
    "zh": "本模型的回答不能代替医生进行医学诊断和给出医学建议。如有需要，请咨询专业医生或前往医院就诊。",
    "en": "The model's answers do not replace a physician's diagnosis or advice. If in need, see a doctor.",
}
"""What the authors of all three published systems say of their models."""

_PAGE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "txt": "text/plain"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How it is served."""

    title: str = "medframe"
    keys: Sequence[str] = ()
    """Any of them opens the API; none: it is open."""
    local: bool = True
    """Whether it listens on loopback alone."""
    limits: Limits = field(default_factory=Limits)
    ignore_system: bool = False
    """Leave system turns out instead of refusing those that a format cannot lay out."""
    token_ids: bool = False
    """Whether /v1/completions takes token ids, control tokens among them."""
    disclaimer: bool = False
    """Whether each answer ends with the disclaimer."""
    legacy: bool = False
    """Whether ChatMed's own /chatmed_generate is answered too."""


def app(served: dict[str, Served], settings: Settings, audit: Audit, remote: Remote | None = None) -> FastAPI:
    """The server's application; the models are loaded already, or `remote` has them."""
    engines = {} if remote else {name: each.engine(settings.limits) for name, each in served.items()}
    scheduler = remote or Scheduler(engines, settings.limits)
    service = _Service(served, settings, audit, scheduler)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await scheduler.end()

    made = FastAPI(
        title="medframe",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        middleware=[Middleware(Guard, keys=settings.keys, local=settings.local)],
    )
    made.get("/health")(service.health)
    made.get("/ready")(service.ready)
    made.get("/metrics")(service.numbers)
    made.get("/v1/models")(service.models)
    made.get("/v1/models/{name:path}")(service.model)
    made.post("/v1/chat/completions")(service.chat)
    made.post("/v1/completions")(service.completion)
    if settings.legacy:
        made.post("/chatmed_generate")(service.chatmed)
    made.get("/")(lambda: _page("index.html"))
    made.get("/page/settings")(service.page_settings)
    made.get("/page/{name:path}")(_page)
    made.add_exception_handler(Refused, _refused)
    made.add_exception_handler(Overloaded, _overloaded)
    made.add_exception_handler(TimedOut, _unanswered)
    made.add_exception_handler(Failed, _unanswered)
    made.add_exception_handler(HTTPException, _not_found)
    return made


@dataclass(frozen=True)
class _Service:
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
        """Whether a question would be answered."""
        try:
            self.scheduler.check(1)
        except Overloaded:
            return JSONResponse({"status": "overloaded"}, 503)
        alive = self.scheduler.alive
        return JSONResponse({"status": "ready" if alive else "ended"}, 200 if alive else 503)

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
        answer = Answer("chat", served.name, served.encoder.tokenizer)
        usage = bool(asked.stream_options and asked.stream_options.include_usage)
        return await self._answer(request, served, answer, requests, asked.stream, usage)

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
        answer = Answer("text", served.name, served.encoder.tokenizer, asked.return_token_ids)
        usage = bool(asked.stream_options and asked.stream_options.include_usage)
        return await self._answer(request, served, answer, requests, asked.stream, usage)

    async def chatmed(self, request: Request) -> Response:
        """ChatMed's own service: {query, max_new_tokens} in, {query, response} out, by the first model."""
        asked = await self._read(request, Legacy)
        served = next(iter(self.served.values()))
        decoding = served.decoding
        if asked.max_new_tokens:
            decoding = replace(decoding, max_new_tokens=min(asked.max_new_tokens, self.settings.limits.new_tokens))
        requests = self._laid_out(served, [Turn("user", asked.question())], decoding, None, 1)
        answer = Answer("chat", served.name, served.encoder.tokenizer)
        told = await self._answer(request, served, answer, requests, stream=False, usage=False)
        if told.status_code != 200:
            return told
        said = json.loads(bytes(told.body))["choices"][0]["message"]["content"]
        return JSONResponse({"query": asked.query, "response": said})

    async def _read(self, request: Request, cls: type[T]) -> T:
        """The body; Refused where it is too large, no JSON, or not what it should be."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # What a web page elsewhere may send here without being asked is anything but JSON.
            raise Refused("the body must be application/json", status=415)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > self.settings.limits.body:
                raise Refused(f"the body is larger than {self.settings.limits.body:,} bytes", status=413)
        try:
            value = json.loads(body)
            if not isinstance(value, dict):
                raise ValueError("it is no object")
        except (ValueError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
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
        usage: bool,
    ) -> Response:
        """Have them answered, at once or as a stream; Overloaded where there is no place."""
        if isinstance(self.scheduler, Remote) and any(each.logprobs is not None for each in requests):
            raise Refused("log-probabilities are not told by this engine", "logprobs")
        context = served.answerer.context
        if any(context and len(each.ids) >= context for each in requests):
            message = f"the question takes {len(requests[0].ids)} tokens; the model's context is {context}"
            raise Refused(message, code="context_length_exceeded")
        began = time.monotonic()
        key = getattr(http.state, "key_id", None)

        def done(status: int | str) -> None:
            self._tell(served.name, answer.id, key, requests, status, time.monotonic() - began)

        try:
            self.scheduler.check(len(requests))
        except Overloaded:
            done(429)
            raise
        tickets = [self.scheduler.submit(served.name, each) for each in requests]
        if stream:
            events = self._events(served.name, answer, tickets, usage, done, began)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        whole: asyncio.Future[Any] = asyncio.gather(*(self._whole(ticket) for ticket in tickets))
        left: asyncio.Future[Any] = asyncio.create_task(_left(http))
        try:
            await asyncio.wait({whole, left}, return_when=asyncio.FIRST_COMPLETED)
            if not whole.done():
                done("left")
                return Response(status_code=499)
            await whole
        except (TimedOut, Failed) as error:
            done(type(error).__name__)
            raise
        finally:
            for ticket in tickets:
                ticket.gone = True
            whole.cancel()
            left.cancel()
            with suppress(asyncio.CancelledError, TimedOut, Failed):
                await whole
        done(200)
        return JSONResponse(answer.whole(requests, self._closing()))

    async def _whole(self, ticket: Ticket) -> None:
        async for _ in ticket.answered():
            pass

    async def _events(
        self,
        name: str,
        answer: Answer,
        tickets: list[Ticket],
        usage: bool,
        done: Callable[[int | str], None],
        began: float,
    ) -> AsyncIterator[str]:
        """Server-sent events; whoever leaves ends it, and frees the places."""
        outcome: int | str = "left"
        queue: asyncio.Queue[dict[str, Any] | Exception | None] = asyncio.Queue()

        async def write(index: int, ticket: Ticket) -> None:
            told = 0
            try:
                async with aclosing(ticket.answered()) as pieces:  # type: ignore[type-var]
                    async for piece in pieces:
                        upto = len(ticket.request.tokens)
                        queue.put_nowait(answer.piece(index, piece, ticket.request, told))
                        told = upto
                if closing := self._closing():
                    queue.put_nowait(answer.piece(index, closing, ticket.request, told))
                queue.put_nowait(answer.ended(index, ticket.request, told))
                queue.put_nowait(None)
            except (TimedOut, Failed) as error:
                queue.put_nowait(error)

        writers = [asyncio.create_task(write(index, ticket)) for index, ticket in enumerate(tickets)]
        try:
            if answer.kind == "chat":
                for index in range(len(tickets)):
                    yield _event(answer.begun(index))
            left, first = len(tickets), True
            while left:
                event = await queue.get()
                if event is None:
                    left -= 1
                elif isinstance(event, Exception):
                    outcome = type(event).__name__
                    yield _event(problem(str(event), 500))
                    return
                else:
                    if first:
                        self.metrics.first.labels(name).observe(time.monotonic() - began)
                        first = False
                    yield _event(event)
            if usage:
                yield _event(answer.used([ticket.request for ticket in tickets]))
            outcome = 200
            yield "data: [DONE]\n\n"
        finally:
            for ticket, writer in zip(tickets, writers, strict=True):
                ticket.gone = True
                writer.cancel()
            done(outcome)

    def _closing(self) -> str:
        return f"\n\n{DISCLAIMER['zh']}" if self.settings.disclaimer else ""

    def _tell(
        self, model: str, name: str, key: str | None, requests: list[engine.Request], outcome: int | str, took: float
    ) -> None:
        answered = sum(len(each.tokens) for each in requests)
        self.metrics.requests.labels(model, outcome).inc()
        if outcome == 200:
            self.metrics.asked.labels(model).inc(len(requests[0].ids))
            self.metrics.whole.labels(model).observe(took)
        self.metrics.answered.labels(model).inc(answered)
        self.audit.add(
            id=name,
            key=key,
            model=model,
            question=self.audit.hash(requests[0].ids),
            answers=[self.audit.hash(each.tokens) for each in requests],
            prompt_tokens=len(requests[0].ids),
            answer_tokens=answered,
            seconds=round(took, 3),
            outcome=outcome,
        )


async def _left(http: Request) -> None:
    """Returns when the client has gone."""
    while not await http.is_disconnected():
        await asyncio.sleep(0.2)


def _seed(seed: int | None) -> int:
    return random.getrandbits(63) if seed is None else seed


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _listed(served: Served) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": 0, "owned_by": "medframe", "medframe": served.told()}


def _page(name: str) -> Response:
    """A file of the page."""
    file = files("medframe.serve") / "page" / name
    known = _TYPES.get(name.rpartition(".")[2])
    if known is None or ".." in name or "/" in name.removeprefix("vendor/") or not file.is_file():
        raise HTTPException(404)
    return Response(file.read_bytes(), media_type=f"{known}; charset=utf-8", headers=_PAGE)


async def _refused(_: Request, error: Any) -> Response:
    return JSONResponse(problem(error.message, error.status, error.param, error.code), error.status)


async def _overloaded(_: Request, error: Any) -> Response:
    return JSONResponse(problem(str(error), 429, code="overloaded"), 429, {"Retry-After": str(error.seconds)})


async def _unanswered(_: Request, error: Any) -> Response:
    status = 504 if isinstance(error, TimedOut) else 500
    return JSONResponse(problem(str(error), status), status)


async def _not_found(request: Request, error: Any) -> Response:
    message = error.detail if error.status_code != 404 else f"there is nothing at {request.url.path[:100]}"
    return JSONResponse(problem(message, error.status_code), error.status_code, error.headers)
