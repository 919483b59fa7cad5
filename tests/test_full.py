"""Training every parameter: the saved model is whole, in its own precision, and loads anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import Consultations, Medframe
from safetensors.torch import load_file, save_file

FULL = ["trainer={use: full, learning_rate: 1e-3, max_steps: 2, save_steps: 2, max_shard_size: 1MB}", "compare=0"]


@pytest.mark.parametrize("fields", [["backbone.dtype=float32"], ["backbone.dtype=bfloat16", "trainer.bf16=true"]])
def test_what_is_trained_is_saved_in_shards_and_in_the_precision_it_was_loaded_in(
    medframe: Medframe, recipe: Path, fields: list[str]
) -> None:
    """Only the parameters that are matched are trained; chat refuses a model that has lost a tensor."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from medframe_backbones.llama import Llama

    patterns = "trainer.parameters=[model.layers.1.*, lm_head.*]"
    ended = medframe("run", recipe, *FULL, patterns, "trainer.learning_rate=1e-2", *fields)
    assert ended.code == 0, ended.err
    out = recipe.parent / "runs/here"
    assert json.loads((out / "manifest.json").read_text("utf-8"))["state"] == "finished"
    model = out / "model"
    assert "library_name: transformers\n" in (model.parent / "README.md").read_text("utf-8")
    shards = sorted(model.glob("*.safetensors"))
    assert len(shards) > 1
    after = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    dtype = fields[0].partition("=")[2]
    assert {str(tensor.dtype) for tensor in after.values()} == {f"torch.{dtype}"}
    before = load_file(Llama().directory() / "model.safetensors")
    changed = {name for name, tensor in after.items() if not tensor.equal(before[name].to(tensor.dtype))}
    assert all(name.startswith(("model.layers.1.", "lm_head.")) for name in changed)
    assert {"lm_head.weight", "model.layers.1.mlp.up_proj.weight"} <= changed
    loaded, report = AutoModelForCausalLM.from_pretrained(model, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert loaded(torch.tensor([[1, 5, 6]])).logits.isfinite().all()
    assert AutoTokenizer.from_pretrained(model).eos_token_id == 2
    tensors = load_file(shards[-1])
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, shards[-1], metadata={"format": "pt"})
    ended = medframe("chat", out)
    assert ended.code == 2
    assert "not those that the run left" in ended.err


def test_a_model_that_attends_sharply_is_proven_in_bfloat16(
    medframe: Medframe, recipe: Path, consultations: Consultations, tmp_path: Path
) -> None:
    """Rotary angles stay in fp32 through training and saving, as they are when the model is loaded."""
    from medframe_backbones.llama import Llama

    weights = tmp_path / "sharp"
    weights.mkdir()
    Llama().make_tiny_tokenizer(weights)
    Llama().make_tiny_weights(weights)
    tensors = load_file(weights / "model.safetensors")
    for name in tensors:
        if "self_attn" in name or "lm_head" in name:
            tensors[name] *= 4  # the tiny model as it is hardly attends
    save_file({n: t.bfloat16() for n, t in tensors.items()}, weights / "model.safetensors", metadata={"format": "pt"})
    consultations([{"query": "头痛、发烧、咳嗽" * (20 + i), "response": "多休息。"} for i in range(6)])
    ended = medframe("run", recipe, *FULL, f"backbone.weights={weights}", "backbone.dtype=bfloat16")
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("size", ["5", "5 gigabytes", "0GB", "-1MB"])
def test_a_shard_size_that_means_nothing_is_refused_before_training(
    medframe: Medframe, recipe: Path, size: str
) -> None:
    ended = medframe("run", recipe, "trainer.use=full", f"trainer.max_shard_size={size}")
    assert ended.code == 2
    assert "max_shard_size must be like" in ended.err


@pytest.mark.parametrize(
    ("patterns", "said"), [("[model.layers.9*]", "matches no parameter"), ("[]", "parameters is empty")]
)
def test_patterns_that_choose_nothing_are_refused(medframe: Medframe, recipe: Path, patterns: str, said: str) -> None:
    ended = medframe("run", recipe, *FULL, f"trainer.parameters={patterns}")
    assert ended.code == 2
    assert said in ended.err


def test_a_training_that_changes_nothing_is_a_failure(medframe: Medframe, recipe: Path) -> None:
    ended = medframe("run", recipe, "trainer={use: full, max_steps: 1, warmup_steps: 1}", "compare=0")
    assert ended.code == 1
    assert "no parameter has changed" in ended.err
