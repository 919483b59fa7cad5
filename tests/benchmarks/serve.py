"""The server under clients: tokens a second of sixteen at a time against one, then minutes of every kind of client.

    python tests/benchmarks/serve.py RUN [--minutes 10] [--clients 16] [--prompt NAME]

First the same questions, one after the other and sixteen at a time, in turn: tokens a second, and how long the
shortest answers took beside the longest. Then clients that stream, ask at once, leave half-way, send rubbish, too much,
too long questions, wrong keys: what they were answered, and the server's resident memory every half minute.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

QUESTIONS = [
    "头晕怎么办？",
    "孩子咳嗽三天了，要不要拍片子？",
    "腰部又酸又胀，持续半年了，能自己好吗？",
    "血压高，吃什么药好？",
]
KEY = {"Authorization": "Bearer right"}


def body(longest: int, **more: Any) -> dict[str, Any]:
    question = f"{random.randrange(1000)}床：{random.choice(QUESTIONS)}"
    return {"model": "m", "messages": [{"role": "user", "content": question}], "max_tokens": longest, **more}


async def ask(client: httpx.AsyncClient, longest: int, seed: int) -> tuple[int, float]:
    """(tokens, seconds) of one answer, drawn so that it rambles to its full length."""
    began = time.perf_counter()
    told = await client.post("/v1/chat/completions", json=body(longest, temperature=2.0, seed=seed), headers=KEY)
    told.raise_for_status()
    return told.json()["usage"]["completion_tokens"], time.perf_counter() - began


async def speeds(client: httpx.AsyncClient, clients: int, rounds: int = 3) -> None:
    lengths = [16, 128] * (clients // 2)
    alone, together, short, long = [], [], [], []
    for _ in range(rounds):
        began, tokens = time.perf_counter(), 0
        for seed, longest in enumerate(lengths):
            tokens += (await ask(client, longest, seed))[0]
        alone.append(tokens / (time.perf_counter() - began))
        began = time.perf_counter()
        found = await asyncio.gather(*(ask(client, longest, seed) for seed, longest in enumerate(lengths)))
        together.append(sum(tokens for tokens, _ in found) / (time.perf_counter() - began))
        short.append(max(seconds for (_, seconds), longest in zip(found, lengths, strict=True) if longest == 16))
        long.append(max(seconds for (_, seconds), longest in zip(found, lengths, strict=True) if longest == 128))
    one, many = statistics.median(alone), statistics.median(together)
    print(f"one at a time {one:,.0f} tokens/s; {clients} at a time {many:,.0f} tokens/s = {many / one:.1f} x")
    print(
        f"{clients} at a time: the last answer of 16 tokens after {statistics.median(short):.2f} s, "
        f"the last of 128 after {statistics.median(long):.2f} s",
        flush=True,
    )


async def streams(client: httpx.AsyncClient) -> str:
    async with client.stream("POST", "/v1/chat/completions", json=body(60, stream=True), headers=KEY) as told:
        text = "".join([piece async for piece in told.aiter_text()])
        if told.status_code != 200:
            return f"stream {told.status_code}"
        return "stream 200" if text.endswith("data: [DONE]\n\n") else "stream WITHOUT END"


async def asks(client: httpx.AsyncClient) -> str:
    told = await client.post("/v1/chat/completions", json=body(40, n=random.choice([1, 2])), headers=KEY)
    return f"ask {told.status_code}"


async def leaves(client: httpx.AsyncClient) -> str:
    async with client.stream("POST", "/v1/chat/completions", json=body(1000, stream=True), headers=KEY) as told:
        if told.status_code != 200:
            return f"leave {told.status_code}"
        async for _ in told.aiter_text():
            if random.random() < 0.2:
                break
    return "leave 200"


async def leaves_unheard(client: httpx.AsyncClient) -> str:
    try:
        told = await client.post("/v1/chat/completions", json=body(1000), headers=KEY, timeout=random.uniform(0.05, 1))
        return f"impatient {told.status_code}"
    except httpx.TimeoutException:
        return "impatient left"


async def rubbish(client: httpx.AsyncClient) -> str:
    content = random.choice([b"", b"{", b"[]", os.urandom(2000), b"[" * 50_000, b'{"model": 1}', b'{"model": "m"}'])
    kind = random.choice(["application/json", "text/plain"])
    told = await client.post("/v1/chat/completions", content=content, headers={**KEY, "Content-Type": kind})
    return f"rubbish {told.status_code}"


async def malformed(client: httpx.AsyncClient) -> str:
    wrong = random.choice(
        [{"temperature": "x"}, {"n": 99}, {"messages": [{"role": "x"}]}, {"stop": 7}, {"model": "x"}, {"tools": [1]}]
    )
    told = await client.post("/v1/chat/completions", json={**body(10), **wrong}, headers=KEY)
    return f"malformed {told.status_code}"


async def too_long(client: httpx.AsyncClient) -> str:
    asked = body(10, messages=[{"role": "user", "content": "头" * 30_000}])
    told = await client.post("/v1/chat/completions", json=asked, headers=KEY)
    return f"too long {told.status_code}"


async def too_large(client: httpx.AsyncClient) -> str:
    told = await client.post(
        "/v1/chat/completions", content=b" " * (2 << 20), headers={**KEY, "Content-Type": "application/json"}
    )
    return f"too large {told.status_code}"


async def wrong_key(client: httpx.AsyncClient) -> str:
    told = await client.post("/v1/chat/completions", json=body(10), headers={"Authorization": "Bearer wrong"})
    return f"wrong key {told.status_code}"


KINDS: list[tuple[Callable[[httpx.AsyncClient], Awaitable[str]], int]] = [
    (streams, 6), (asks, 6), (leaves, 3), (leaves_unheard, 2), (rubbish, 2), (malformed, 2), (too_long, 1),
    (too_large, 1), (wrong_key, 1),
]  # fmt: skip


def resident(pid: int) -> float:
    """Megabytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


