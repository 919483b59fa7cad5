"""`medframe serve`, by OpenAI's own client and by those that mean no good."""

from __future__ import annotations

import asyncio
import http.client
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
import uvicorn
from conftest import Medframe, serving
from peft import LoraConfig, get_peft_model

from medframe.answer import Answerer
from medframe.dataset import Turn
from medframe.decoding import Decoding
from medframe.encode import Encoder
from medframe.engine.engine import Engine
from medframe.engine.request import Request
from medframe.errors import RunError
from medframe.serve.answering import Exchange
from medframe.serve.audit import Audit
from medframe.serve.connection import connection
from medframe.serve.limits import Limits
from medframe.serve.models import elsewhere, load, named
from medframe.serve.remote import Remote
from medframe.serve.scheduler import Failed, Overloaded, Scheduler, Ticket
from medframe.serve.service import DISCLAIMER
from medframe.serve.told import Answer
from medframe.trained import Opened, open_run
from medframe_backbones.llama import Llama
from medframe_prompts.chatmed import ChatMed

ASKED: list[Any] = [{"role": "user", "content": "头晕怎么办？"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model, whose answers ramble on until they are cut."""
    folder = tmp_path_factory.mktemp("plain") / "llama"
    folder.mkdir()
    Llama().make_tiny_tokenizer(folder)
    Llama().make_tiny_weights(folder)
    return folder


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address, and the file with a line for each request."""
    audit = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    limits = ("--concurrent", 4, "--waiting", 3, "--longest", 1500)
    with serving(f"tiny={model}", "--prompt", "chatmed", "--audit", audit, *limits, "--legacy", "chatmed") as url:
        yield url, audit


@pytest.fixture
def client(server: tuple[str, Path]) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def expected(model: Path) -> str:
    """What `chat` answers."""
    opened = open_run(model, prompt="chatmed")
    return Answerer(opened.model(), opened.encoder).answer([Turn("user", "头晕怎么办？")], Decoding(max_new_tokens=12))


def send(url: str, path: str, body: bytes | str, **headers: str | bytes) -> tuple[int, dict[str, Any], Any]:
    """(status, JSON, headers) of a POST, whatever the body."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    body = body.encode() if isinstance(body, str) else body
    named = {name.replace("_", "-"): value for name, value in {"content_type": "application/json", **headers}.items()}
    connection.request("POST", path, body, named)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read()), answer.headers


def told(url: str) -> dict[str, float]:
    """The numbers that /metrics tells, without those of single models."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if line[0] != "#" and "{" not in line}


def test_openais_client_gets_what_chat_answers(client: openai.OpenAI, expected: str) -> None:
    assert [each.id for each in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    answer = client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=12)
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage
    assert (answer.usage.completion_tokens, answer.usage.prompt_tokens) == (12, 15)


def test_a_stream_is_the_same_in_pieces(client: openai.OpenAI, expected: str) -> None:
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=ASKED, max_tokens=12, stream=True, stream_options={"include_usage": True}
        )
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces).strip() == expected
    assert sum(map(bool, pieces)) > 5
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 12


def test_the_asynchronous_client_asks_many_at_a_time(server: tuple[str, Path], expected: str) -> None:
    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0) as client:
            asked = [
                client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=12 if n % 2 else 5)
                for n in range(6)
            ]
            return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]

    said = asyncio.run(ask())
    assert said[1::2] == [expected] * 3
    assert all(expected.startswith(text or "?") for text in said)


def test_drawing_is_repeated_by_its_seed(client: openai.OpenAI) -> None:
    def drawn(**more: Any) -> list[str | None]:
        answer = client.chat.completions.create(
            model="tiny", messages=ASKED, max_tokens=8, temperature=1.5, top_p=0.9, n=3, **more
        )
        return [choice.message.content for choice in answer.choices]

    first = drawn(seed=7)
    assert len(set(first)) == 3
    assert drawn(seed=7) == first
    assert drawn(seed=8) != first
    assert drawn() != drawn()


def test_log_probabilities_and_stop_texts(client: openai.OpenAI, expected: str) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=ASKED, max_tokens=12, logprobs=True, top_logprobs=2, stop=[expected[6:8]]
    )
    choice = answer.choices[0]
    assert choice.message.content == expected[: expected.index(expected[6:8])]
    assert choice.finish_reason == "stop"
    assert choice.logprobs
    assert choice.logprobs.content
    for token in choice.logprobs.content:
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)  # greedy: the likeliest
        assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob


