"""`medframe merge` as its user meets it: the tensors that peft comes to, in a directory that opens alone, or a no."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import Ended, Medframe
from safetensors.torch import load_file, save_file
from test_adapters import grown_tokenizer, make_adapter

from medframe.backbone import Backbone
from medframe_backbones.auto import Auto
from medframe_backbones.baichuan import Baichuan
from medframe_backbones.bloom import Bloom
from medframe_backbones.llama import Llama

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Case(NamedTuple):
    """A base model, and how an adapter of it is made."""

    base: str
    config: dict[str, Any]
    dtype: str = "float16"


CASES = {
    "all modules": Case("llama", {"target_modules": ALL}),
    "bfloat16": Case("llama", {"target_modules": ALL}, "bfloat16"),
    "float32": Case("llama", {"target_modules": ["q_proj"]}, "float32"),
    "rslora": Case("llama", {"target_modules": ["q_proj"], "use_rslora": True}, "bfloat16"),
    "patterns": Case(
        "llama",
        {
            "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "v_proj": 8},
            "alpha_pattern": {r"layers\.[23]\..*v_proj": 7},
        },
    ),
    "a pattern of names": Case("llama", {"target_modules": r".*\.[02]\..*_proj", "exclude_modules": ["up_proj"]}),
    "some layers": Case(
        "llama", {"target_modules": ["q_proj"], "layers_to_transform": [1, 3], "layers_pattern": "layers"}
    ),
    "dora": Case("llama", {"target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    "dora of an embedding": Case("llama", {"target_modules": ["embed_tokens"], "use_dora": True}, "bfloat16"),
    "an embedding": Case("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "a head": Case("llama", {"target_modules": ["lm_head"]}, "bfloat16"),
    "whole modules": Case("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "bloom": Case("bloom", {"target_modules": ["query_key_value", "dense"]}),
    "biases of adapted modules": Case("bloom", {"target_modules": ["query_key_value"], "bias": "lora_only"}),
    "all biases": Case("bloom", {"target_modules": ["dense"], "bias": "all"}, "bfloat16"),
    "lora's own bias": Case("bloom", {"target_modules": ["query_key_value"], "lora_bias": True}, "bfloat16"),
    "baichuan": Case("baichuan", {"target_modules": ["W_pack", "o_proj"]}),
    "tied": Case("tied", {"target_modules": ["q_proj", "down_proj"]}, "bfloat16"),
    "tied, both given whole": Case(
        "tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    ),
    "gpt2": Case("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "gpt2, dora": Case("gpt2", {"target_modules": ["c_fc"], "fan_in_fan_out": True, "use_dora": True}),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Base models by kind and dtype, each made when it is first asked for; in several files, as they are published."""
    folder = tmp_path_factory.mktemp("bases")

    def base(kind: str, dtype: str) -> Path:
        made = folder / f"{kind}-{dtype}"
        if not made.exists():
            backbone = {"llama": Llama, "bloom": Bloom, "baichuan": Baichuan, "tied": Auto, "gpt2": Auto}[kind]()
            written(backbone, made)
            model = gpt2(made) if kind == "gpt2" else opened(made)
            if kind == "tied":
                model.config.tie_word_embeddings = True
                model.tie_weights()
            if kind == "bloom":  # its biases are zero
                torch.manual_seed(3)
                for name, parameter in model.named_parameters():
                    parameter.data += 0.1 * torch.randn_like(parameter) if name.endswith("bias") else 0
            for file in made.glob("*.safetensors"):
                file.unlink()
            model.to(getattr(torch, dtype)).save_pretrained(made, max_shard_size="1MB")
        return made

    return base


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps, with an embedding and a head of its own."""
    decoding = "decoding={repetition_penalty: 1.3, max_new_tokens: 20}"
    return trained(tmp_path_factory.mktemp("run") / "clinic", "trainer.learning_rate=1e-2", decoding)


@pytest.fixture
def merge(medframe: Medframe, tmp_path: Path) -> Callable[..., Path]:
    """`medframe merge ARGS --out OUT`, which must succeed; its OUT."""

    def call(*arguments: object, out: str = "merged") -> Path:
        ended = medframe("merge", *arguments, "--out", tmp_path / out)
        assert ended.code == 0, ended.err
        assert not list(tmp_path.glob(".*.lock"))
        return tmp_path / out

    return call


@pytest.fixture
def refused(medframe: Medframe, tmp_path: Path) -> Callable[..., str]:
    """`medframe merge ARGS --out OUT`, which must be refused and leave nothing; what it says."""

    def call(*arguments: object, code: int = 2) -> str:
        ended = medframe("merge", *arguments, "--out", tmp_path / "merged")
        assert ended.code == code, ended.out + ended.err
        assert not list(tmp_path.glob("*merged*"))
        return ended.err

    return call


def trained(out: Path, *overrides: str) -> Path:
    line = [sys.executable, "-m", "medframe", "run", "chatmed", f"out={out}", "data.consult.limit=40", "compare=0"]
    line += ["held_out={rows: 4}", "trainer.max_steps=3", "trainer.warmup_steps=0", "trainer.save_steps=1000"]
    result = subprocess.run([*line, *overrides], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return out


def written(backbone: Backbone, folder: Path) -> Path:
    folder.mkdir(parents=True)
    backbone.make_tiny_tokenizer(folder)
    backbone.make_tiny_weights(folder)
    return folder


def gpt2(folder: Path) -> Any:
    """A tiny GPT-2, whose matrices lie the other way round, beside the tokenizer in the folder."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    rows = len(AutoTokenizer.from_pretrained(folder))
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=rows, n_embd=64, n_head=2, n_layer=2, n_positions=128))


