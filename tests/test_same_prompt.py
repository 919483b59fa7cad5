"""What chat, generate and serve ask a model is, token for token, what stood before the answer in training."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from conftest import Medframe
from starlette.testclient import TestClient

from medframe.backbone import Backbone
from medframe.dataset import Sample, Turn, Where
from medframe.encode import Encoded
from medframe.engine.engine import Engine
from medframe.engine.request import Request
from medframe.plugins import catalog
from medframe.serve.app import app
from medframe.serve.audit import Audit
from medframe.serve.models import load
from medframe.serve.settings import Settings
from medframe.trained import open_run
from medframe_backbones.auto import Auto
from medframe_backbones.baichuan import Baichuan
from medframe_backbones.bloom import Bloom, Huozi
from medframe_backbones.llama import Llama

FORMATS: dict[str, type[Backbone]] = {
    "baichuan-chat": Baichuan,
    "baichuan2-chat": Baichuan,
    "bentsao-bloom": Bloom,
    "bentsao-literature": Llama,
    "bentsao-med": Llama,
    "chat-template": Auto,
    "chatmed": Llama,
    "chinese-alpaca": Llama,
    "disc": Baichuan,
    "huozi-chat": Huozi,
}
SAID = ["胃疼三天了，怎么办？", "疼在\n哪里？ok", "上腹，吃完饭更重。", "先做胃镜。"]


def test_no_format_is_left_out() -> None:
    assert FORMATS.keys() == {each.name for each in catalog().components if each.kind == "prompt"}


@pytest.fixture(scope="module")
def folders() -> dict[type[Backbone], Path]:
    return {}


@pytest.mark.parametrize("name", FORMATS)
def test_every_door_asks_as_in_training(
    name: str,
    folders: dict[type[Backbone], Path],
    tmp_path_factory: pytest.TempPathFactory,
    medframe: Medframe,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = FORMATS[name]
    if backbone not in folders:
        folders[backbone] = tmp_path_factory.mktemp("plain")
        backbone().make_tiny_tokenizer(folders[backbone])
        backbone().make_tiny_weights(folders[backbone])
    model = folders[backbone]
    asked: list[list[int]] = []
    add = Engine.add

    def added(self: Engine, request: Request) -> None:
        asked.append(list(request.ids))
        add(self, request)

    monkeypatch.setattr(Engine, "add", added)
    opened = open_run(model, prompt=name)
    multi_turn = opened.encoder.prompt.multi_turn
    turns = [Turn("assistant" if n % 2 else "user", text) for n, text in enumerate(SAID)]
    turns = turns if multi_turn else turns[:2]

    (learnt,) = opened.encoder.encode([Sample(tuple(turns), Where("here", 1))])
    assert isinstance(learnt, Encoded)
    example = learnt.examples[-1]
    start = max(n for n in range(1, len(example.ids)) if example.trained[n] and not example.trained[n - 1])
    before = example.ids[:start]

    messages = [{"role": turn.role, "content": turn.text} for turn in turns[:-1]]
    (here / "q.json").write_text(json.dumps([{"messages": messages}]), "utf-8")
    short = ("--max-new-tokens", 2)
    ended = medframe("generate", model, "--prompt", name, "--input", "q.json", "--output", "a.jsonl", *short)
    assert ended.code == 0, ended.err
    assert asked.pop() == before

    served = load([("m", opened)])
    with TestClient(app(served, Settings(), Audit(here / "audit")), base_url="http://localhost") as client:
        told = client.post("/v1/chat/completions", json={"model": "m", "messages": messages, "max_tokens": 2})
    assert told.status_code == 200, told.text
    assert told.json()["usage"]["prompt_tokens"] == len(before)
    assert asked.pop() == before

    monkeypatch.setattr("sys.stdin", io.StringIO(f"{SAID[0]}\n"))
    ended = medframe("chat", model, "--prompt", name, *short)
    assert ended.code == 0, ended.err
    (alone,) = opened.encoder.encode([Sample(tuple(turns[:2]), Where("here", 1))])
    assert isinstance(alone, Encoded)
    first = alone.examples[-1]
    assert asked.pop() == first.ids[: next(n for n, trained in enumerate(first.trained) if trained)]
    assert not asked
