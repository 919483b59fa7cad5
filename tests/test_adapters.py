"""Adapters in a list, each with its own tokenizer and grown vocabulary, as Chinese-LLaMA and Chinese-Alpaca are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import Medframe
from safetensors.torch import load_file, save_file

from medframe import BackboneError
from medframe_backbones.llama import Llama

NEW = ("头痛", "发热", "咳嗽", "喝水", "医生")


class Chain(NamedTuple):
    """A base model, and two adapters that grow its vocabulary by five pieces and by a pad token."""

    base: Path
    llama_plus: Path
    alpaca_plus: Path
    rows: int

    def backbone(self, *adapters: Path, **fields: Any) -> Llama:
        return Llama(weights=str(self.base), adapters=[str(a) for a in adapters], dtype="float16", **fields)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("chain")
    base, first, second = folder / "llama", folder / "llama-plus", folder / "alpaca-plus"
    base.mkdir()
    Llama().make_tiny_tokenizer(base)
    Llama().make_tiny_weights(base)
    rows = len(Llama(weights=str(base)).load_tokenizer())
    for number, adapter in enumerate((first, second)):
        adapter.mkdir()
        grown_tokenizer(base, adapter, pad=adapter == second)
        make_adapter(base, adapter, rows + len(NEW) + number, seed=number)
    return Chain(base, first, second, rows)


@pytest.fixture
def chain(made: Chain, tmp_path: Path) -> Chain:
    """The same, to be tampered with."""
    shutil.copytree(made.base.parent, tmp_path / "chain")
    base, first, second = (tmp_path / "chain" / path.name for path in made[:3])
    return Chain(base, first, second, made.rows)


def grown_tokenizer(base: Path, folder: Path, pad: bool) -> None:
    from sentencepiece import sentencepiece_model_pb2

    pb2: Any = sentencepiece_model_pb2
    proto = pb2.ModelProto.FromString((base / "tokenizer.model").read_bytes())
    for piece in NEW:
        proto.pieces.add(piece=piece, score=0.0, type=proto.SentencePiece.NORMAL)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    config = json.loads((base / "tokenizer_config.json").read_text("utf-8"))
    if pad:
        config["pad_token"] = "[PAD]"  # the 49,954th token of Chinese-Alpaca
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")


def make_adapter(base: Path, folder: Path, rows: int, seed: int) -> None:
    """An adapter in the layout of 2023: a pickled adapter_model.bin with whole embeddings and head."""
    torch.manual_seed(seed)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            state[f"{stem}.weight"] = torch.randn(rows, tensor.shape[1]) * 0.1
        elif name.endswith(("q_proj.weight", "down_proj.weight")):
            state[f"{stem}.lora_A.weight"] = torch.randn(4, tensor.shape[1]) * 0.1
            state[f"{stem}.lora_B.weight"] = torch.randn(tensor.shape[0], 4) * 0.1
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "x",
        "r": 4,
        "lora_alpha": 16.0,
        "lora_dropout": 0.05,
        "target_modules": ["q_proj", "down_proj"],
        "modules_to_save": ["embed_tokens", "lm_head"],
        "fan_in_fan_out": False,
        "enable_lora": None,
        "merge_weights": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    torch.save(state, folder / "adapter_model.bin")


def test_adapters_are_merged_in_order_as_published(made: Chain) -> None:
    """W += (B @ A) * alpha / r in fp32, rounded to fp16 once per adapter; embeddings and head are the last one's."""
    model = made.backbone(made.llama_plus, made.alpaca_plus).load_model().state_dict()
    expected = {name: tensor.half() for name, tensor in load_file(made.base / "model.safetensors").items()}
    for adapter in (made.llama_plus, made.alpaca_plus):
        state = torch.load(adapter / "adapter_model.bin", weights_only=True)
        for name in expected:
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            if f"{stem}.weight" in state:
                expected[name] = state[f"{stem}.weight"].half()
            elif f"{stem}.lora_A.weight" in state:
                delta = state[f"{stem}.lora_B.weight"] @ state[f"{stem}.lora_A.weight"] * (16 / 4)
                expected[name] = (expected[name].float() + delta).half()
    assert model.keys() == expected.keys()
    assert model["model.embed_tokens.weight"].shape[0] == made.rows + 6
    for name, tensor in expected.items():
        assert torch.equal(model[name], tensor), name


def test_the_last_adapters_tokenizer_is_used(made: Chain) -> None:
    llama = made.backbone(made.llama_plus).load_tokenizer()
    alpaca = made.backbone(made.llama_plus, made.alpaca_plus).load_tokenizer()
    assert (len(llama), len(alpaca)) == (made.rows + 5, made.rows + 6)
    assert alpaca.pad_token == "[PAD]"
    assert alpaca.convert_ids_to_tokens(alpaca("头痛", add_special_tokens=False)["input_ids"])[-1] == "头痛"