def opened(folder: Path) -> Any:
    """The model by transformers alone; Baichuan's by its backbone's class."""
    from transformers import AutoModelForCausalLM

    import medframe_backbones.baichuan.model  # noqa: F401

    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


def adapted(base: Path, folder: Path, config: dict[str, Any], seed: int = 0) -> Path:
    """An adapter as peft makes and saves it, every number of it random."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 16, "task_type": "CAUSAL_LM", **config}
    model: Any = get_peft_model(opened(base), LoraConfig(init_lora_weights=False, **settings))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            parameter.data += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def by_peft(base: Path, adapters: Sequence[Path]) -> dict[str, torch.Tensor]:
    """What peft's default merge of the adapters in turn comes to."""
    from peft import PeftModel

    model = opened(base)
    for adapter in adapters:
        rows = next((len(t) for name, t in tensors(adapter).items() if name.endswith("embed_tokens.weight")), None)
        if rows and rows != model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(rows, mean_resizing=False)
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    found: dict[str, torch.Tensor] = model.state_dict()
    return found


def tensors(adapter: Path) -> dict[str, torch.Tensor]:
    if (adapter / "adapter_model.safetensors").exists():
        return load_file(adapter / "adapter_model.safetensors")
    found: dict[str, torch.Tensor] = torch.load(adapter / "adapter_model.bin", weights_only=True)
    return found


def rewritten(adapter: Path, **changed: Any) -> None:
    """Change the adapter's tensors: by function of all of them, or keys of its configuration."""
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **changed}), "utf-8")


def equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor.to(found[name].dtype)), name


def manifest(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "manifest.json").read_text("utf-8"))
    return loaded


