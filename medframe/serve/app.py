"""The application: what stands at which address, and how errors are told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from medframe.serve.asked import Refused
from medframe.serve.assets import asset
from medframe.serve.audit import Audit
from medframe.serve.guard import Guard
from medframe.serve.models import Served
from medframe.serve.remote import Remote
from medframe.serve.scheduler import Failed, Overloaded, Scheduler, TimedOut
from medframe.serve.service import Service
from medframe.serve.settings import Settings
from medframe.serve.told import problem


def app(served: dict[str, Served], settings: Settings, audit: Audit, remote: Remote | None = None) -> FastAPI:
    """The server's application; the models are loaded already, or `remote` has them."""
    scheduler = remote or Scheduler(
        {name: each.engine(settings.limits) for name, each in served.items()}, settings.limits
    )
    service = Service(served, settings, audit, scheduler)

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
        middleware=[Middleware(Guard, keys=settings.keys, local=settings.local, refused=service.refused)],
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
    made.get("/")(lambda: asset("index.html"))
    made.get("/page/settings")(service.page_settings)
    made.get("/page/{name:path}")(asset)

    async def refused(request: Request, error: Any) -> Response:
        service.refused(error.status, getattr(request.state, "key_id", None))
        return JSONResponse(problem(error.message, error.status, error.param, error.code), error.status)

    made.add_exception_handler(Refused, refused)
    made.add_exception_handler(Overloaded, _overloaded)
    made.add_exception_handler(TimedOut, _unanswered)
    made.add_exception_handler(Failed, _unanswered)
    made.add_exception_handler(HTTPException, _not_found)
    return made


async def _overloaded(_: Request, error: Any) -> Response:
    return JSONResponse(problem(str(error), 429, code="overloaded"), 429, {"Retry-After": str(error.seconds)})


async def _unanswered(_: Request, error: Any) -> Response:
    status = 504 if isinstance(error, TimedOut) else 500
    return JSONResponse(problem(str(error), status), status)


async def _not_found(request: Request, error: Any) -> Response:
    message = error.detail if error.status_code != 404 else f"there is nothing at {request.url.path[:100]}"
    return JSONResponse(problem(message, error.status_code), error.status_code, error.headers)
