"""HTTP connections that are not kept for whoever asks nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def connection(seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol, closed where no whole head of a request comes for so many seconds: it waits for ever."""

    class Connection(H11Protocol):
        _look: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._look_later(None)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._look:
                self._look.cancel()
            super().connection_lost(exc)

        def _look_later(self, answered: Any) -> None:
            self._look = self.loop.call_later(seconds, self._close_if_idle, answered)

        def _close_if_idle(self, answered: Any) -> None:
            """Close it if nothing was asked since, the request `answered` having been the last."""
            if self.cycle is answered and (answered is None or answered.response_complete):
                self.transport.close()
            else:
                self._look_later(self.cycle)

    return Connection