def said(medframe: Medframe, monkeypatch: pytest.MonkeyPatch, out: Path, *options: object) -> str:
    monkeypatch.setattr(sys, "stdin", io.StringIO("头痛三天了怎么办？\n"))
    ended = medframe("chat", out, *options, "--max-new-tokens", 12)
    assert ended.code == 0, ended.err
    return ended.out.partition("> ")[2]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_it_is_bit_for_bit_what_peft_merges(
    bases: Callable[[str, str], Path], merge: Callable[..., Path], tmp_path: Path, case: Case
) -> None:
    base = bases(case.base, case.dtype)
    adapter = adapted(base, tmp_path / "adapter", case.config)
    out = merge(base, adapter, "--shard-size", "1MB", "--check")
    merged = opened(out)
    assert str(merged.dtype) == f"torch.{case.dtype}"
    expected = by_peft(base, [adapter])
    equal(merged.state_dict(), expected)
    before = opened(base).state_dict()
    changed = [
        name for name, tensor in expected.items() if not torch.equal(tensor.to(before[name].dtype), before[name])
    ]
    assert changed, "the adapter changes nothing, and the test proves nothing"


def test_several_adapters_are_rounded_one_after_the_other(
    bases: Callable[[str, str], Path], merge: Callable[..., Path], tmp_path: Path
) -> None:
    base = bases("llama", "float16")
    adapters = [adapted(base, tmp_path / f"a{i}", {"target_modules": ["q_proj", "o_proj"]}, i) for i in range(2)]
    out = merge(base, *adapters, "--check")
    equal(opened(out).state_dict(), by_peft(base, adapters))
    # Rounded once, it is closer to the exact sum.
    once = opened(merge(base, *adapters, "--rounding", "once", out="once")).state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    exact = opened(base).state_dict()[name].double()
    for adapter in adapters:
        stem = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        state = tensors(adapter)
        exact += state[f"{stem}B.weight"].double() @ state[f"{stem}A.weight"].double() * 4
    off = [float((state[name].double() - exact).abs().sum()) for state in (once, opened(out).state_dict())]
    assert off[0] < 0.9 * off[1]


def test_a_vocabulary_grows_with_its_adapters(merge: Callable[..., Path], tmp_path: Path) -> None:
    """LLaMA, Chinese-LLaMA-Plus and Chinese-Alpaca-Plus in small: the last tokenizer is the model's."""
    from transformers import AutoTokenizer

    base, adapters = chain(tmp_path)
    out = merge(base, *adapters, "--dtype", "float16", "--check")
    expected = {name: tensor.half() for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(expected, base / "model.safetensors", metadata={"format": "pt"})
    rewrite_json(base / "config.json", dtype="float16")
    equal(opened(out).state_dict(), by_peft(base, adapters))
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.pad_token == "[PAD]"
    assert len(tokenizer) == opened(out).config.vocab_size
    # legacy=True has survived: what follows a special token begins with the dummy prefix.
    assert tokenizer.convert_ids_to_tokens(tokenizer("<s>问", add_special_tokens=False).input_ids) == ["<s>", "▁", "问"]


def chain(folder: Path) -> tuple[Path, list[Path]]:
    """A base model, and two adapters in the layout of 2023 that grow its vocabulary."""
    base = written(Llama(), folder / "llama")
    rows = len(Llama(weights=str(base)).load_tokenizer())
    adapters = [folder / "llama-plus", folder / "alpaca-plus"]
    for number, adapter in enumerate(adapters):
        adapter.mkdir()
        grown_tokenizer(base, adapter, pad=number == 1)
        make_adapter(base, adapter, rows + 5 + number, seed=number)
    return base, adapters


def rewrite_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **values}), "utf-8")


def test_old_files_are_read_with_nothing_of_them_run(merge: Callable[..., Path], tmp_path: Path) -> None:
    """A base of several pickles, and an adapter as early Trainers left it in a checkpoint."""
    base, (adapter, _) = chain(tmp_path)
    reference = opened(merge(base, adapter)).state_dict()
    state = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    names = sorted(state)
    files = {"pytorch_model-00001-of-00002.bin": names[:10], "pytorch_model-00002-of-00002.bin": names[10:]}
    for file, part in files.items():
        torch.save({name: state[name] for name in part}, base / file)
    places = {name: file for file, part in files.items() for name in part}
    (base / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}), "utf-8")
    (adapter / "adapter_model.bin").rename(adapter / "pytorch_model.bin")
    equal(opened(merge(base, adapter, "--check", out="old")).state_dict(), reference)