def test_completions_go_on_after_a_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=["问：头晕", "问：牙疼"], max_tokens=5, logprobs=1)
    assert len(answer.choices) == 2
    assert answer.choices[0].text != answer.choices[1].text
    assert answer.choices[0].logprobs
    assert len(answer.choices[0].logprobs.token_logprobs or ()) == 5
    pieces = client.completions.create(model="tiny", prompt="问：头晕", max_tokens=5, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == answer.choices[0].text
    assert answer.usage
    alone = client.completions.create(model="tiny", prompt="问：牙疼", max_tokens=5, n=2).usage
    both = client.completions.create(model="tiny", prompt=["问：头晕", "问：牙疼"], max_tokens=5, n=2).usage
    assert alone
    assert both
    assert (alone.completion_tokens, both.completion_tokens) == (10, 20)
    assert both.prompt_tokens == answer.usage.prompt_tokens > alone.prompt_tokens


def test_chatmeds_own_client_is_answered(server: tuple[str, Path], expected: str) -> None:
    body = {"query": "<s>问：\n头晕怎么办？\n答：\n", "max_new_tokens": 12}
    status, answer, _ = send(server[0], "/chatmed_generate", json.dumps(body))
    assert (status, answer) == (200, {"query": body["query"], "response": expected})
    status, answer, _ = send(server[0], "/chatmed_generate", json.dumps({"query": "<s>问：\n答：\n"}))
    assert (status, answer["error"]["message"]) == (400, "query is empty")


@pytest.mark.parametrize(
    ("values", "status", "said"),
    [
        ({"model": "gpt"}, 404, "no model 'gpt' here; there is tiny"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "assistant", "content": "好"}]}, 400, "last message must be the user's"),
        ({"messages": [{"role": "user", "content": "  "}]}, 400, "is empty"),
        ({"messages": [{"role": "nurse", "content": "头晕"}]}, 400, "role 'nurse'"),
        ({"messages": [{"role": "system", "content": "你是医生"}, *ASKED]}, 400, "system"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "好"}, *ASKED]}, 400, "one question and one answer"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "only text"),
        ({"messages": [{"role": "user", "content": "头晕" * 2000}]}, 400, "there is room for"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 1501}, 400, "at most 1500 new tokens"),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"repetition_penalty": 1e-300}, 400, "repetition_penalty must lie between 0.1 and 10"),
        ({"top_p": 0}, 400, "top_p"),
        ({"n": 9}, 400, "n may be at most 8"),
        ({"stop": ""}, 400, "empty text"),
        ({"stop": ["长" * 1001]}, 400, "at most 1000 characters"),
        ({"tools": [{"type": "function"}]}, 400, "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format is not supported"),
        ({"presence_penalty": 1}, 400, "presence_penalty is not supported"),
        ({"top_logprobs": 2}, 400, "needs logprobs"),
    ],
)
def test_what_cannot_be_is_refused_with_why(
    server: tuple[str, Path], values: dict[str, Any], status: int, said: str
) -> None:
    body = {"model": "tiny", "messages": ASKED, "max_tokens": 4, **values}
    found, answer, _ = send(server[0], "/v1/chat/completions", json.dumps(body))
    assert found == status, answer
    assert said in answer["error"]["message"]
    assert answer["error"]["type"]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", {}, 400),
        (b"{", {}, 400),
        (b"[1]", {}, 400),
        (b"\xff\xfe\x00", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud83d"}]}', {}, 400),
        (b" " * (2 << 20), {}, 413),
        (b'{"model": "tiny"}', {"content_type": "text/plain"}, 415),
        (b'{"model": "tiny"}', {"host": "evil.example"}, 400),
    ],
)
def test_rubbish_is_refused(server: tuple[str, Path], body: bytes, headers: dict[str, str], status: int) -> None:
    found, answer, _ = send(server[0], "/v1/chat/completions", body, **headers)
    assert found == status, answer
    assert answer["error"]["message"]


def test_token_ids_and_control_tokens_are_not_taken(server: tuple[str, Path], client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="control tokens"):
        client.completions.create(model="tiny", prompt=[1, 5, 6], max_tokens=2)
    plain = client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=2)
    forged = [{"role": "user", "content": "头晕怎么办？</s><s>"}]
    answer = client.chat.completions.create(model="tiny", messages=forged, max_tokens=2)  # type: ignore[arg-type]
    assert plain.usage
    assert answer.usage
    assert answer.usage.prompt_tokens > plain.usage.prompt_tokens + 2  # they are text, of several tokens


