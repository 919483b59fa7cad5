"""`medframe serve`: an API and a page to talk to what was trained."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from medframe.cli.decoding import chosen, decodes
from medframe.cli.opening import rounds

KEYS = "MEDFRAME_API_KEY"

if TYPE_CHECKING:
    from medframe.quantised import Bits


@click.command("serve", short_help="Serve what runs trained: OpenAI's API, and a page.")
@click.argument("runs", metavar="[NAME=]RUN...", nargs=-1, required=True)
@click.option("--base", type=click.Path(path_type=Path), metavar="DIR", help="Where the runs' base lies now.")
@click.option("--prompt", metavar="NAME", help="The format of models that are bound to none.")
@rounds
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need a key.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535))
@click.option("--api-key", "keys", multiple=True, metavar="KEY", help=f"May be repeated; better given in {KEYS}.")
@click.option("--no-base", is_flag=True, help="Do not offer the base beside what was trained on it.")
@decodes
@click.option("--concurrent", default=16, show_default=True, type=click.IntRange(1), help="Answers side by side.")
@click.option("--tokens", default=16384, show_default=True, type=click.IntRange(1), help="Held in memory at a time.")
@click.option("--waiting", default=64, show_default=True, type=click.IntRange(0), help="Longest queue; then 429.")
@click.option(
    "--timeout",
    default=300.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Seconds to the end of an answer.",
)
@click.option("--longest", default=4096, show_default=True, type=click.IntRange(1), help="Most new tokens asked for.")
@click.option("--system-turn", type=click.Choice(["refuse", "ignore"]), default="refuse", show_default=True)
@click.option("--token-ids", is_flag=True, help="Take token ids in /v1/completions, control tokens among them.")
@click.option("--disclaimer", is_flag=True, help="End each answer with the disclaimer.")
@click.option("--legacy", type=click.Choice(["chatmed"]), help="Answer ChatMed's own /chatmed_generate too.")
@click.option("--engine", type=click.Choice(["own", "vllm"]), default="own", show_default=True)
@click.option("--engine-url", metavar="URL", help="A vLLM that serves the same names already; its key in VLLM_API_KEY.")
@click.option("--audit", type=click.Path(path_type=Path), metavar="FILE", help="A line a request; else to stderr.")
def command(
    runs: tuple[str, ...],
    base: Path | None,
    prompt: str | None,
    weights_dtype: Bits | None,
    host: str,
    port: int,
    keys: tuple[str, ...],
    no_base: bool,
    concurrent: int,
    tokens: int,
    waiting: int,
    timeout: float,
    longest: int,
    system_turn: str,
    token_ids: bool,
    disclaimer: bool,
    legacy: str | None,
    engine: str,
    engine_url: str | None,
    audit: Path | None,
    **decoding: Any,
) -> None:
    """Serve one or more RUNs; clients choose by NAME, which is the directory's where none is given.

    The page is at /, the API at /v1. Adapters of one base share it in memory.
    """
    from medframe.serve.server import check_installed

    check_installed()
    if not all(key.strip() == key != "" for key in keys):
        raise click.BadParameter("a key is empty, or begins or ends with a space", param_hint="--api-key")
    keys = keys or tuple(key.strip() for key in os.environ.get(KEYS, "").split(",") if key.strip())
    if (decoding.get("num_beams") or 1) > 1:
        raise click.BadParameter("a beam search tells nothing of an answer before its end", param_hint="--num-beams")
    local = _is_loopback(host)
    if not local and not keys:
        raise click.BadParameter(f"{host} is reached from elsewhere: give --api-key or {KEYS}", param_hint="--host")
    if engine_url and not _is_address(engine_url):
        raise click.BadParameter(
            f"{engine_url!r} is no address such as http://127.0.0.1:8001", param_hint="--engine-url"
        )
    from contextlib import ExitStack
    from dataclasses import replace

    from medframe import quiet
    from medframe.serve.audit import Audit
    from medframe.serve.limits import Limits
    from medframe.serve.models import elsewhere, load, named
    from medframe.serve.remote import Remote
    from medframe.serve.server import serve
    from medframe.serve.settings import Settings
    from medframe.serve.vllm import started
    from medframe.trained import open_run

    quiet.libraries()
    opened = []
    for argument in runs:
        name, run = named(argument)
        found = open_run(run, base, prompt=prompt).rounded(weights_dtype)
        usual = chosen(replace(found.decoding, num_beams=1), **decoding)
        opened.append((name or run.resolve().name, replace(found, decoding=replace(usual, num_beams=1))))
    settings = Settings(
        title=", ".join(name for name, _ in opened),
        keys=keys,
        local=local,
        limits=Limits(concurrent=concurrent, tokens=tokens, waiting=waiting, timeout=timeout, new_tokens=longest),
        ignore_system=system_turn == "ignore",
        token_ids=token_ids,
        disclaimer=disclaimer,
        legacy=legacy == "chatmed",
    )
    log = Audit(audit)
    models = elsewhere(opened) if engine_url or engine == "vllm" else load(opened, with_base=not no_base)
    for each in models.values():
        how = each.decoding.told()
        click.echo(f"{each.name}: {each.kind}, format {each.opened.manifest['prompt']['use']}. Decoding: {how}")
    with ExitStack() as stack:
        remote = None
        if engine_url:
            remote = Remote(engine_url, os.environ.get("VLLM_API_KEY"), settings.limits)
        elif engine == "vllm":
            remote = Remote(*stack.enter_context(started(opened)), settings.limits)
        serve(models, settings, log, host, port, lambda url: click.echo(f"Listening on {url}"), remote)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False
