"""What stands before every request: the key and the host."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from medframe.serve.told import problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

OPEN = ("/", "/health", "/ready")
"""Paths that need no key: they tell nothing of anybody."""
_LOCAL = {"localhost", "127.0.0.1", "[::1]"}


def key_id(key: str) -> str:
    """What tells one key from another in logs without telling the key."""
    return hashlib.sha256(key.encode()).hexdigest()[:8]


class Guard:
    """ASGI middleware: 401 without a key where keys are set, 400 for a strange host.

    On loopback only requests to localhost pass: a web page elsewhere could otherwise have its own name lead here.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], local: bool) -> None:
        self._app, self._keys, self._local = app, list(keys), local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self._local and re.sub(r":\d+$", "", headers.get("host", "localhost")) not in _LOCAL:
            await _refuse(send, 400, "this server answers to localhost alone")
            return
        path = scope["path"]
        if path not in OPEN and not path.startswith("/page/"):
            given = headers.get("authorization", "").removeprefix("Bearer ").strip()
            known = [key for key in self._keys if hmac.compare_digest(key.encode(), given.encode())]
            if self._keys and not known:
                await _refuse(send, 401, "a key is needed: Authorization: Bearer KEY", "invalid_api_key")
                return
            scope.setdefault("state", {})["key_id"] = key_id(given) if known else None
        await self._app(scope, receive, send)


async def _refuse(send: Send, status: int, message: str, code: str | None = None) -> None:
    body = json.dumps(problem(message, status, code=code)).encode()
    headers: list[Any] = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