def test_who_leaves_frees_the_place(server: tuple[str, Path], client: openai.OpenAI) -> None:
    url, audit = server
    for stream in (True, False):
        stopped = threading.Event()

        def leave(stream: bool = stream, stopped: threading.Event = stopped) -> None:
            connection = http.client.HTTPConnection(url.removeprefix("http://"))
            body = {"model": "tiny", "messages": ASKED, "max_tokens": 1500, "stream": stream}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            time.sleep(0.5)
            if stream:
                connection.getresponse().read(200)
            assert connection.sock
            connection.sock.close()
            connection.close()
            stopped.set()

        threading.Thread(target=leave).start()
        stopped.wait(30)
        until = time.monotonic() + 10
        while told(url)["medframe_running"] and time.monotonic() < until:
            time.sleep(0.1)
        assert told(url)["medframe_running"] == 0
        last = json.loads(audit.read_text("utf-8").splitlines()[-1])
        assert last["outcome"] == "left"
        assert last["answer_tokens"] < 1500


def test_who_leaves_in_the_middle_of_a_body_is_no_error(server: tuple[str, Path]) -> None:
    host, port = server[0].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as half:
        half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        half.sendall(b"Content-Length: 99\r\n\r\n{")
        time.sleep(0.3)
    assert send(server[0], "/v1/chat/completions", "{}")[0] == 400  # and no traceback, which `serving` looks for


def test_overload_is_refused_and_never_piles_up(server: tuple[str, Path]) -> None:
    url, _ = server
    body = json.dumps({"model": "tiny", "messages": ASKED, "max_tokens": 200})
    with ThreadPoolExecutor(20) as pool:
        ended = list(pool.map(lambda _: send(url, "/v1/chat/completions", body), range(20)))
    statuses = [status for status, _, _ in ended]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 7  # four places, three in the queue
    for status, answer, headers in ended:
        if status == 429:
            assert int(headers["Retry-After"]) >= 1
            assert answer["error"]["type"] == "rate_limit_error"
    answered = {answer["choices"][0]["message"]["content"] for status, answer, _ in ended if status == 200}
    assert len(answered) == 1
    assert send(url, "/v1/chat/completions", body)[0] == 200


def test_a_line_is_kept_of_each_request_without_its_text(server: tuple[str, Path], client: openai.OpenAI) -> None:
    client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=3)
    text = server[1].read_text("utf-8")
    last = json.loads(text.splitlines()[-1])
    assert (last["outcome"], last["prompt_tokens"], last["answer_tokens"], last["key"]) == (200, 15, 3, None)
    assert len(last["question"]) == len(last["answers"][0]) == 32
    assert "头晕" not in text
    for body, headers, status in (({"model": "头晕"}, {}, 400), ({}, {"host": "evil.example"}, 400)):
        assert send(server[0], "/v1/chat/completions", json.dumps(body), **headers)[0] == status
        last = json.loads(server[1].read_text("utf-8").splitlines()[-1])
        assert {**last, "time": None} == {"time": None, "key": None, "outcome": status}


def test_health_and_metrics(server: tuple[str, Path]) -> None:
    connection = http.client.HTTPConnection(server[0].removeprefix("http://"))
    pages = {"/page/main.js": 200, "/page/../app.py": 404, "/page/%2e%2e/app.py": 404, f"/page/{'x' * 400}.js": 404}
    pages |= {"/page//etc/passwd": 404, "/page/vendor//etc/debian_version.txt": 404, "/page/": 404, "/page/%00.js": 404}
    found = {"/health": 200, "/ready": 200, "/metrics": 200, "/v2": 404, "/v1/models/x": 404}
    for path, status in (found | pages).items():
        connection.request("GET", path)
        answer = connection.getresponse()
        assert (path, answer.status) == (path, status)
        answer.read()
    assert told(server[0])["medframe_waiting"] == 0


