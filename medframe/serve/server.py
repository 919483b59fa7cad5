"""The process that listens."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from medframe.errors import RunError

if TYPE_CHECKING:
    from medframe.serve.audit import Audit
    from medframe.serve.models import Served
    from medframe.serve.remote import Remote
    from medframe.serve.settings import Settings


def check_installed() -> None:
    """RunError where what serving needs is not installed."""
    if missing := [
        name for name in ("fastapi", "httpx", "uvicorn", "prometheus_client") if not importlib.util.find_spec(name)
    ]:
        raise RunError(f"serve needs {', '.join(missing)}: pip install 'medframe[serve]'")


def serve(
    models: dict[str, Served],
    settings: Settings,
    audit: Audit,
    host: str,
    port: int,
    say: Callable[[str], None],
    remote: Remote | None = None,
) -> None:
    """Listen until interrupted; answers that are being written have ten seconds to end. RunError for a taken port."""
    import uvicorn

    from medframe.serve.app import app
    from medframe.serve.connection import connection

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen(512)
        except OSError as error:
            raise RunError(f"--host {host} --port {port}: {error.strerror or error}") from None
        config = uvicorn.Config(
            app(models, settings, audit, remote),
            log_level="warning",
            access_log=False,  # it would tell who asks; the audit does, by key
            server_header=False,
            timeout_graceful_shutdown=10,
            http=connection(settings.limits.arrival),
        )
        name = f"[{host}]" if ":" in host else host
        say(f"http://{name}:{listening.getsockname()[1]}")
        uvicorn.Server(config).run(sockets=[listening])