@pytest.mark.parametrize("case", ["alpaca", "llama", "before", "order", "plain", "given"])
def test_vocabularies_that_do_not_fit_are_refused_before_a_tensor_is_read(chain: Chain, case: str) -> None:
    # Whoever reads a tensor of the base finds none.
    (chain.base / "model.safetensors").unlink()
    base, first, second = chain.base, chain.llama_plus, chain.alpaca_plus
    if case == "alpaca":
        shutil.copy(first / "tokenizer_config.json", second)
        backbone, said = chain.backbone(first, second), "one was given a pad token, such as Chinese-LLaMA (49,953) and"
    elif case == "llama":
        shutil.copy(second / "tokenizer_config.json", first)
        backbone, said = chain.backbone(first), "one was given a pad token, such as Chinese-LLaMA (49,953) and"
    elif case == "before":
        (first / "tokenizer_config.json").unlink()
        backbone, said = chain.backbone(first), "from before the vocabulary grew"
    elif case == "order":
        backbone, said = chain.backbone(second, first), "are the adapters in the wrong order?"
    elif case == "plain":
        backbone, said = Llama(weights=str(base), tokenizer=str(first)), "a model whose vocabulary has grown"
    else:
        backbone, said = chain.backbone(first, second, tokenizer=str(first)), "one was given a pad token"
    with pytest.raises(BackboneError) as refused:
        backbone.load_model()
    assert said in str(refused.value)


def test_an_adapter_for_a_grown_vocabulary_needs_the_adapter_that_grew_it(chain: Chain) -> None:
    """ChatMed's adapter holds no embeddings: on plain LLaMA its tokenizer gives it away."""
    chatmed = chain.base.parent / "chatmed"
    shutil.copytree(chain.alpaca_plus, chatmed)
    state = torch.load(chatmed / "adapter_model.bin", weights_only=True)
    (chatmed / "adapter_model.bin").unlink()
    lora = {name: tensor for name, tensor in state.items() if "lora_" in name}
    save_file(lora, chatmed / "adapter_model.safetensors")
    config = json.loads((chatmed / "adapter_config.json").read_text("utf-8"))
    (chatmed / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": None}), "utf-8")
    model = chain.backbone(chain.llama_plus, chain.alpaca_plus, chatmed).load_model()
    assert model.get_input_embeddings().weight.shape[0] == chain.rows + 6
    with pytest.raises(BackboneError, match="name the adapter that grew it"):
        chain.backbone(chatmed).load_model()


def test_a_control_token_beyond_the_rows_that_no_text_writes_is_no_matter(chain: Chain) -> None:
    """Gemma 3's tokenizer has one for pictures, which its smallest model has no row for."""
    tokenizer = Llama(weights=str(chain.base)).load_tokenizer()
    tokenizer.add_tokens(["<picture>"], special_tokens=True)
    tokenizer.save_pretrained(chain.base)
    assert Llama(weights=str(chain.base)).load_model().get_input_embeddings().weight.shape[0] == chain.rows
    tokenizer.add_tokens(["<pad>"], special_tokens=True)
    tokenizer.pad_token = "<pad>"  # padding is written
    tokenizer.save_pretrained(chain.base)
    with pytest.raises(BackboneError, match="a model whose vocabulary has grown"):
        Llama(weights=str(chain.base)).load_model()


def test_a_pickle_that_would_run_code_is_refused(chain: Chain) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return (print, ("run",))

    (chain.llama_plus / "adapter_model.bin").write_bytes(pickle.dumps({"x": Evil()}))
    with pytest.raises(BackboneError, match=r"adapter_model\.bin .*it could be made to run anything"):
        chain.backbone(chain.llama_plus).load_model()


def test_a_run_on_grown_adapters_is_proven_and_answers(medframe: Medframe, recipe: Path, chain: Chain) -> None:
    adapters = f"backbone.adapters=[{chain.llama_plus},{chain.alpaca_plus}]"
    fields = [f"backbone.weights={chain.base}", adapters, "trainer.max_steps=2", "compare=1"]
    merged = chain.base.parent / "merged"
    grown = chain.backbone(chain.llama_plus, chain.alpaca_plus)
    grown.load_model().float().save_pretrained(merged)
    grown.load_tokenizer().save_pretrained(merged)
    ended = medframe("run", recipe, *fields)
    assert ended.code == 0, ended.err
    out = recipe.parent / "runs/here"
    assert json.loads((out / "manifest.json").read_text("utf-8"))["state"] == "finished"
    assert medframe("check", recipe, *fields, "out=other").code == 0
    wrong = medframe("check", recipe, *fields[:1], f"backbone.adapters=[{chain.alpaca_plus},{chain.llama_plus}]")
    assert "wrong order" in wrong.out + wrong.err
    trained = str(out / "adapter")
    whole = f"backbone.adapters=[{chain.llama_plus},{chain.alpaca_plus},{trained}]"
    assert medframe("check", recipe, fields[0], whole, "out=other").code == 0
    # Without the adapters that it was trained on, the shapes would fit, and the answers would be nonsense.
    for verb in ("check", "run"):
        alone = medframe(verb, recipe, f"backbone.adapters=[{trained}]", f"backbone.weights={merged}", "out=other")
        assert alone.code == 2
        assert f"{trained} was trained on {chain.base}, fingerprint" in alone.out + alone.err


def test_one_adapter_without_brackets_is_told(medframe: Medframe, recipe: Path) -> None:
    ended = medframe("check", recipe, "backbone.adapters=runs/a/adapter")
    assert ended.code == 2
    assert "command line: backbone.adapters: must be a list: [" in ended.out + ended.err