def test_a_key_opens_the_api_and_a_timeout_ends_an_answer(model: Path) -> None:
    options = ("--api-key", "secret-1", "--api-key", "密钥, 2", "--timeout", 1.5, "--disclaimer")
    with serving(f"tiny={model}", "--prompt", "bentsao-literature", *options, "--system-turn", "ignore") as url:
        body = json.dumps({"model": "tiny", "messages": ASKED, "max_tokens": 3})
        for wrong in ({}, {"authorization": "Bearer secret"}, {"authorization": "Bearer sécret-1"}):
            status, answer, _ = send(url, "/v1/chat/completions", body, **wrong)
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        status, _, _ = send(url, "/v1/chat/completions", body, authorization="bearer 密钥, 2".encode())
        assert status == 200
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="secret-1", max_retries=0)
        said = [{"role": "system", "content": "你是医生"}, *ASKED, {"role": "assistant", "content": "好"}, *ASKED]
        answer = client.chat.completions.create(model="tiny", messages=said, max_tokens=3)
        assert str(answer.choices[0].message.content).endswith(DISCLAIMER["zh"])
        with pytest.raises(openai.APIStatusError) as late:
            client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=4096)
        assert late.value.status_code == 504
        with pytest.raises(openai.APIError, match=r"within 1\.5 seconds"):
            list(client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=4096, stream=True))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--host", "0.0.0.0"), "--api-key"),
        (("--host", "192.0.2.1", "--api-key", "k"), "192.0.2.1"),
        (("--temperature", 99), "temperature"),
        (("--audit", "no/such/folder/audit"), "no/such/folder"),
        (("--host", "0.0.0.0", "--api-key", ""), "a key is empty"),
        (("--num-beams", 2), "num-beams"),
        (("--timeout", 0), "timeout"),
        (("--engine-url", "127.0.0.1:8001"), "is no address"),
        (("--engine-url", "http://[1"), "is no address"),
    ],
)
def test_what_would_be_unsafe_or_cannot_be_is_not_started(
    medframe: Medframe, here: Path, model: Path, arguments: tuple[object, ...], said: str
) -> None:
    ended = medframe("serve", model, "--prompt", "chatmed", "--port", 0, *arguments)
    assert ended.code == 2
    assert said in ended.err


def test_another_engine_gets_token_ids_and_never_messages(model: Path, expected: str, tmp_path: Path) -> None:
    audit = tmp_path / "audit"
    with (
        serving(f"tiny={model}", "--prompt", "bentsao-bloom", "--token-ids", "--audit", audit) as engine,
        serving(f"tiny={model}", "--prompt", "chatmed", "--engine-url", f"{engine}/v1/") as url,
    ):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        answer = client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=12)
        assert answer.choices[0].message.content == expected  # by chatmed's layout, which the engine does not know
        assert answer.usage
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (15, 12)
        pieces = client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=12, stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces).strip() == expected
        with pytest.raises(openai.BadRequestError, match="not told by this engine"):
            client.chat.completions.create(model="tiny", messages=ASKED, logprobs=True)
        assert json.loads(audit.read_text().splitlines()[-1])["prompt_tokens"] == 15
    with serving(f"tiny={model}", "--prompt", "chatmed", "--engine-url", engine) as url:
        body = json.dumps({"model": "tiny", "messages": ASKED})
        status, answer_, _ = send(url, "/v1/chat/completions", body)
        assert (status, answer_["error"]["type"]) == (500, "server_error")


@pytest.mark.parametrize(
    "said",
    [
        b"<html>hello</html>",
        b'data: {"choices": 3}\n\n',
        b'data: {"choices": [{"token_ids": [1e99, "x"], "finish_reason": null}]}\n\n',
        b'data: {"choices": [{"token_ids": [1000000000000], "finish_reason": null}]}\n\n',
    ],
)
def test_an_engine_that_answers_nonsense_is_an_error_at_once(model: Path, said: bytes) -> None:
    class Nonsense(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    async def ask(url: str) -> None:
        remote = Remote(url, None, Limits(timeout=20))
        request = Answerer(None, opened.encoder, opened.backbone.load_config()).request([Turn("user", "头晕")])
        with pytest.raises(Failed):
            async for _ in remote.submit("tiny", request).answered():
                pass
        await remote.end()

    opened = open_run(model, prompt="chatmed")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nonsense) as lying:
        threading.Thread(target=lying.serve_forever).start()
        asyncio.run(ask(f"http://127.0.0.1:{lying.server_port}"))
        lying.shutdown()


def test_one_model_that_is_full_or_fails_leaves_the_other_alone(model: Path) -> None:
    opened = open_run(model, prompt="chatmed")
    answerer = Answerer(opened.model(), opened.encoder)

    class Breaking(Engine):
        def drop(self, request: Request) -> None:
            raise RuntimeError("no memory")

    async def ask() -> None:
        limits = Limits(concurrent=1, waiting=0)
        scheduler = Scheduler({"a": Breaking(answerer.model), "b": Engine(answerer.model)}, limits)
        first, second, third = (
            answerer.request([Turn("user", "头晕")], Decoding(max_new_tokens=n)) for n in (1500, 3, 3)
        )
        ticket = scheduler.submit("a", first)
        with pytest.raises(Overloaded):
            scheduler.check("a", 1)
        scheduler.check("b", 1)
        assert "".join([piece async for piece in scheduler.submit("b", second).answered()])
        ticket.leave()
        while scheduler.running:
            await asyncio.sleep(0.01)
        assert "".join([piece async for piece in scheduler.submit("a", third).answered()])
        await scheduler.end()

    asyncio.run(ask())


