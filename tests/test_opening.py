"""What RUN may be beside a run: a model directory with a manifest, a plain directory of weights; and what it is not."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Distribution, Ended, Medframe
from safetensors.torch import load_file, save_file

from medframe.backbone import Backbone
from medframe.model import plain
from medframe.trained import open_run
from medframe_backbones.auto import Auto
from medframe_backbones.baichuan import Baichuan
from medframe_backbones.bloom import Bloom, Huozi
from medframe_backbones.llama import Llama

Chat = Callable[..., Ended]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain directory of transformers' layout."""
    return written(Llama(), tmp_path_factory.mktemp("plain") / "llama")


@pytest.fixture(scope="module")
def whole(llama: Path) -> Path:
    """A model directory with a manifest that binds it to a format with an option of its own."""
    folder = llama.parent / "whole"
    shutil.copytree(llama, folder)
    found = plain(folder, "{use: chatmed, supervise: all}")
    found.tokenizer.save_pretrained(folder)
    manifest = {"kind": "model", **found.describe(), "tiny": True}
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """The model directory, moved, to be tampered with."""
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def chat(medframe: Medframe, monkeypatch: pytest.MonkeyPatch) -> Chat:
    """`medframe chat ARGS` with one question asked."""

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "stdin", io.StringIO("头痛\n"))
        return medframe("chat", *arguments, "--max-new-tokens", 3)

    return call


def written(backbone: Backbone, folder: Path) -> Path:
    folder.mkdir(parents=True)
    backbone.make_tiny_tokenizer(folder)
    backbone.make_tiny_weights(folder)
    return folder


def changed(folder: Path, file: str, **values: Any) -> None:
    content = json.loads((folder / file).read_text("utf-8"))
    (folder / file).write_text(json.dumps({**content, **values}), "utf-8")


def test_a_plain_directory_answers_in_the_format_that_is_named(chat: Chat, llama: Path) -> None:
    ended = chat(llama, "--prompt", "chinese-alpaca")
    assert ended.code == 0, ended.err
    assert "format chinese-alpaca." in ended.out


def test_a_format_is_named_with_its_fields(chat: Chat, llama: Path) -> None:
    ended = chat(llama, "--prompt", "{use: chatmed, supervise: all}")
    assert ended.code == 0, ended.err
    wrong = chat(llama, "--prompt", "{use: chatmed, supervize: all}")
    assert wrong.code == 2
    assert "prompt.supervize: unknown key; did you mean 'supervise'?" in wrong.err
    wrong = chat(llama, "--prompt", "chinese-alpacca")
    assert wrong.code == 2
    assert "did you mean 'chinese-alpaca'?" in wrong.err


def test_without_a_format_those_that_there_are_are_named(chat: Chat, llama: Path) -> None:
    ended = chat(llama)
    assert ended.code == 2
    assert "--prompt NAME" in ended.err
    assert all(name in ended.err for name in ("chinese-alpaca", "chatmed", "chat-template", "disc"))


@pytest.mark.parametrize(
    ("tiny", "expected"), [(Llama(), Llama), (Bloom(), Bloom), (Huozi(), Bloom), (Baichuan(), Baichuan), (Auto(), Auto)]
)
def test_the_backbone_is_told_from_the_configuration(tiny: Backbone, expected: type[Backbone], tmp_path: Path) -> None:
    opened = open_run(written(tiny, tmp_path / "model"), prompt="chinese-alpaca")
    assert type(opened.backbone) is expected
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(opened.model()(ids).logits, tiny.load_model().eval()(ids).logits)


def test_a_llama_of_a_later_generation_opens_with_auto(tmp_path: Path) -> None:
    """Its config.json says llama, and its tokenizer is a byte-level one."""
    folder = written(Auto(), tmp_path / "llama-3")
    for file in written(Llama(), tmp_path / "weights").glob("*"):
        if "tokenizer" not in file.name:
            shutil.copy(file, folder)
    assert type(open_run(folder, prompt="chinese-alpaca").backbone) is Auto


def test_a_backbone_of_another_plugin_says_what_it_is_for(distribution: Distribution, tmp_path: Path) -> None:
    source = (
        "import medframe\n"
        "from dataclasses import dataclass\n"
        "from medframe_backbones.llama import Llama\n"
        "@medframe.hookimpl\n"
        "def backbones():\n"
        "    return {'mine': Mine, 'broken': 'opening_mine_broken:Broken'}\n"
        "@dataclass(kw_only=True)\n"
        "class Mine(Llama):\n"
        "    '''Mine.'''\n"
        "    model_types = ('mine',)\n"
        "    def check_type(self, wanted):\n"
        "        pass\n"
    )
    distribution("opening-mine", {"opening_mine": source, "opening_mine_broken": "import nothing"}, ["opening_mine"])
    folder = written(Llama(), tmp_path / "model")
    changed(folder, "config.json", model_type="mine")
    assert type(open_run(folder, prompt="chinese-alpaca").backbone).__name__ == "Mine"


