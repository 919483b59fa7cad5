"""The backbone `auto`: any causal language model of the installed transformers, tried with small ones of several."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaForCausalLM

from medframe import BackboneError, RecipeError
from medframe.batch import packed, padded
from medframe.isolation import leak
from medframe.testing import BackboneContract
from medframe_backbones.auto import Auto
from medframe_backbones.tiny_qwen import tokenizer_files
from medframe_trainers.lora import Lora
from medframe_trainers.loss import token_loss

Medframe = Callable[..., Any]


class TestAuto(BackboneContract):
    component = "auto"


_SMALL = {
    "vocab_size": 4608,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_WINDOWS = {"sliding_window": 6, "num_hidden_layers": 3, "layer_types": [*["sliding_attention"] * 2, "full_attention"]}
_EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3": ("qwen3", {}),
    "Qwen2.5": ("qwen2", {"tie_word_embeddings": True}),
    "Llama-3": ("llama", {}),
    "Mistral": ("mistral", {"sliding_window": 6}),
    "GLM-4": ("glm4", {}),
    "Phi-3": ("phi3", {}),
    "Gemma-3": ("gemma3_text", _WINDOWS),
    "MedGemma": (
        "gemma3",
        {
            "text_config": _SMALL | _WINDOWS,
            "vision_config": {
                **{key: _SMALL[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads")},
                "num_hidden_layers": 3,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
            "image_token_index": 4600,
            "boi_token_index": 4601,
            "eoi_token_index": 4602,
        },
    ),
    "Qwen2-MoE": ("qwen2_moe", {**_EXPERTS, "shared_expert_intermediate_size": 16}),
    "Qwen3-MoE": ("qwen3_moe", _EXPERTS),
    "GLM-4-MoE": (
        "glm4_moe",
        {**_EXPERTS, "num_hidden_layers": 3, "n_routed_experts": 4, "first_k_dense_replace": 2, "n_group": 1},
    ),
    # State that runs along the row is no attention: packed, samples see each other.
    "Qwen3-Next": (
        "qwen3_next",
        {
            **_EXPERTS,
            "shared_expert_intermediate_size": 16,
            "layer_types": ["full_attention", "linear_attention"],
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    ),
}
LEAKING = {"Qwen3-Next": "packed samples see each other"}
families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def directory() -> Iterator[Callable[[str], Path]]:
    """The directory of a small random model of a family, as save_pretrained writes it."""
    with TemporaryDirectory() as folder:

        @cache
        def made(family: str) -> Path:
            model_type, values = FAMILIES[family]
            config = CONFIG_MAPPING[model_type](**(values if model_type == "gemma3" else _SMALL | values))
            torch.manual_seed(0)
            where = Path(folder) / family
            AutoModelForCausalLM.from_config(config).save_pretrained(where)
            tokenizer_files(where)
            return where

        yield made


@pytest.fixture
def backbone(directory: Callable[[str], Path], family: str) -> Auto:
    return Auto(weights=str(directory(family)), dtype="float32")


@families
def test_packing_is_proven_or_truly_refused(backbone: Auto, family: str) -> None:
    """The reason that `leak` gives, or none, agrees with the losses of packed samples."""
    model, samples = backbone.load_model().eval(), _samples()
    with torch.no_grad():
        alone = sum(float(token_loss(model, padded([sample], 0))[0]) for sample in samples)
        together = float(token_loss(model, packed(samples))[0])
    reason = leak(model)
    assert (reason or "").startswith(LEAKING.get(family, ""))
    assert (reason is None) == (family not in LEAKING)
    assert (abs(alone - together) < 1e-3) == (reason is None)


@families
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(backbone: Auto, side: str) -> None:
    model, pad = backbone.load_model().eval(), backbone.load_tokenizer().pad_token_id
    rows = [torch.from_numpy(ids) for ids, _ in _samples()]
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), pad), torch.zeros((len(rows), width), dtype=torch.int64)
    spans = [slice(width - len(row), width) if side == "left" else slice(len(row)) for row in rows]
    for i, (row, span) in enumerate(zip(rows, spans, strict=True)):
        ids[i, span], mask[i, span] = row, 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        for i, (row, span) in enumerate(zip(rows, spans, strict=True)):
            alone = model(input_ids=row[None], use_cache=False).logits[0]
            assert float((logits[i, span] - alone).abs().max()) < 1e-4


@families
def test_lora_learns_and_its_adapter_is_honoured(backbone: Auto, family: str, tmp_path: Path) -> None:
    samples = _samples()
    batch = padded(samples, 0) if family in LEAKING else packed(samples)
    wrapped = Lora(rank=4)._adapted(backbone.load_model(), backbone.lora_targets)
    trained = {name: tensor for name, tensor in wrapped.named_parameters() if tensor.requires_grad}
    assert trained
    assert not any("vision" in name or "lm_head" in name for name in trained)
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    losses = []
    for _ in range(3):
        loss, tokens = token_loss(wrapped, batch)
        (loss / tokens).backward()
        assert all(tensor.grad is not None for tensor in trained.values())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss) / tokens)
    assert losses[-1] < losses[0]
    wrapped.eval().save_pretrained(str(tmp_path), save_embedding_layers=False)
    merged = Auto(weights=backbone.weights, dtype="float32", adapters=[str(tmp_path)]).load_model().eval()
    ids = torch.from_numpy(samples[0][0])[None]
    with torch.no_grad():
        one, two = (model(input_ids=ids, use_cache=False).logits for model in (wrapped, merged))
    assert float((one - two).abs().max()) < 1e-4


@families
def test_generation_goes_on_greedily(backbone: Auto) -> None:
    """With its cache, a model writes what the logits of the whole row ask for."""
    model = backbone.load_model().eval()
    ids = torch.from_numpy(_samples()[0][0])[None]
    written = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=[4607])[0]
    with torch.no_grad():
        logits = model(input_ids=written[None, :-1], use_cache=False).logits[0]
    assert written[ids.shape[1] :].tolist() == logits[ids.shape[1] - 1 :].argmax(-1).tolist()


def test_the_loss_of_a_model_that_computes_every_logit(directory: Callable[[str], Path]) -> None:
    """Not every architecture has logits_to_keep."""

    class Whole(LlamaForCausalLM):
        def forward(self, *inputs: Any, logits_to_keep: Any = 0, **named: Any) -> Any:
            return super().forward(*inputs, **named)

    one, two = (cls.from_pretrained(directory("Llama-3")).eval() for cls in (LlamaForCausalLM, Whole))
    with torch.no_grad():
        losses = [float(token_loss(model, packed(_samples()))[0]) for model in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_every_kind_of_layer_takes_part_in_the_proof(directory: Callable[[str], Path]) -> None:
    """The layers that leak come late, beyond the first two."""
    config = Auto(weights=str(directory("Qwen3-Next"))).load_config()
    config.layer_types = ["full_attention"] * 3 + ["linear_attention"]  # type: ignore[attr-defined]
    config.num_hidden_layers = 4  # type: ignore[attr-defined]
    reason = leak(AutoModelForCausalLM.from_config(config))
    assert "see each other in Qwen3NextForCausalLM" in str(reason)


def test_a_multimodal_model_is_trained_and_asked(
    directory: Callable[[str], Path], recipe: Path, medframe: Medframe, consultations: Callable[..., Path]
) -> None:
    """As MedGemma is: what is saved is proven in a fresh process, and the model asked before and after."""
    text = recipe.read_text("utf-8").replace("chatmed}", "chat-template}")
    text = text.replace("{use: llama}", f"{{use: auto, weights: {directory('MedGemma')}}}")
    recipe.write_text(text, "utf-8")
    settings = [
        "trainer.max_steps=2",
        "trainer.warmup_steps=0",
        "held_out.rows=2",
        "compare=1",
        "limits.max_length=128",
    ]
    ended = medframe("run", recipe, *settings)
    assert ended.code == 0, ended.err
    out = recipe.parent / "runs" / "here"
    names = json.loads((out / "adapter" / "adapter_config.json").read_text("utf-8"))["target_modules"]
    assert "q_proj" in names
    tokenizer = Auto(weights=str(directory("MedGemma")), adapters=[str(out / "adapter")]).load_tokenizer()
    assert "<|im_start|>" in str(tokenizer.chat_template)
    consultations([{"query": "胃疼" * 70, "response": "请做胃镜。"}] * 4)
    long = medframe("run", recipe, "--overwrite")
    assert long.code == 2
    assert "more than the model's context of 128" in long.err


@pytest.mark.parametrize("family", ["Qwen3-MoE", "MedGemma", "Qwen2.5"])
def test_every_parameter_is_trained_and_saved_under_the_published_names(
    directory: Callable[[str], Path], recipe: Path, medframe: Medframe, family: str
) -> None:
    """Loaded, experts are joined and parts renamed, and a head may be tied; saved, all is as it was published."""
    settings = ["trainer={use: full, max_steps: 1, learning_rate: 1e-3}", "compare=0", "limits.max_length=128"]
    ended = medframe(
        "run", recipe, f"backbone={{use: auto, weights: {directory(family)}}}", "prompt.use=chat-template", *settings
    )
    assert ended.code == 0, ended.err
    before, after = (
        {name for file in folder.glob("*.safetensors") for name in load_file(file)}
        for folder in (directory(family), recipe.parent / "runs/here/model")
    )
    assert after == before


class TestRefused:
    """What cannot be used is refused by all who ask, with the reason."""

    @pytest.mark.parametrize(
        ("config", "reason"),
        [
            ({"model_type": "chatglm", "auto_map": {"AutoModel": "modeling.X"}}, "a chatglm model.*medframe runs none"),
            ({"model_type": "nothing-yet"}, "a nothing-yet model, which the installed transformers does not have;"),
            ({"model_type": "siglip"}, "holds a siglip, no causal language model"),
            ({"hidden_size": 8}, "does not say what model this is"),
            ("no JSON", "does not say what model this is"),
            ({"model_type": "qwen3", "hidden_size": "wide"}, "hidden_size"),
        ],
    )
    @pytest.mark.parametrize("load", ["load_config", "load_model"])
    def test_configuration(self, config: Any, reason: str, load: str, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps(config) if isinstance(config, dict) else config, "utf-8")
        with pytest.raises(BackboneError, match=reason):
            getattr(Auto(weights=str(tmp_path)), load)()

    def test_weights(self, directory: Callable[[str], Path], tmp_path: Path) -> None:
        (tmp_path / "config.json").write_bytes((directory("Qwen3") / "config.json").read_bytes())
        with pytest.raises(BackboneError, match="cannot be loaded"):
            Auto(weights=str(tmp_path)).load_model()
        (tmp_path / "model.safetensors").write_bytes((directory("Llama-3") / "model.safetensors").read_bytes())
        with pytest.raises(BackboneError, match=r"lacks .*(q|k)_norm"):
            Auto(weights=str(tmp_path)).load_model()

    def test_tokenizer(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "qwen3"}', "utf-8")
        with pytest.raises(BackboneError, match="holds none"):
            Auto(weights=str(tmp_path)).load_tokenizer()
        (tmp_path / "tokenizer.json").write_text("{", "utf-8")
        with pytest.raises(BackboneError, match="cannot be loaded"):
            Auto(weights=str(tmp_path)).load_tokenizer()
        _tokenizer(tmp_path, eos_token=None)
        with pytest.raises(BackboneError, match="no end token"):
            Auto(weights=str(tmp_path)).load_tokenizer()

    def test_lora_on_what_peft_cannot_adapt(self) -> None:
        config = CONFIG_MAPPING["mamba"](vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4)
        with pytest.raises(RecipeError, match=r"trainer\.targets: .*out_proj"):
            Lora()._adapted(AutoModelForCausalLM.from_config(config), Auto.lora_targets)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ({"pad_token": "<|endoftext|>"}, "<|endoftext|>"),
        ({"pad_token": "<|im_end|>", "unk_token": "<unk>"}, "<unk>"),
        (
            {"extra_special_tokens": ["<|reserved_special_token_0|>", "<|finetune_right_pad_id|>"]},
            "<|finetune_right_pad_id|>",
        ),
        ({"extra_special_tokens": ["<|image_pad|>", "<|fim_pad|>"]}, "<|fim_pad|>"),
        ({"extra_special_tokens": ["<tool>", "<unused0>"]}, "<unused0>"),
        # Qwen's own class has the end token of its base models for all else.
        (
            {"tokenizer_class": "Qwen2Tokenizer", "eos_token": None, "extra_special_tokens": ["<|fim_pad|>"]},
            "<|fim_pad|>",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_padding_is_never_the_end(tokens: dict[str, Any], expected: str, tmp_path: Path) -> None:
    _tokenizer(tmp_path, **{"pad_token": None, **tokens})
    assert Auto(tokenizer=str(tmp_path)).load_tokenizer().pad_token == expected


def test_padding_can_be_named(tmp_path: Path) -> None:
    _tokenizer(tmp_path, pad_token=None)
    with pytest.raises(BackboneError, match=r"backbone\.pad_token, any but the end token <\|im_end\|>"):
        Auto(tokenizer=str(tmp_path)).load_tokenizer()
    assert Auto(tokenizer=str(tmp_path), pad_token="<think>").load_tokenizer().pad_token == "<think>"
    for wrong in ("<|im_end|>", "<nothing>"):
        with pytest.raises(BackboneError, match="must be a token"):
            Auto(tokenizer=str(tmp_path), pad_token=wrong).load_tokenizer()


def _tokenizer(folder: Path, **changes: Any) -> None:
    """The tiny Qwen3's tokenizer with other special tokens, and none by default."""
    tokenizer_files(folder)
    file = folder / "tokenizer_config.json"
    own = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config = {**json.loads(file.read_text("utf-8")), **own, **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}), "utf-8")


def _samples() -> list[tuple[Any, Any]]:
    """Samples of random ids, the first three tokens of each not trained."""
    random = np.random.RandomState(0)
    return [(random.randint(300, 4000, n), np.array([0] * 3 + [1] * (n - 3))) for n in (9, 14, 6)]
