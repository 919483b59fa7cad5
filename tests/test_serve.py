"""`medframe serve`, by OpenAI's own client and by those that mean no good."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from conftest import Medframe, serving

from medframe.answer import Answerer
from medframe.dataset import Turn
from medframe.decoding import Decoding
from medframe.serve.app import DISCLAIMER
from medframe.trained import open_run
from medframe_backbones.llama import Llama

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


def send(url: str, path: str, body: bytes | str, **headers: str) -> tuple[int, dict[str, Any], Any]:
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


def test_chatmeds_own_client_is_answered(server: tuple[str, Path], expected: str) -> None:
    body = {"query": "<s>问：\n头晕怎么办？\n答：\n", "max_new_tokens": 12}
    status, answer, _ = send(server[0], "/chatmed_generate", json.dumps(body))
    assert (status, answer) == (200, {"query": body["query"], "response": expected})


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
        ({"top_p": 0}, 400, "top_p"),
        ({"n": 9}, 400, "n may be at most 8"),
        ({"stop": ""}, 400, "empty text"),
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


def test_health_and_metrics(server: tuple[str, Path]) -> None:
    connection = http.client.HTTPConnection(server[0].removeprefix("http://"))
    for path, status in {"/health": 200, "/ready": 200, "/metrics": 200, "/v2": 404, "/v1/models/x": 404}.items():
        connection.request("GET", path)
        answer = connection.getresponse()
        assert (path, answer.status) == (path, status)
        answer.read()
    assert told(server[0])["medframe_waiting"] == 0


def test_a_key_opens_the_api_and_a_timeout_ends_an_answer(model: Path) -> None:
    options = ("--api-key", "secret-1", "--api-key", "secret-2", "--timeout", 1.5, "--disclaimer")
    with serving(f"tiny={model}", "--prompt", "bentsao-literature", *options, "--system-turn", "ignore") as url:
        body = json.dumps({"model": "tiny", "messages": ASKED, "max_tokens": 3})
        for wrong in ({}, {"authorization": "Bearer secret"}, {"authorization": "Bearer sécret-1"}):
            status, answer, _ = send(url, "/v1/chat/completions", body, **wrong)
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        for key in ("secret-1", "secret-2"):
            client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
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
        serving(f"tiny={model}", "--prompt", "chatmed", "--engine-url", engine) as url,
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