def test_a_model_that_no_backbone_is_for_is_named(chat: Chat, llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "strange")
    changed(tmp_path / "strange", "config.json", model_type="strange")
    ended = chat(tmp_path / "strange", "--prompt", "chinese-alpaca")
    assert ended.code == 2
    assert "holds a strange model" in ended.err


def test_a_model_directory_opens_alone_in_its_own_format(chat: Chat, copy: Path) -> None:
    opened = open_run(copy)
    assert opened.kind == "model"
    assert opened.encoder.prompt.supervise == "all"  # type: ignore[attr-defined]
    ended = chat(copy)
    assert ended.code == 0, ended.err
    assert "format chatmed." in ended.out
    assert "knows no medicine" in ended.out


def test_the_same_model_has_the_same_fingerprint_anywhere(whole: Path, copy: Path, llama: Path) -> None:
    assert open_run(copy).fingerprint == open_run(whole).fingerprint
    assert open_run(llama, prompt="chatmed").fingerprint == open_run(llama, prompt="chinese-alpaca").fingerprint


@pytest.mark.parametrize("what", ["weights", "configuration", "tokenizer", "format"])
def test_what_a_model_directory_is_bound_to_is_checked(chat: Chat, copy: Path, what: str) -> None:
    said = {
        "weights": "tensors differ, first model.layers.2.mlp.up_proj.weight",
        "configuration": "config.json differs",
        "tokenizer": "the tokenizer is not the one this model was written with",
        "format": "the prompt format 'chatmed' lays conversations out differently than in training",
    }
    if what == "weights":
        tensors = load_file(copy / "model.safetensors")
        tensors["model.layers.2.mlp.up_proj.weight"].view(-1)[1234] += 1e-3
        save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    elif what == "configuration":
        changed(copy, "config.json", rms_norm_eps=1e-3)
    elif what == "tokenizer":
        tokenizer = json.loads((copy / "tokenizer.json").read_text("utf-8"))
        vocab = tokenizer["model"]["vocab"]
        vocab["头"], vocab["痛"] = vocab["痛"], vocab["头"]
        (copy / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")
    else:
        prompt = json.loads((copy / "manifest.json").read_text("utf-8"))["prompt"]
        changed(copy, "manifest.json", prompt={**prompt, "fields": {"supervise": "answer"}})
    ended = chat(copy)
    assert ended.code == 2
    assert said[what] in ended.err


def test_a_manifest_without_a_format_needs_one_and_is_still_checked(chat: Chat, copy: Path) -> None:
    changed(copy, "manifest.json", prompt=None)
    ended = chat(copy)
    assert ended.code == 2
    assert "--prompt NAME" in ended.err
    ended = chat(copy, "--prompt", "chinese-alpaca")
    assert ended.code == 0, ended.err
    assert "format chinese-alpaca." in ended.out
    changed(copy, "config.json", rms_norm_eps=1e-3)
    assert chat(copy, "--prompt", "chinese-alpaca").code == 2


def test_what_does_not_go_with_a_whole_model_is_refused(chat: Chat, copy: Path) -> None:
    for option in (["--prompt", "chinese-alpaca"], ["--base", copy]):
        ended = chat(copy, *option)
        assert ended.code == 2
        assert str(option[0]) in ended.err


@pytest.mark.parametrize(
    "manifest", ["{", "[]", '{"kind": "model"}', '{"kind": "train", "state": "finished", "base": {}}']
)
def test_a_broken_manifest_is_said(chat: Chat, copy: Path, manifest: str) -> None:
    (copy / "manifest.json").write_text(manifest, "utf-8")
    ended = chat(copy)
    assert ended.code == 2
    assert f"{copy / 'manifest.json'} is broken" in ended.err


def test_what_is_no_model_at_all_is_said(chat: Chat, tmp_path: Path) -> None:
    ended = chat(tmp_path)
    assert ended.code == 2
    assert "give a run, a merged model, or a directory with config.json" in ended.err
    assert "is no directory" in chat(tmp_path / "nowhere").err
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert "medframe merge BASE ADAPTER" in chat(tmp_path / "adapter").err
    (tmp_path / "manifest.json").write_text("{}")
    assert f"name its run, {tmp_path}" in chat(tmp_path / "adapter").err


def test_verbs_about_a_training_say_that_a_model_is_none(medframe: Medframe, copy: Path, recipe: Path) -> None:
    for line in (("report", copy), ("run", recipe, f"out={copy}"), ("run", recipe, f"out={copy}", "--overwrite")):
        ended = medframe(*line)
        assert ended.code == 2, line
        assert f"{copy} holds a merged model, not a run" in ended.err


def test_a_file_that_a_format_reads_goes_with_the_model(llama: Path, tmp_path: Path) -> None:
    from medframe.model import carry

    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}assistant: ", "utf-8")
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    found = plain(folder, f"{{use: chat-template, template: {template}}}")
    found.tokenizer.save_pretrained(folder)
    manifest: dict[str, Any] = {"kind": "model", **found.describe()}
    manifest["prompt"]["fields"] |= carry(found.prompt, folder, "prompt")
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    template.unlink()
    folder.rename(tmp_path / "elsewhere")
    assert open_run(tmp_path / "elsewhere").manifest["prompt"]["use"] == "chat-template"
