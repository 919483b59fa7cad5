"""Who is answered when: a queue before the engines, places, cancellation and time-outs."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from medframe.engine.request import Request
from medframe.serve.limits import Limits

if TYPE_CHECKING:
    from medframe.engine.engine import Engine

_log = logging.getLogger("medframe.serve")


class Overloaded(Exception):
    """There is no place, and the queue is full."""

    def __init__(self, seconds: int) -> None:
        super().__init__("as many requests are waiting as may; try again later")
        self.seconds = seconds
        """When to try again."""


class TimedOut(Exception):
    """The answer did not come to its end in time."""


class Failed(Exception):
    """The model could not answer."""


@dataclass(eq=False)
class Ticket:
    """A request on its way through the server."""

    model: str
    request: Request
    deadline: float
    loop: asyncio.AbstractEventLoop
    event: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when there is more of the answer, or when it has ended."""
    gone: bool = False
    error: Exception | None = None
    task: asyncio.Task[None] | None = None
    """What asks for the answer elsewhere, where one does."""

    def leave(self) -> None:
        """Nobody waits for it any more: its place is freed."""
        self.gone = True
        if self.task:
            self.task.cancel()

    def wake(self) -> None:
        """Tell who waits, from another thread."""
        with suppress(RuntimeError):  # the server is going down: nobody waits
            self.loop.call_soon_threadsafe(self.event.set)

    def fail(self, error: Exception) -> None:
        """It ends here."""
        self.error = error
        self.wake()

    async def answered(self) -> AsyncIterator[str]:
        """The answer piece by piece; TimedOut, Failed."""
        told = 0
        while True:
            await self.event.wait()
            self.event.clear()
            if self.error:
                raise self.error
            finish, said = self.request.finish, self.request.said
            if finish == "broken":
                raise Failed("the model computes no numbers for this question")
            if len(said) > told:
                yield said[told:]
                told = len(said)
            if finish:
                return


class Scheduler:
    """One thread that owns all engines: between two steps it takes new requests in and lets others go."""

    def __init__(self, engines: Mapping[str, Engine], limits: Limits) -> None:
        self._engines = dict(engines)
        self._limits = limits
        self._waiting: deque[Ticket] = deque()
        self._at_work: dict[str, list[Ticket]] = {model: [] for model in engines}
        self._changed = threading.Condition()
        self._ending = False
        self._seconds = 1.0
        """How long a request takes from its arrival to its end, as of late."""
        self._thread = threading.Thread(target=self._run, name="engines", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it still answers."""
        return self._thread.is_alive() and not self._ending

    @property
    def waiting(self) -> int:
        """Requests that have no place yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return sum(map(len, self._at_work.values()))

    def check(self, model: str, requests: int) -> None:
        """Overloaded where so many more would have neither a place at this model nor one in its queue."""
        with self._changed:
            waiting = sum(ticket.model == model for ticket in self._waiting)
            # Those who wait while there are places are on their way to one.
            free = max(0, self._limits.concurrent - len(self._at_work[model]))
            if waiting + requests > self._limits.waiting + free:
                raise Overloaded(max(1, round(self._seconds * waiting / self._limits.concurrent)))

    def submit(self, model: str, request: Request) -> Ticket:
        """Have it answered; its `answered` gives the answer. Failed where nobody answers any more."""
        if not self.alive:
            raise Failed("the server is ending")
        ticket = Ticket(model, request, time.monotonic() + self._limits.timeout, asyncio.get_running_loop())
        with self._changed:
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    async def end(self) -> None:
        """Answer no more."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join, 10)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._ending or self._waiting or self.running):
                    self._changed.wait()
                if self._ending:
                    return
                self._end_late()
            self._each(self._let_go)
            with self._changed:
                self._take_in()
            self._each(self._step)

    def _each(self, act: Callable[[str], None]) -> None:
        """Do this for each model that is at work; where it fails, the answers of that model do, and no others."""
        for model in self._engines:
            try:
                if self._at_work[model]:
                    act(model)
            except Exception as error:  # out of memory, above all
                _log.error("answers of %s failed: %s", model, type(error).__name__)
                for ticket in self._at_work[model]:
                    ticket.fail(Failed("the model failed at this question, or at one beside it"))
                self._at_work[model] = []
                self._engines[model].clear()

    def _end_late(self) -> None:
        """End those that have waited too long, and forget those that nobody waits for and have no place yet."""
        now = time.monotonic()
        for ticket in [*self._waiting, *(each for tickets in self._at_work.values() for each in tickets)]:
            if not ticket.gone and ticket.deadline < now:
                ticket.fail(TimedOut(f"not answered within {self._limits.timeout:g} seconds"))
                ticket.gone = True
        self._waiting = deque(ticket for ticket in self._waiting if not ticket.gone)

    def _let_go(self, model: str) -> None:
        """Free the places of those that nobody waits for."""
        for ticket in [each for each in self._at_work[model] if each.gone]:
            self._engines[model].drop(ticket.request)
            self._at_work[model].remove(ticket)

    def _take_in(self) -> None:
        """Give places, in the order of arrival; who wants another model does not wait for one that is full."""
        left: deque[Ticket] = deque()
        full: set[str] = set()
        for ticket in self._waiting:
            if ticket.model in full or not self._engines[ticket.model].fits(ticket.request):
                full.add(ticket.model)
                left.append(ticket)
                continue
            self._engines[ticket.model].add(ticket.request)
            self._at_work[ticket.model].append(ticket)
        self._waiting = left

    def _step(self, model: str) -> None:
        went_on = {id(request) for request in self._engines[model].step()}
        for ticket in self._at_work[model]:
            if id(ticket.request) in went_on:
                ticket.wake()
        ended = [ticket for ticket in self._at_work[model] if ticket.request.finish]
        for ticket in ended:
            took = time.monotonic() - (ticket.deadline - self._limits.timeout)
            self._seconds += 0.1 * (took - self._seconds)
        self._at_work[model] = [ticket for ticket in self._at_work[model] if ticket not in ended]
