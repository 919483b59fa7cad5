"""vLLM as the engine: medframe lays out and asks with token ids, never with messages, and streams the answer on."""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from typing import Any

import httpx

from medframe.engine.request import Request
from medframe.serve.limits import Limits
from medframe.serve.scheduler import Failed, Overloaded, Ticket, TimedOut


class Remote:
    """What `Scheduler` is, with the answers written by a server that has vLLM's /v1/completions.

    Drawing and penalties are that server's; the text is made here, from its token ids. The limits hold here.
    """

    def __init__(self, url: str, key: str | None, limits: Limits) -> None:
        self._limits = limits
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # What patients ask goes to that server alone: to no proxy that the environment names.
        self._client = httpx.AsyncClient(
            base_url=url.rstrip("/").removesuffix("/v1"),
            headers=headers,
            timeout=limits.timeout,
            limits=httpx.Limits(),
            trust_env=False,
        )
        self._places = asyncio.Semaphore(limits.concurrent)
        self._tasks: set[asyncio.Task[None]] = set()
        self.running = 0
        self.alive = True

    @property
    def waiting(self) -> int:
        """Requests that have no place yet."""
        return len(self._tasks) - self.running

    def check(self, model: str, requests: int) -> None:
        """Overloaded where so many more would have neither a place nor one in the queue, which all models share."""
        if len(self._tasks) + requests > self._limits.concurrent + self._limits.waiting:
            raise Overloaded(1)

    def submit(self, model: str, request: Request) -> Ticket:
        """Have it answered; its `answered` gives the answer."""
        ticket = Ticket(model, request, time.monotonic() + self._limits.timeout, asyncio.get_running_loop())
        ticket.task = task = asyncio.create_task(self._ask(ticket))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return ticket

    async def end(self) -> None:
        """Answer no more."""
        self.alive = False
        for task in self._tasks:
            task.cancel()
        await self._client.aclose()

    async def _ask(self, ticket: Ticket) -> None:
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + self._limits.timeout), self._places:
                self.running += 1
                try:
                    await self._stream(ticket)
                finally:
                    self.running -= 1
        except TimeoutError:
            ticket.fail(TimedOut(f"not answered within {self._limits.timeout:g} seconds"))
        except Failed as error:
            ticket.fail(error)
        except Exception as error:  # it may be no vLLM at all, and answer anything
            ticket.fail(Failed(f"the engine did not answer: {type(error).__name__}"))

    async def _stream(self, ticket: Ticket) -> None:
        request = ticket.request
        async with self._client.stream("POST", "/v1/completions", json=_body(ticket.model, request)) as told:
            if told.status_code != 200:
                raise Failed(f"the engine refused: {told.status_code}")
            async for line in told.aiter_lines():
                if request.finish:
                    return  # which closes the stream, and frees the engine's place
                if line.startswith("data: ") and line != "data: [DONE]":
                    _take(request, json.loads(line.removeprefix("data: ")))
                    ticket.wake()
        if not request.finish:
            raise Failed("the engine ended in the middle of the answer")


def _body(model: str, request: Request) -> dict[str, Any]:
    """What vLLM's /v1/completions understands."""
    decoding = request.decoding
    return {
        "model": model,
        "prompt": request.ids,
        "max_tokens": decoding.max_new_tokens,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "top_k": decoding.top_k or -1,
        "repetition_penalty": decoding.repetition_penalty,
        "seed": zlib.crc32(str(request.seed).encode()),
        "stop_token_ids": sorted(request.ends),
        "stream": True,
        "return_token_ids": True,
    }


def _take(request: Request, chunk: dict[str, Any]) -> None:
    if "error" in chunk:
        raise Failed("the engine failed in the middle of the answer")
    for choice in chunk["choices"]:
        for token in choice.get("token_ids") or ():
            if not request.finish:
                request.take(token)
        if choice["finish_reason"] and not request.finish:
            request.end("length" if choice["finish_reason"] == "length" else "stop")