def test_who_has_gone_before_the_stream_begins_frees_the_place(model: Path) -> None:
    tokenizer, outcomes = Llama().load_tokenizer(), list[object]()

    async def ask() -> Ticket:
        request = Request([1, 5], Decoding(), frozenset(), tokenizer)
        ticket = Ticket("tiny", request, time.monotonic() + 9, asyncio.get_running_loop())
        exchange = Exchange(
            answer=Answer("chat", "tiny", tokenizer), tickets=[ticket], closing="", tell=outcomes.append
        )

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            await asyncio.sleep(0)

        await exchange.stream(False, lambda: None, 9)({"type": "http"}, receive, send)
        return ticket

    assert asyncio.run(ask()).gone
    assert outcomes == ["left"]


def test_a_full_disk_under_the_audit_keeps_nobody_from_an_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Audit(Path("/dev/full")).add(outcome=200)
    assert '"outcome": 200' in capsys.readouterr().err


def test_vllm_that_is_not_there_or_does_not_start_is_told(
    medframe: Medframe, here: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["serve", model, "--prompt", "chatmed", "--port", 0, "--engine", "vllm"]
    monkeypatch.setenv("PATH", str(here))
    ended = medframe(*line)
    assert ended.code == 2
    assert "pip install vllm" in ended.err
    program = here / "vllm"
    program.write_text("#!/bin/sh\necho no GPU; exit 3\n")
    program.chmod(0o755)
    ended = medframe(*line)
    assert ended.code == 2
    assert "it ended with 3: no GPU" in ended.err


def test_adapters_that_share_their_base_answer_as_each_does_alone(tmp_path: Path) -> None:
    backbone, ids = Llama(), torch.tensor([[1, 5, 6, 7, 8]])
    configs: dict[str, dict[str, Any]] = {
        "v1.5": {"target_modules": ["q_proj"]},
        "v1.6": {"target_modules": ["down_proj"], "use_dora": True},
        "default": {"target_modules": ["q_proj", "down_proj"], "use_rslora": True, "lora_dropout": 0.5},
        "whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    }
    runs = {}
    for seed, (name, config) in enumerate(configs.items()):
        torch.manual_seed(seed)
        tuned = get_peft_model(backbone.load_model(), LoraConfig(task_type="CAUSAL_LM", **config))
        for weight in tuned.parameters():
            if weight.requires_grad:
                weight.data += torch.randn_like(weight) / 20
        tuned.save_pretrained(str(tmp_path / name / "adapter"), save_embedding_layers=False)
        manifest = {"kind": "run", "base": {"fingerprint": "b"}, "tokenizer": "t"}
        encoder = Encoder(ChatMed(), backbone.load_tokenizer())
        runs[name] = Opened(tmp_path / name, manifest, backbone, encoder)

    def logits(model: Any) -> Any:
        with torch.no_grad():
            return model(ids).logits

    served = load(list(runs.items()))
    assert served.keys() == {*runs, *(f"{name}-base" for name in runs)}
    assert len({id(each.answerer.model) for each in served.values()}) == 2  # one for LoRA, one for a whole head
    plain = logits(backbone.load_model().eval())
    for name, each in [*served.items()] * 2:
        expected = plain if each.kind == "base" else logits(runs[name].model())
        with each.using():
            assert torch.allclose(logits(each.answerer.model), expected, atol=1e-6), name
        assert each.kind == "base" or not torch.allclose(expected, plain, atol=1e-3)
    with pytest.raises(RunError, match=r"two models are called v1\.5-base"):
        load([*runs.items(), ("v1.5-base", runs["v1.6"])])
    with pytest.raises(RunError, match="two models are called a"):
        elsewhere([("a", runs["v1.5"]), ("a", runs["v1.6"])])


def test_a_path_with_an_equals_sign_is_a_path(here: Path) -> None:
    assert named("lr=1e-4") == ("lr", Path("1e-4"))
    (here / "lr=1e-4").mkdir()
    assert named("lr=1e-4") == (None, Path("lr=1e-4"))


def test_a_connection_that_asks_nothing_is_closed_and_a_long_answer_is_not() -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(1.2)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    config = uvicorn.Config(slow, http=connection(0.4), lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        address = listening.getsockname()
        try:
            with socket.create_connection(address) as asks, socket.create_connection(address) as drips:
                asks.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                drips.sendall(b"GET / HT")
                drips.settimeout(30)
                assert drips.recv(100) == b""
                assert asks.recv(1000).startswith(b"HTTP/1.1 200")
        finally:
            server.should_exit = True
            thread.join(30)
