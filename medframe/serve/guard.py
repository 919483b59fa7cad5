"""What stands around every request: the host and the key before it, and the last word on what goes wrong."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import os
import re
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from medframe.serve.told import problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = ("/", "/health", "/ready")
"""Paths that need no key: they tell nothing of anybody."""
_LOCAL = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])\.?(:\d+)?", re.IGNORECASE)
_BEARER = re.compile(rb"Bearer +", re.IGNORECASE)
_log = logging.getLogger("medframe.serve")


def key_id(key: bytes) -> str:
    """What tells one key from another in logs without telling the key."""
    return hashlib.sha256(key).hexdigest()[:8]


class Guard:
    """ASGI middleware: 401 without a key where keys are set, 400 for a strange host, 500 where the rest fails.

    On loopback only requests to localhost pass: a web page elsewhere could otherwise have its own name lead here.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], local: bool, refused: Callable[[int], None]) -> None:
        """`refused` is called with the status of each request that does not pass."""
        self._app, self._keys, self._local = app, [os.fsencode(key) for key in keys], local
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        host = headers.get(b"host", b"localhost").decode("latin-1")
        if self._local and not _LOCAL.fullmatch(host):
            self._refused(400)
            await _refuse(send, 400, "this server answers to localhost alone")
            return
        path = scope["path"]
        if path not in OPEN and not path.startswith("/page/"):
            given = _BEARER.sub(b"", headers.get(b"authorization", b"").strip(), count=1)
            known = [key for key in self._keys if hmac.compare_digest(key, given)]
            if self._keys and not known:
                self._refused(401)
                await _refuse(send, 401, "a key is needed: Authorization: Bearer KEY", "invalid_api_key")
                return
            scope.setdefault("state", {})["key_id"] = key_id(given) if known else None
        await self._answered(scope, receive, send)

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def sends(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, sends)
        except asyncio.CancelledError:  # the server ends, and has waited long enough
            if not begun:
                await _refuse(send, 503, "the server is ending")
        except Exception as error:
            # Where, and not with what: its words may be a patient's.
            where = "".join(traceback.format_tb(error.__traceback__)[-3:])
            _log.error("%s in\n%s", type(error).__name__, where.rstrip())
            if not begun:
                await _refuse(send, 500, "the server failed at this request")


async def _refuse(send: Send, status: int, message: str, code: str | None = None) -> None:
    body = json.dumps(problem(message, status, code=code)).encode()
    headers: list[Any] = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