async def soak(client: httpx.AsyncClient, pid: int, clients: int, minutes: float) -> None:
    ended: Counter[str] = Counter()
    until, memory = time.monotonic() + 60 * minutes, []
    kinds, weights = zip(*KINDS, strict=True)

    async def one() -> None:
        while time.monotonic() < until:
            kind = random.choices(kinds, weights)[0]
            try:
                ended[await kind(client)] += 1
            except httpx.HTTPError as error:
                ended[f"{kind.__name__} {type(error).__name__}"] += 1

    async def watch() -> None:
        while time.monotonic() < until:
            memory.append(resident(pid))
            await asyncio.sleep(30)

    await asyncio.gather(watch(), *(one() for _ in range(clients)))
    print("; ".join(f"{name}: {count:,}" for name, count in sorted(ended.items())))
    print("resident MB every half minute: " + " ".join(f"{each:.0f}" for each in memory))
    late = memory[4:]  # from the second minute on
    if late:
        print(f"from minute 2 on: {min(late):.0f} to {max(late):.0f} MB, {max(late) / late[0] - 1:+.1%} at most")
    told = (await client.get("/metrics", headers=KEY)).text
    print("; ".join(line for line in told.splitlines() if line.startswith(("medframe_running", "medframe_waiting"))))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--prompt")
    told = parser.parse_args()
    with tempfile.TemporaryFile("w+") as said:
        line = [sys.executable, "-m", "medframe", "serve", f"m={told.run}", "--port", "0", "--api-key", "right"]
        line += ["--audit", "/dev/null", *(["--prompt", told.prompt] if told.prompt else [])]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=said, text=True)
        assert process.stdout
        url = next((text.split()[-1] for text in process.stdout if text.startswith("Listening")), None)
        assert url, "it did not start"
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
            await speeds(client, told.clients)
            await soak(client, process.pid, told.clients, told.minutes)
        process.terminate()
        print(f"ended with {process.wait(30)}")
        said.seek(0)
        print(json.dumps(said.read()[-2000:]))


if __name__ == "__main__":
    asyncio.run(main())