def test_names_without_the_prefix_that_some_files_leave_out(
    bases: Callable[[str, str], Path], merge: Callable[..., Path], tmp_path: Path
) -> None:
    base = tmp_path / "bloom"
    shutil.copytree(bases("bloom", "float16"), base)
    state = {name: tensor for file in base.glob("*.safetensors") for name, tensor in load_file(file).items()}
    for file in base.glob("*.safetensors*"):
        file.unlink()
    bare = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    save_file(bare, base / "model.safetensors", metadata={"format": "pt"})
    adapter = adapted(base, tmp_path / "adapter", {"target_modules": ["query_key_value"]})
    out = merge(base, adapter)
    equal(opened(out).state_dict(), by_peft(base, [adapter]))
    assert load_file(out / "model.safetensors").keys() == bare.keys()


def test_a_head_is_told_from_a_tied_embedding_only_where_it_has_to_be(
    bases: Callable[[str, str], Path], merge: Callable[..., Path], tmp_path: Path
) -> None:
    base = bases("tied", "float32")
    together = merge(base, adapted(base, tmp_path / "a", {"target_modules": ["q_proj"]}), out="together")
    assert json.loads((together / "config.json").read_text("utf-8"))["tie_word_embeddings"] is True
    both = adapted(base, tmp_path / "b", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]})
    state = tensors(both)
    state["base_model.model.lm_head.weight"] = state["base_model.model.model.embed_tokens.weight"].clone()
    save_file(state, both / "adapter_model.safetensors", metadata={"format": "pt"})
    model = opened(merge(base, both, "--check", out="both"))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    before = opened(base).state_dict()["lm_head.weight"]
    for number, config in enumerate(
        (
            {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
            {"target_modules": ["embed_tokens"]},
            {"target_modules": ["lm_head"]},
        )
    ):
        adapter = adapted(base, tmp_path / f"apart{number}", config)
        # As the adapter computes beside the base, which peft's merge changes on both sides: --check would tell.
        model = opened(merge(base, adapter, "--check", out=f"m{number}"))
        assert model.config.tie_word_embeddings is False
        head, embedding = model.lm_head.weight, model.get_input_embeddings().weight
        assert torch.equal(head, before) == (number < 2)
        assert torch.equal(embedding, before) == (number == 2)


def test_a_merged_run_answers_as_the_run(
    medframe: Medframe, monkeypatch: pytest.MonkeyPatch, merge: Callable[..., Path], run: Path
) -> None:
    out = merge(run, "--shard-size", "2MB", "--check")
    answer = said(medframe, monkeypatch, run)
    assert said(medframe, monkeypatch, out) == answer
    # The directory is all it takes.
    moved = out.parent / "elsewhere"
    out.rename(moved)
    assert said(medframe, monkeypatch, moved) == answer


def test_transformers_alone_asks_and_answers_alike(
    medframe: Medframe, monkeypatch: pytest.MonkeyPatch, merge: Callable[..., Path], run: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from medframe.dataset import Turn
    from medframe.trained import open_run

    out = merge(run)
    tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out)
    messages = [{"role": "user", "content": "头痛三天了怎么办？"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert inputs["input_ids"][0].tolist() == open_run(run).encoder.question([Turn("user", "头痛三天了怎么办？")])
    written = model.generate(**inputs, do_sample=False, max_new_tokens=12)[0][inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(written, skip_special_tokens=True).strip() in said(medframe, monkeypatch, run)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert model.generation_config.repetition_penalty == 1.3
    assert open_run(out).decoding == open_run(run).decoding


def test_a_merged_directory_says_where_it_came_from(merge: Callable[..., Path], run: Path) -> None:
    from medframe.trained import open_run

    out = merge(run)
    found, of_run = manifest(out), manifest(run)
    (adapter,) = found["lineage"]["adapters"]
    assert found["kind"] == "model"
    assert found["lineage"]["base"] == {"name": "tiny", "fingerprint": of_run["base"]["fingerprint"]}
    assert adapter["name"] == "clinic"
    assert adapter["fingerprint"] == adapter["run"]["trained"] == of_run["trained"]
    assert adapter["run"]["data"][0]["content"] == of_run["data"][0]["content"]
    assert found["prompt"] == of_run["prompt"]
    # Where things lay on this machine is nobody's business.
    text = json.dumps({name: value for name, value in found.items() if name != "weights"})
    assert str(run.parent) not in text
    assert "clinic" in (out / "README.md").read_text("utf-8")
    assert open_run(out).fingerprint == found["fingerprint"]
    assert found["proof"]["changed"] + found["proof"]["untouched"] == found["proof"]["tensors"]


def test_an_adapter_of_a_run_brings_its_format(merge: Callable[..., Path], run: Path, tmp_path: Path) -> None:
    base = written(Llama(), tmp_path / "base")
    whole = manifest(merge(run))
    for number, named in enumerate((run, run / "adapter")):
        found = manifest(merge(base, named, out=f"m{number}"))
        assert found["prompt"] == whole["prompt"]
        assert found["proof"]["content"] == whole["proof"]["content"]
        assert found["fingerprint"] == whole["fingerprint"]


def test_without_a_run_the_format_is_named_or_asked_for(
    medframe: Medframe, monkeypatch: pytest.MonkeyPatch, merge: Callable[..., Path], tmp_path: Path
) -> None:
    base = written(Llama(), tmp_path / "base")
    adapter = adapted(base, tmp_path / "adapter", {"target_modules": ["q_proj"]})
    ended = medframe("merge", base, adapter, "--out", tmp_path / "plain")
    assert "medframe chat" in ended.out and "--prompt NAME" in ended.out
    assert manifest(tmp_path / "plain")["prompt"] is None
    assert medframe("chat", tmp_path / "plain").code == 2
    bound = merge(base, adapter, "--prompt", "{use: chatmed, supervise: all}")
    assert said(medframe, monkeypatch, bound) == said(
        medframe, monkeypatch, tmp_path / "plain", "--prompt", "{use: chatmed, supervise: all}"
    )
    assert manifest(bound)["prompt"]["fields"] == {"supervise": "all"}


def test_a_merged_model_is_a_base_for_more(merge: Callable[..., Path], run: Path, tmp_path: Path) -> None:
    first = merge(run)
    adapter = adapted(first, tmp_path / "adapter", {"target_modules": ["q_proj"]})
    second = merge(first, adapter, out="second")
    equal(opened(second).state_dict(), by_peft(first, [adapter]))
    assert manifest(second)["lineage"]["base"]["lineage"] == manifest(first)["lineage"]
    # In one go, it is the same.
    at_once = merge(run, adapter, out="at-once")
    assert manifest(at_once)["proof"]["content"] == manifest(second)["proof"]["content"]


def test_a_run_of_every_parameter_becomes_a_model_directory(
    medframe: Medframe, monkeypatch: pytest.MonkeyPatch, merge: Callable[..., Path], tmp_path: Path
) -> None:
    whole = trained(tmp_path / "whole", "trainer={use: full, max_steps: 2, warmup_steps: 0, save_steps: 1000}")
    out = merge(whole, "--check")
    equal(opened(out).state_dict(), opened(whole / "model").state_dict())
    assert said(medframe, monkeypatch, out) == said(medframe, monkeypatch, whole)
    assert manifest(out)["lineage"]["base"]["run"]["trained"] == manifest(whole)["trained"]
    half = merge(whole, "--dtype", "bfloat16", out="half")
    assert opened(half).dtype == torch.bfloat16
    ended = medframe("merge", written(Llama(), tmp_path / "base"), whole, "--out", tmp_path / "no")
    assert ended.code == 2
    assert f"medframe merge {whole} --out DIR" in ended.err


def test_an_adapter_trained_beside_rounded_weights_is_merged_into_the_stored_ones(
    medframe: Medframe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    run = trained(tmp_path / "rounded", "backbone.weights_dtype=int8")
    ended = medframe("merge", run, "--out", tmp_path / "merged", "--check")
    assert ended.code == 0, ended.err
    assert "WARNING it was trained beside int8 weights" in ended.out
    equal(opened(tmp_path / "merged").state_dict(), by_peft(written(Llama(), tmp_path / "base"), [run / "adapter"]))
    assert said(medframe, monkeypatch, tmp_path / "merged")


# What is refused.


@pytest.fixture
def pair(bases: Callable[[str, str], Path], tmp_path: Path) -> tuple[Path, Path]:
    """A base and an adapter of it, both to be tampered with."""
    shutil.copytree(bases("llama", "float16"), tmp_path / "base")
    adapter = adapted(tmp_path / "base", tmp_path / "adapter", {"target_modules": ["q_proj", "v_proj"]})
    return tmp_path / "base", adapter


Q = "base_model.model.model.layers.0.self_attn.q_proj"
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "not lora": ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    "layers replicated": ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication is [[0, 2], [1, 3]]"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices is [1, 2]"),
    "parameters": ({"target_parameters": ["experts"]}, "target_parameters is"),
    "of the future": ({"use_something_new": True}, "use_something_new is true, which is not understood here"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changed the base model's weights"),
    "another rank": ({"r": 8}, "its configuration says rank 8"),
    "dora": ({"use_dora": True}, "use_dora is True"),
    "lora_bias": ({"lora_bias": True}, "lora_bias is on"),
    "more than is stored": ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, "was the adapter saved whole?"),
    "less than is stored": ({"target_modules": ["q_proj"]}, "target_modules does not name model.layers.0.self_attn.v"),
    "a module not stored": ({"modules_to_save": ["lm_head"]}, "modules_to_save names lm_head, and lm_head.weight is"),
    "no rank": ({"r": None}, "it lacks r or lora_alpha"),
}


@pytest.mark.parametrize(("changed", "why"), CONFIGS.values(), ids=CONFIGS.keys())
def test_a_configuration_that_is_not_honoured_in_full_is_refused(
    refused: Callable[..., str], pair: tuple[Path, Path], changed: dict[str, Any], why: str
) -> None:
    rewritten(pair[1], **changed)
    assert why in refused(*pair)


def one_more(state: dict[str, Any]) -> None:
    state["base_model.model.model.layers.99.self_attn.q_proj.lora_A.weight"] = state[f"{Q}.lora_A.weight"].clone()


def a_strange_one(state: dict[str, Any]) -> None:
    state["base_model.model.model.thing.weight"] = torch.ones(3)


def half_a_pair(state: dict[str, Any]) -> None:
    del state[f"{Q}.lora_B.weight"]


def an_unknown_part(state: dict[str, Any]) -> None:
    state[f"{Q}.lora_E.weight"] = torch.ones(4)


def an_empty_one(state: dict[str, Any]) -> None:
    state[f"{Q}.lora_A.weight"] = torch.ones(0)


def another_width(state: dict[str, Any]) -> None:
    for name, tensor in state.items():
        state[name] = torch.ones(4, 64) if "lora_A" in name else tensor


def not_a_number(state: dict[str, Any]) -> None:
    state[f"{Q}.lora_A.weight"][0, 0] = torch.nan


def beyond_float16(state: dict[str, Any]) -> None:
    state[f"{Q}.lora_A.weight"] *= 1e6


def nothing(state: dict[str, Any]) -> None:
    for name in state:
        state[name] = torch.zeros_like(state[name])


@pytest.mark.parametrize(
    ("change", "why", "code"),
    [
        (one_more, "layers.99.self_attn.q_proj.lora_A.weight has no place", 2),
        (a_strange_one, "base_model.model.model.thing.weight has no place in this model", 2),
        (half_a_pair, "has only lora_A, and no pair", 2),
        (an_unknown_part, "lora_E.weight is not understood", 2),
        (an_empty_one, "is empty, as DeepSpeed's stage 3 saves what was not gathered", 2),
        (another_width, "of the base is [128, 128], the adapter is for [128, 64]: it was trained on another base", 2),
        (not_a_number, "model.layers.0.self_attn.q_proj.weight is not finite once merged", 1),
        (beyond_float16, "float16 ends at 65,504: --dtype bfloat16 or float32 may hold it", 1),
        (nothing, "no tensor has changed", 1),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    refused: Callable[..., str], pair: tuple[Path, Path], change: Callable[[dict[str, Any]], None], why: str, code: int
) -> None:
    state = tensors(pair[1])
    change(state)
    save_file(state, pair[1] / "adapter_model.safetensors", metadata={"format": "pt"})
    assert why in refused(*pair, code=code)


def test_vocabularies_that_do_not_fit_are_told_with_the_likely_cause(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    base, (first, second) = chain(tmp_path)
    assert "are the adapters in the wrong order?" in refused(base, second, first)
    shutil.copy(first / "tokenizer_config.json", second)
    assert "Chinese-LLaMA (49,953) and Chinese-Alpaca (49,954)" in refused(base, first, second)


def test_a_vocabulary_that_grows_only_in_part_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    base, (first, _) = chain(tmp_path)
    state = tensors(first)
    del state["base_model.model.lm_head.weight"]
    torch.save(state, first / "adapter_model.bin")
    rewritten(first, modules_to_save=["embed_tokens"])
    assert "no adapter brings lm_head.weight with as many rows" in refused(base, first)


@pytest.mark.parametrize("what", ["cut short", "a file missing", "a tensor missing", "quantised", "a pickle that runs"])
def test_a_base_that_is_not_whole_is_refused(refused: Callable[..., str], pair: tuple[Path, Path], what: str) -> None:
    base = pair[0]
    first = min(base.glob("*.safetensors"))
    index = base / "model.safetensors.index.json"
    if what == "cut short":
        os.truncate(first, first.stat().st_size - 2)
        why = f"{first} is cut short"
    elif what == "a file missing":
        first.unlink()
        why = f"names {first.name}, which is not there"
    elif what == "a tensor missing":
        state = load_file(first)
        gone = min(state)
        save_file({name: t for name, t in state.items() if name != gone}, first, metadata={"format": "pt"})
        places = json.loads(index.read_text("utf-8"))["weight_map"]
        rewrite_json(index, weight_map={name: file for name, file in places.items() if name != gone})
        why = f"the base lacks 1 tensors that its config.json asks for: {gone}"
    elif what == "quantised":
        rewrite_json(base / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
        why = "is quantised"
    else:
        import pickle

        class Evil:
            def __reduce__(self) -> Any:
                return (print, ("run",))

        for file in base.glob("*.safetensors*"):
            file.unlink()
        (base / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Evil()}))
        why = "it could be made to run anything"
    assert why in refused(*pair)


def test_a_normalised_head_takes_no_low_rank_sum(refused: Callable[..., str], tmp_path: Path) -> None:
    base = written(Baichuan(head="norm"), tmp_path / "base")
    adapter = adapted(base, tmp_path / "adapter", {"target_modules": ["lm_head"]})
    assert "lm_head" in refused(base, adapter)


def test_what_cannot_be_named_together_is_refused(
    medframe: Medframe, refused: Callable[..., str], run: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    assert "alone is nothing to merge" in refused(pair[0])
    assert "--base: it says where a run's base model lies" in refused(*pair, "--base", pair[0])
    assert "bound to the format that it was trained with" in refused(run, "--prompt", "chatmed")
    assert "is no size such as 500MB or 5GB" in refused(*pair, "--shard-size", "5")
    assert "has no adapter_config.json" in refused(pair[0], pair[0])
    assert "unknown prompt 'chatmad': did you mean 'chatmed'?" in refused(*pair, "--prompt", "chatmad")
    # A run's adapter goes onto the base that it was trained on, and no other.
    assert "was trained on" in refused(pair[0], run)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("the only copy")
    ended = medframe("merge", *pair, "--out", tmp_path / "mine")
    assert (ended.code, (tmp_path / "mine" / "thesis.txt").read_text()) == (2, "the only copy")
    assert "is in the way" in ended.err
    assert "is a file" in medframe("merge", *pair, "--out", tmp_path / "mine" / "thesis.txt" / "out").err
    assert medframe("merge", *pair, "--out", tmp_path / "a" / "b").code == 0


def test_a_run_that_is_not_as_it_was_left_is_refused(refused: Callable[..., str], run: Path, tmp_path: Path) -> None:
    base = written(Llama(), tmp_path / "base")
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    file = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    state = load_file(file)
    state[min(state)] += 1
    save_file(state, file, metadata={"format": "pt"})
    for names in ([tmp_path / "run"], [base, tmp_path / "run"], [base, tmp_path / "run" / "adapter"]):
        assert "the run left" in refused(*names)
    rewrite_json(tmp_path / "run" / "manifest.json", state="training")
    for names in ([tmp_path / "run"], [base, tmp_path / "run"]):
        assert "has not finished" in refused(*names)


# What a disk, or somebody with kill -9, may do to it.


def start(base: Path, adapter: Path, out: Path, **settings: Any) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "medframe", "merge", base, adapter, "--out", out, "--shard-size", "100KB"]
    return subprocess.Popen(list(map(str, line)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings)


@pytest.mark.parametrize("seen", ["*", "model-00009-*", "config.json"])
def test_a_killed_merge_leaves_nothing_that_looks_finished(
    medframe: Medframe, pair: tuple[Path, Path], tmp_path: Path, seen: str
) -> None:
    aside, out = tmp_path / "merged.saving", tmp_path / "merged"
    process = start(*pair, out)
    while not list(aside.glob(seen)) and not out.exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if out.exists():
        assert medframe("chat", out, "--prompt", "chatmed").code == 0
        return  # it was quicker, and is whole
    assert not (aside / "manifest.json").exists()
    assert medframe("merge", *pair, "--out", out).code == 0
    assert not list(tmp_path.glob("*merged.*"))
    equal(opened(out).state_dict(), by_peft(pair[0], [pair[1]]))


def test_a_full_disk_is_one_line_and_leaves_nothing(
    medframe: Medframe, monkeypatch: pytest.MonkeyPatch, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    process = start(
        *pair, tmp_path / "merged", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    )
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert errors.endswith(
        f"Error: {tmp_path / 'merged'} could not be written: File too large; nothing of it is left\n"
    )
    assert not list(tmp_path.glob("*merged*"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 5))  # type: ignore[attr-defined]
    ended = medframe("merge", *pair, "--out", tmp_path / "merged")
    assert ended.code == 1
    assert "there is room for 0.0 MB; nothing was written" in ended.err


def test_what_is_damaged_on_its_way_to_the_disk_is_found(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, pair: tuple[Path, Path]
) -> None:
    from medframe.merge import write

    whole = write._write_all

    def damaged(stream: Any, piece: memoryview) -> None:
        whole(stream, piece if len(piece) < 1000 or stream.tell() < 100_000 else memoryview(bytes(len(piece))))

    monkeypatch.setattr(write, "_write_all", damaged)
    assert "does not hold what was computed" in refused(*pair, code=1)


def test_two_at_once_do_not_write_the_same_directory(
    medframe: Medframe, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    from filelock import FileLock

    with FileLock(tmp_path / ".merged.lock"):
        ended: Ended = medframe("merge", *pair, "--out", tmp_path / "merged")
    assert ended.code == 2
    assert "another process is writing" in ended.err
