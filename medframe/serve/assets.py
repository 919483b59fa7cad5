"""The files of the page."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from fastapi import Response
from starlette.exceptions import HTTPException

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


def asset(name: str) -> Response:
    """A file of the page, by its name; HTTPException 404 where there is none."""
    if name not in _names():
        raise HTTPException(404)
    content = (files("medframe.serve") / "page" / name).read_bytes()
    kind = _TYPES[name.rpartition(".")[2]]
    return Response(content, media_type=f"{kind}; charset=utf-8", headers=_HEADERS)


@cache
def _names() -> frozenset[str]:
    # A name is looked up here and made no path of before: there is nothing to escape from.
    page = files("medframe.serve") / "page"
    return frozenset(file.name for file in page.iterdir() if file.name.rpartition(".")[2] in _TYPES)
