"""Bloom and Huozi: the contracts, the same numbers as transformers' own Bloom, checkpoints as they are published."""

from __future__ import annotations

import copy
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import Consultations, Medframe
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BloomConfig, DynamicCache, StaticCache
from transformers import BloomForCausalLM as Stock

from medframe import BackboneError
from medframe.testing import BackboneContract, TrainerContract
from medframe_backbones.bloom import Bloom, Huozi

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"


class TestBloom(BackboneContract):
    component = "bloom"


class TestHuozi(BackboneContract):
    component = "huozi"


class TestLoraOnBloom(TrainerContract):
    """The embedding, which is the head as well, is trained whole: it must survive checkpoints and a fresh process."""

    component = "lora"
    backbone = "bloom"
    fields: ClassVar = {
        "modules_to_save": ["word_embeddings"],
        "learning_rate": 1e-2,
        "dropout": 0.1,
        "max_steps": 6,
        "logging_steps": 1,
        "save_steps": 2,
    }

    def test_the_embedding_stays_the_head(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        out = self._run(tmp_path_factory).out
        adapter = load_file(out / "adapter" / "adapter_model.safetensors")
        embedding = adapter["base_model.model.transformer.word_embeddings.weight"]
        before = Bloom().load_model().get_input_embeddings().weight
        assert not torch.equal(embedding, before)
        assert torch.equal(embedding, adapter["base_model.model.lm_head.weight"])


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    """(ours, transformers' own) with the same random weights, none of them special: six heads are no power of two."""
    from medframe_backbones.bloom_attention import BloomForCausalLM

    torch.manual_seed(1)
    stock = Stock(BloomConfig(vocab_size=60, hidden_size=48, n_layer=3, n_head=6))
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    ours = BloomForCausalLM(BloomConfig(**stock.config.to_dict()))
    ours.load_state_dict(stock.state_dict())
    assert ours.state_dict().keys() == stock.state_dict().keys()
    assert stock.config._attn_implementation == "eager"
    return ours.eval(), stock.eval()


SAMPLES = [torch.randint(4, 60, (n,), generator=torch.Generator().manual_seed(n)) for n in (7, 12, 5)]
PACKED = {
    "input_ids": torch.cat(SAMPLES)[None],
    "position_ids": torch.cat([torch.arange(len(sample)) for sample in SAMPLES])[None],
}


def padded(side: str) -> dict[str, torch.Tensor]:
    width = max(map(len, SAMPLES))
    ids, mask = torch.full((len(SAMPLES), width), 3), torch.zeros(len(SAMPLES), width, dtype=torch.int64)
    for row, sample in enumerate(SAMPLES):
        at = slice(width - len(sample), None) if side == "left" else slice(len(sample))
        ids[row, at], mask[row, at] = sample, 1
    return {"input_ids": ids, "attention_mask": mask}


def alone(model: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(sample[None], use_cache=False).logits[0] for sample in SAMPLES]


def test_alone_it_is_transformers_bloom(pair: tuple[Any, Any]) -> None:
    ours, stock = pair
    for one, other in zip(alone(ours), alone(stock), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        seen, expected = (m(SAMPLES[0][None], output_hidden_states=True).hidden_states for m in pair)
    assert len(seen) == len(expected) == 4
    for one, other in zip(seen, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_it_is_transformers_bloom_alone(pair: tuple[Any, Any], side: str) -> None:
    ours, stock = pair
    batch = padded(side)
    with torch.no_grad():
        logits = ours(**batch, use_cache=False).logits
    for row, expected in zip(range(len(SAMPLES)), alone(stock), strict=True):
        found = logits[row, batch["attention_mask"][row].bool()]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_each_packed_sample_is_transformers_bloom_alone(pair: tuple[Any, Any]) -> None:
    ours, stock = pair
    expected = torch.cat(alone(stock))
    with torch.no_grad():
        packed = ours(**PACKED, use_cache=False).logits[0]
        joined = ours(PACKED["input_ids"], use_cache=False).logits[0]
    torch.testing.assert_close(packed, expected, atol=1e-5, rtol=1e-5)
    assert (joined - expected).abs().max() > 0.1


def test_asked_for_eager_attention_it_is_the_same(pair: tuple[Any, Any]) -> None:
    ours, stock = copy.deepcopy(pair[0]), pair[1]
    ours.set_attn_implementation("eager")
    with torch.no_grad():
        packed = ours(**PACKED, use_cache=False).logits[0]
    torch.testing.assert_close(packed, torch.cat(alone(stock)), atol=1e-5, rtol=1e-5)


def test_padding_is_no_packing(pair: tuple[Any, Any]) -> None:
    """Positions as `generate` gives them with padding on the left begin anew, and yet are one sample."""
    ours, _ = pair
    batch = padded("left")
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        with_positions = ours(**batch, position_ids=positions).logits
        without = ours(**batch).logits
    assert torch.equal(with_positions, without)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("chunks", [(12,), (5, 7), (1,) * 12])
def test_with_a_cache_it_is_the_same(pair: tuple[Any, Any], cache: str, chunks: tuple[int, ...]) -> None:
    ours, stock = pair
    batch = padded("left")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    past: Any = DynamicCache(config=ours.config) if cache == "dynamic" else StaticCache(ours.config, max_cache_len=20)
    logits, end = [], 0
    with torch.no_grad():
        expected = stock(**batch, use_cache=False).logits
        for chunk in chunks:
            start, end = end, end + chunk
            result = ours(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=past, use_cache=True)
            logits.append(result.logits)
    found = torch.cat(logits, dim=1)
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("how", [{}, {"cache_implementation": "static"}, {"use_cache": False}, {"num_beams": 3}])
def test_it_generates_the_same(pair: tuple[Any, Any], how: dict[str, Any]) -> None:
    settings = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 3, "eos_token_id": 2, **how}
    ours, stock = (model.generate(**padded("left"), **settings) for model in pair)
    assert ours.shape[1] > 12
    assert torch.equal(ours, stock)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_a_packed_row_are_those_of_its_samples(pair: tuple[Any, Any], checkpointing: bool) -> None:
    ours, stock = (copy.deepcopy(model).train() for model in pair)
    if checkpointing:
        ours.gradient_checkpointing_enable()
    row = ours(**PACKED, use_cache=False).logits[0]
    losses = [
        (part[:-1], sample[1:]) for part, sample in zip(row.split([len(s) for s in SAMPLES]), SAMPLES, strict=True)
    ]
    sum(torch.nn.functional.cross_entropy(*loss, reduction="sum") for loss in losses).backward()  # type: ignore[union-attr]
    for sample in SAMPLES:
        logits = stock(sample[None], use_cache=False).logits[0]
        torch.nn.functional.cross_entropy(logits[:-1], sample[1:], reduction="sum").backward()
    for (name, one), other in zip(ours.named_parameters(), stock.parameters(), strict=True):
        assert one.grad is not None, name
        assert (one.grad - other.grad).norm() < 1e-5 * max(1.0, float(other.grad.norm())), name


def test_logits_are_computed_where_they_are_asked_for(pair: tuple[Any, Any]) -> None:
    ours, _ = pair
    batch = padded("right")
    mask = torch.rand(batch["input_ids"].shape, generator=torch.Generator().manual_seed(0)) < 0.3
    with torch.no_grad():
        whole = ours(**batch, use_cache=False).logits
        for keep, expected in (
            (2, whole[:, -2:]),
            (torch.tensor([1, 4]), whole[:, [1, 4]]),
            (mask, whole[mask]),
        ):
            found = ours(**batch, use_cache=False, logits_to_keep=keep).logits
            torch.testing.assert_close(found.reshape(expected.shape), expected)
        assert ours(**batch, use_cache=False, return_dict=False)[0].equal(whole)


def test_the_loss_is_transformers_own(pair: tuple[Any, Any]) -> None:
    batch = padded("right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        ours, stock = (float(model(**batch, labels=labels, use_cache=False).loss) for model in pair)
    assert ours == pytest.approx(stock, rel=1e-5)


def test_in_bfloat16_long_samples_lose_less_than_in_transformers_bloom(pair: tuple[Any, Any]) -> None:
    ids = torch.randint(4, 60, (1, 700), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = pair[1](ids, use_cache=False).logits
        ours, stock = (
            (copy.deepcopy(model).bfloat16()(ids, use_cache=False).logits.float() - exact)[0, -100:].abs().mean()
            for model in pair
        )
    assert ours < 0.05 * exact.abs().mean()
    assert ours < stock / 2


def test_under_autocast_the_layers_share_one_mask() -> None:
    """In another precision it would be cast anew in every layer, and every copy kept for the backward pass."""
    model: Any = Bloom().load_model().train()
    masks = set()

    def kept(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape[-2:] == (33, 33) and not tensor.requires_grad and tensor.is_floating_point():
            masks.add(tensor.data_ptr())
        return tensor

    ids = torch.arange(100, 133)[None]
    with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, labels=ids).loss
    loss.backward()
    assert len(masks) == 1


def test_code_beside_a_tokenizer_is_never_run(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    config = json.loads((published / "tokenizer_config.json").read_text("utf-8"))
    config.pop("tokenizer_class", None)
    config["auto_map"] = {"AutoTokenizer": ["evil.Evil", None]}
    (published / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    (published / "evil.py").write_text("open('run', 'w')\nclass Evil: pass\n", "utf-8")
    with suppress(BackboneError):
        Bloom(weights=str(published)).load_tokenizer()
    assert not (tmp_path / "run").exists()


def test_attention_weights_are_refused(pair: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="attention weights"):
        pair[0](SAMPLES[0][None], output_attentions=True)


def test_what_is_saved_is_a_plain_bloom(tmp_path: Path) -> None:
    backbone = Huozi()
    model: Any = backbone.load_model().eval()
    model.save_pretrained(tmp_path)
    backbone.load_tokenizer().save_pretrained(str(tmp_path))
    saved = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert (saved["architectures"], saved["model_type"]) == (["BloomForCausalLM"], "bloom")
    assert saved["max_position_embeddings"] == 2048
    assert "auto_map" not in saved
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(plain) is Stock
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path)("胃疼三天怎么办？")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
    again = Huozi(weights=str(tmp_path))
    assert again.load_tokenizer().get_vocab() == backbone.load_tokenizer().get_vocab()
    assert again.load_config().pad_token_id == 3


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A copy of the tiny Bloom, to be changed into what one finds on a hub."""
    return Path(shutil.copytree(Bloom().directory(), tmp_path / "published"))


def logits_of(directory: Path, **fields: Any) -> torch.Tensor:
    model: Any = Bloom(weights=str(directory), **fields).load_model().eval()
    with torch.no_grad():
        return model(torch.arange(100, 120)[None]).logits.float()  # type: ignore[no-any-return]


def test_a_checkpoint_without_the_prefix_is_read(published: Path) -> None:
    """BigScience's own were saved from BloomModel: no tensor begins with `transformer.`, and the config is old."""
    expected = logits_of(published)
    file = published / "model.safetensors"
    bare = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    save_file(bare, file, metadata={"format": "pt"})
    config = json.loads((published / "config.json").read_text("utf-8"))
    config["n_embed"], config["num_attention_heads"] = config.pop("hidden_size"), config.pop("n_head")
    config |= {"attention_softmax_in_fp32": True, "masked_softmax_fusion": True, "bias_dropout_fusion": True}
    config |= {"seq_length": 2048, "pretraining_tp": 4, "offset_alibi": 100, "skip_bias_add": True, "n_inner": None}
    (published / "config.json").write_text(json.dumps(config), "utf-8")
    assert torch.equal(logits_of(published), expected)


@pytest.mark.parametrize("head", [False, True], ids=["tied", "head stored"])
def test_a_pickled_half_precision_checkpoint_is_read(published: Path, head: bool) -> None:
    expected = logits_of(published)
    file = published / "model.safetensors"
    half = {name: tensor.half() for name, tensor in load_file(file).items()}
    if head:
        half["lm_head.weight"] = half["transformer.word_embeddings.weight"]
    torch.save(half, published / "pytorch_model.bin")
    file.unlink()
    config = json.loads((published / "config.json").read_text("utf-8"))
    config["torch_dtype"] = config.pop("dtype").replace("32", "16")
    (published / "config.json").write_text(json.dumps(config), "utf-8")
    model = Bloom(weights=str(published)).load_model()
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    torch.testing.assert_close(logits_of(published, dtype="float32"), expected, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(logits_of(published), expected, atol=5e-2, rtol=5e-2)


def test_a_checkpoint_that_lacks_a_tensor_is_named(published: Path) -> None:
    file = published / "model.safetensors"
    tensors = load_file(file)
    del tensors["transformer.h.1.mlp.dense_h_to_4h.bias"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"transformer\.h\.1\.mlp\.dense_h_to_4h\.bias"):
        Bloom(weights=str(published)).load_model()


@pytest.mark.parametrize("cls", [Bloom, Huozi])
def test_the_tokenizer_pads_with_pad_and_adds_nothing(cls: type[Bloom]) -> None:
    backbone = cls()
    tokenizer: Any = backbone.load_tokenizer()
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<pad>", 3)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert backbone.load_config().pad_token_id == backbone.load_model().config.pad_token_id == 3
    text = "患者女，35岁，头痛三天。"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden values are not here")
def test_a_bloom_tokenizer_gives_the_ids_of_the_published_pipeline() -> None:
    """BenTsao's rows for Bloom: the prompt and the answer encoded, cut at 256, ended where there is room."""
    tokenizer: Any = Bloom(tokenizer=str(GOLDEN / "tokenizers" / "bloom_bpe")).load_tokenizer()
    lines = (GOLDEN / "huatuo" / "llama_data_000-099.jsonl").read_text("utf-8").splitlines()
    expected = json.loads((GOLDEN / "huatuo" / "bloom.bloom_deploy.json").read_text("utf-8"))["rows"]
    for line, row in zip(lines, expected, strict=True):
        content = json.loads(line)
        text = f"下面是一个问题，运用医学知识来正确回答提问.\n{content['instruction']}\n### 回答：\n{content['output']}"
        ids = [*tokenizer(text)["input_ids"][:256], tokenizer.eos_token_id][:256]
        assert ids == row["input_ids"]


def test_huozis_tokens_are_found_by_name() -> None:
    tokenizer: Any = Huozi().load_tokenizer()
    begin, end, close = tokenizer.convert_tokens_to_ids(["<|beginofutterance|>", "<|endofutterance|>", "<|endoftext|>"])
    assert len(tokenizer) == close + 1 == end + 2 == begin + 3
    text = "<|beginofutterance|>用户\n胃疼<|endofutterance|>\n"
    ids = tokenizer(text)["input_ids"]
    assert (ids.count(begin), ids.count(end)) == (1, 1)
    assert begin not in tokenizer(text, split_special_tokens=True)["input_ids"]


def test_a_plain_bloom_tokenizer_is_not_huozis() -> None:
    backbone = Huozi(tokenizer=str(Bloom().tokenizer_directory()))
    with pytest.raises(BackboneError, match=r"Huozi.*<\|beginofutterance\|>, <\|endofutterance\|>, <\|endoftext\|>"):
        backbone.load_tokenizer()


def test_a_tokenizer_that_names_no_special_token_has_them(published: Path) -> None:
    (published / "tokenizer_config.json").unlink()
    tokenizer = Bloom(weights=str(published)).load_tokenizer()
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.pad_token_id == 3


def test_a_tokenizer_that_pads_with_its_end_token_is_put_right(published: Path) -> None:
    file = published / "tokenizer_config.json"
    config = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(config | {"pad_token": "</s>"}), "utf-8")
    assert Bloom(weights=str(published)).load_tokenizer().pad_token_id == 3


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"tokenizer_class": "LlamaTokenizer"}', "holds a LlamaTokenizer, which is no Bloom tokenizer"),
        ("{", "tokenizer_config.json is broken"),
        ("[]", "tokenizer_config.json is broken"),
        (None, "has no tokenizer.json"),
    ],
)
def test_another_tokenizer_is_refused(published: Path, config: str | None, said: str) -> None:
    if config is None:
        (published / "tokenizer.json").unlink()
    else:
        (published / "tokenizer_config.json").write_text(config, "utf-8")
    with pytest.raises(BackboneError, match=said):
        Bloom(weights=str(published)).load_tokenizer()


def test_a_broken_or_foreign_tokenizer_file_is_refused(published: Path) -> None:
    file = published / "tokenizer.json"
    content = json.loads(file.read_text("utf-8"))
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<pad>"]
    content["model"]["vocab"]["<padding>"] = content["model"]["vocab"].pop("<pad>")
    file.write_text(json.dumps(content), "utf-8")
    with pytest.raises(BackboneError, match=r"no Bloom tokenizer: it lacks <pad> as 3"):
        Bloom(weights=str(published)).load_tokenizer()
    file.write_text("{}", "utf-8")
    with pytest.raises(BackboneError, match="cannot be loaded"):
        Bloom(weights=str(published)).load_tokenizer()


def test_weights_of_another_architecture_are_refused(published: Path) -> None:
    (published / "config.json").write_text('{"model_type": "llama"}', "utf-8")
    for load in (Bloom(weights=str(published)).load_config, Bloom(weights=str(published)).load_model):
        with pytest.raises(BackboneError, match="holds a llama model, this backbone is for bloom"):
            load()


def test_huozis_context_is_kept(recipe: Path, consultations: Consultations, medframe: Medframe) -> None:
    """ALiBi has no end of its own, so that nothing but the backbone can say how much Huozi was trained to hold."""
    consultations([{"query": "胃疼，" * 800, "response": "请做胃镜。"}, {"query": "胃疼", "response": "请做胃镜。"}])
    limits = "limits={max_length: 4000}"
    said = medframe("check", recipe, f"backbone={{use: huozi, weights: {Huozi().directory()}}}", limits)
    assert said.code == 2
    assert "more than the model's context of 2048" in said.out + said.err
    assert medframe("check", recipe, f"backbone={{use: bloom, weights: {Bloom().directory()}}}", limits).code == 0


def test_a_run_packs_and_is_proven(recipe: Path, medframe: Medframe, here: Path) -> None:
    settings = ["trainer.max_steps=2", "held_out={rows: 2}", "compare=1", "trainer.modules_to_save=[lm_head]"]
    ended = medframe("run", recipe, "backbone.use=huozi", "out=run", *settings)
    assert ended.code == 0, ended.err
    manifest = json.loads((here / "run" / "manifest.json").read_text("utf-8"))
    assert (manifest["state"], manifest["batching"]["kind"]) == ("finished", "packed")
    tensors = load_file(here / "run" / "adapter" / "adapter_model.safetensors")
    assert sum("lora_A" in name for name in tensors) == 4 * 4
    assert {"base_model.model.transformer.word_embeddings.weight", "base_model.model.lm_head.weight"} < set(tensors)
