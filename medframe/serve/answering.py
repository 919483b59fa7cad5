"""Requests -> an answer over HTTP, at once or as a stream, which frees its places however it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import Response
from fastapi.responses import JSONResponse, StreamingResponse

from medframe.engine.request import Request
from medframe.serve.scheduler import Failed, Ticket, TimedOut
from medframe.serve.told import Answer, problem

if TYPE_CHECKING:
    from fastapi import Request as HTTP
    from starlette.types import Receive, Scope, Send

Tell = Callable[[int | str], None]
"""Called once, with how it ended: a status, `left`, or the name of an error."""
_UNREAD = 60
"""Seconds that a client has beyond the time-out to fetch what was streamed to it."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One client's requests while they are answered."""

    answer: Answer
    tickets: Sequence[Ticket]
    closing: str
    """What each answer ends with."""
    tell: Tell

    @property
    def requests(self) -> list[Request]:
        """One for each answer."""
        return [ticket.request for ticket in self.tickets]

    async def whole(self, http: HTTP) -> Response:
        """The answer at once; TimedOut, Failed. Who leaves before ends it."""
        outcome: int | str = "left"
        answered: asyncio.Future[Any] = asyncio.gather(*(_ended(ticket) for ticket in self.tickets))
        left: asyncio.Future[Any] = asyncio.create_task(_left(http))
        try:
            await asyncio.wait({answered, left}, return_when=asyncio.FIRST_COMPLETED)
            if not answered.done():
                return Response(status_code=499)
            await answered
            outcome = 200
            return JSONResponse(self.answer.whole(self.requests, self.closing))
        except (TimedOut, Failed) as error:
            outcome = type(error).__name__
            raise
        finally:
            self._leave()
            answered.cancel()
            left.cancel()
            with suppress(asyncio.CancelledError, TimedOut, Failed):
                await answered
            self.tell(outcome)

    def stream(self, usage: bool, first: Callable[[], None], seconds: float) -> Response:
        """The answer as server-sent events; `first` is called before its first piece.

        It may take so many `seconds`, and a while more to be fetched.
        """
        ended: list[int | str] = ["left"]

        def end() -> None:
            self._leave()
            self.tell(ended[0])

        return _Stream(self._events(usage, first, ended), end, seconds + _UNREAD)

    async def _events(self, usage: bool, first: Callable[[], None], ended: list[int | str]) -> AsyncIterator[str]:
        queue: asyncio.Queue[dict[str, Any] | Exception | None] = asyncio.Queue()
        writers = [asyncio.create_task(self._write(index, queue)) for index in range(len(self.tickets))]
        try:
            if self.answer.kind == "chat":
                for index in range(len(self.tickets)):
                    yield _event(self.answer.begun(index))
            left, begun = len(self.tickets), False
            while left:
                event = await queue.get()
                if event is None:
                    left -= 1
                elif isinstance(event, Exception):
                    ended[0] = type(event).__name__
                    yield _event(problem(str(event), 504 if isinstance(event, TimedOut) else 500))
                    return
                else:
                    if not begun:
                        first()
                        begun = True
                    yield _event(event)
            if usage:
                yield _event(self.answer.used(self.requests))
            ended[0] = 200
            yield "data: [DONE]\n\n"
        finally:
            for writer in writers:
                writer.cancel()

    async def _write(self, index: int, queue: asyncio.Queue[dict[str, Any] | Exception | None]) -> None:
        """Put the chunks of one answer into the queue, and None after the last."""
        ticket, told = self.tickets[index], 0
        request = ticket.request
        try:
            async for piece in ticket.answered():
                upto = len(request.tokens)  # the engine's thread goes on meanwhile
                queue.put_nowait(self.answer.piece(index, piece, request, told, upto))
                told = upto
            if self.closing:
                queue.put_nowait(self.answer.piece(index, self.closing, request, told, told))
            queue.put_nowait(self.answer.ended(index, request, told))
            queue.put_nowait(None)
        except (TimedOut, Failed) as error:
            queue.put_nowait(error)

    def _leave(self) -> None:
        for ticket in self.tickets:
            ticket.leave()


class _Stream(StreamingResponse):
    """A stream of events after which `end` is called, also where the client had gone before it began."""

    def __init__(self, events: AsyncIterator[str], end: Callable[[], None], seconds: float) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._end, self._seconds = end, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(TimeoutError):  # whoever does not read what is sent would keep it here for ever
                async with asyncio.timeout(self._seconds):
                    await super().__call__(scope, receive, send)
        finally:
            self._end()


async def _ended(ticket: Ticket) -> None:
    async for _ in ticket.answered():
        pass


async def _left(http: HTTP) -> None:
    """Returns when the client has gone."""
    while not await http.is_disconnected():
        await asyncio.sleep(0.2)


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
