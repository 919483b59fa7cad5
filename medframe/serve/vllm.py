"""A vLLM of one's own: started for what is served, and ended with it."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from medframe.errors import RunError
from medframe.trained import Opened, trained

_START = 1800
"""Seconds until it must answer: it loads the weights, and may compile."""


@contextmanager
def started(runs: Sequence[tuple[str, Opened]]) -> Iterator[tuple[str, str]]:
    """The address of a vLLM that serves the runs by their names, and the key to it.

    RunError where vLLM is not installed, does not start, or cannot serve them together: it takes one model, or
    adapters of one base whose embedding and head are the base's own.
    """
    if shutil.which("vllm") is None:
        raise RunError("--engine vllm: vLLM is not installed: pip install vllm, or name a server with --engine-url URL")
    line = ["vllm", "serve", *_arguments(runs)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    key, url = secrets.token_hex(), f"http://127.0.0.1:{port}"
    line += ["--host", "127.0.0.1", "--port", str(port), "--api-key", key]
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(line, stdout=said, stderr=said)
        try:
            _wait(process, url)
            yield url, key
        except _Ended:
            said.seek(0)
            tail = " ".join(said.read()[-600:].split())
            raise RunError(f"--engine vllm: it ended with {process.wait()}: {tail}") from None
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class _Ended(Exception):
    pass


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy knows the way to this machine
    until = time.monotonic() + _START
    while time.monotonic() < until:
        if process.poll() is not None:
            raise _Ended
        try:
            with direct.open(f"{url}/health", timeout=5):
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.5)
    raise RunError(f"--engine vllm: it did not answer within {_START} seconds")


def _arguments(runs: Sequence[tuple[str, Opened]]) -> list[str]:
    (first, opened), *more = runs
    adapter = opened.out / "adapter"
    if opened.kind != "run" or not adapter.is_dir():
        if more:
            raise RunError("--engine vllm: it serves one whole model, or several adapters of one base")
        whole = trained(opened.backbone, opened.out) if opened.kind == "run" else opened.backbone
        return [str(whole.directory()), "--tokenizer", str(whole.tokenizer_directory()), "--served-model-name", first]
    ranks = [8]
    for name, each in runs:
        ranks.append(_rank(name, each))
        if each.manifest["base"]["fingerprint"] != opened.manifest["base"]["fingerprint"]:
            raise RunError(f"--engine vllm: {name} was trained on another base than {first}")
    if opened.backbone.adapters:
        raise RunError(f"--engine vllm: the base of {first} has adapters of its own: medframe merge {opened.out} first")
    modules = [f"{name}={each.out.resolve() / 'adapter'}" for name, each in runs]
    base, tokenizer = opened.backbone.directory(), adapter.resolve()
    line = [str(base), "--tokenizer", str(tokenizer), "--served-model-name", f"{first}-base"]
    # vLLM knows these ranks.
    rank = next((known for known in (8, 16, 32, 64, 128, 256, 320, 512) if known >= max(ranks)), None)
    if rank is None:
        raise RunError(f"--engine vllm: an adapter has rank {max(ranks)}, and vLLM takes 512 at most: merge it first")
    return [*line, "--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", *modules]


def _rank(name: str, opened: Opened) -> int:
    """That of the run's adapter; RunError for one that vLLM does not take."""
    config = json.loads(Path(opened.out / "adapter" / "adapter_config.json").read_text("utf-8"))
    if config.get("modules_to_save") or config.get("use_dora"):
        raise RunError(
            f"--engine vllm: the adapter of {name} holds more than LoRA: medframe merge {opened.out} --out DIR, "
            "and serve DIR"
        )
    return max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])
