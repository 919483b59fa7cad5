"""Weights of 8 and 4 bits: to answer with, and to train LoRA beside."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Medframe

from medframe.backbone import Backbone
from medframe.errors import BackboneError
from medframe_backbones.baichuan import Baichuan
from medframe_backbones.bloom import Bloom
from medframe_backbones.llama import Llama


def size(model: Any, of: str) -> int:
    """Bytes of the tensors whose name holds this."""
    return sum(p.numel() * p.element_size() for name, p in model.named_parameters() if of in name and p.ndim == 2)


@pytest.mark.parametrize(("cls", "layer"), [(Llama, "layers."), (Bloom, ".h."), (Baichuan, "layers.")])
@pytest.mark.parametrize(("bits", "share", "near"), [("int8", 0.26, 0.08), ("int4", 0.13, 0.6)])
def test_linear_layers_take_a_part_of_the_memory_and_compute_nearly_the_same(
    cls: type[Backbone], layer: str, bits: Any, share: float, near: float
) -> None:
    whole, rounded = cls().load_model().eval(), cls(weights_dtype=bits).load_model().eval()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        expected, found = whole(ids).logits, rounded(ids).logits
    assert 0 < float((expected - found).abs().max()) < near * float(expected.abs().max())
    assert size(rounded, layer) <= share * size(whole, layer)
    assert size(rounded, "embed") == size(whole, "embed")  # what is looked up is not rounded, nor is the head
    head = rounded.get_output_embeddings()
    assert head is not None
    assert type(head) is type(whole.get_output_embeddings())


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_lora_is_trained_beside_them_and_proven(
    medframe: Medframe, recipe: Path, monkeypatch: pytest.MonkeyPatch, bits: str
) -> None:
    settings = ["trainer.max_steps=3", "trainer.learning_rate=1e-2", "held_out={rows: 2}", "compare=1"]
    ended = medframe("run", recipe, f"backbone.weights_dtype={bits}", *settings)
    assert ended.code == 0, ended.err
    assert "Held-out loss per supervised token" in ended.out
    for more in ((), ("--weights-dtype", "int8")):
        monkeypatch.setattr(sys, "stdin", io.StringIO("头痛\n"))
        ended = medframe("chat", "runs/here", "--max-new-tokens", 3, *more)
        assert ended.code == 0, ended.err


@pytest.mark.parametrize("trainer", ["{use: full}", "{use: lora, deepspeed: zero2}"])
def test_what_cannot_train_beside_them_is_refused_before_anything_is_read(
    medframe: Medframe, recipe: Path, trainer: str
) -> None:
    ended = medframe("check", recipe, "backbone.weights_dtype=int4", f"trainer={trainer}")
    assert ended.code == 2
    assert "take the trainer lora without deepspeed" in ended.err + ended.out
    ended = medframe("check", recipe, "backbone.weights_dtype=int2")
    assert ended.code == 2
    assert "weights_dtype" in ended.err + ended.out


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(BackboneError, match=r"pip install 'medframe\[quantised\]'"):
        Llama(weights_dtype="int8").load_model()
