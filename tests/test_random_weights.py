"""`backbone.weights=random:SIZE`: full-size shapes without a download, to measure with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Medframe

from medframe import BackboneError
from medframe.plugins import catalog


def backbone(name: str, **fields: Any) -> Any:
    return catalog().find("backbone", name).load()(**fields)


# As published: LLaMA 6.7, 13.0, 32.5 and 65.2 billion parameters; BLOOM-560M and 7B1; Baichuan 7.0 and 13.3 billion.
@pytest.mark.parametrize(
    ("use", "weights", "billions"),
    [
        ("llama", "random:7b", 6.738),
        ("llama", "random:llama-13b", 13.016),
        ("llama", "random:30b", 32.529),
        ("llama", "random:65b", 65.286),
        ("llama", "random:1b", 1.100),
        ("llama", "random:chinese-alpaca-7b", 6.885),
        ("bloom", "random:560m", 0.559),
        ("bloom", "random:bloom-7b1", 7.069),
        ("huozi", "random:7b", 7.068),
        ("baichuan", "random:7b", 7.001),
        ("baichuan", "random:baichuan-13b", 13.265),
        ("baichuan", "random:baichuan2-13b", 13.897),
    ],
)
def test_a_published_size_has_as_many_parameters_as_published(use: str, weights: str, billions: float) -> None:
    import torch

    with torch.device("meta"):
        model = backbone(use, weights=weights).load_model()
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.001)


def test_baichuans_fields_choose_among_its_sizes() -> None:
    assert backbone("baichuan", weights="random:7b").load_config().positions == "rope"
    assert backbone("baichuan", weights="random:13b").load_config().positions == "alibi"
    assert backbone("baichuan", weights="random:13b", head="norm").load_config().vocab_size == 125696
    assert backbone("baichuan", weights="random:7b", positions="alibi").load_config().positions == "alibi"


@pytest.mark.parametrize("use", ["auto", "baichuan", "bloom", "llama"])
def test_of_a_directory_the_shapes_are_taken_and_the_weights_made(use: str, tmp_path: Path) -> None:
    import torch

    whole = backbone(use)
    for file in whole.directory().glob("*"):
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    made = backbone(use, weights=f"random:{tmp_path}", dtype="bfloat16")
    assert made.load_tokenizer().get_vocab() == whole.load_tokenizer().get_vocab()
    model, again, real = made.load_model(), made.load_model(), whole.load_model()
    shapes = {name: tensor.shape for name, tensor in real.state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), f"{name} is made otherwise each time"
    ids = torch.arange(100, 132)[None]
    with torch.no_grad():
        logits = model(input_ids=ids).logits.float()
    assert torch.isfinite(logits).all()
    assert logits.std() > 0.01, "nothing comes of the weights"
    made_tied, tied = (m.get_output_embeddings().weight is m.get_input_embeddings().weight for m in (model, real))
    assert made_tied == tied


def test_a_size_that_is_not_known_is_said_with_those_that_are() -> None:
    with pytest.raises(BackboneError, match=r"random:8b: Llama knows the sizes 1b, .*7b.* or a hub model"):
        backbone("llama", weights="random:8b").load_config()


def test_check_takes_a_random_model_and_run_does_not(
    medframe: Medframe, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: object) -> int:
        raise AssertionError("processes were started")

    monkeypatch.setattr("medframe.launch.supervise", started)
    ended = medframe("check", recipe, "backbone.weights=random:7b", "--json")
    report = json.loads(ended.out)
    assert (ended.code, report["problems"]) == (0, [])
    assert any("medframe bench" in note for note in report["notes"])
    for more in ((), ("processes=2",)):
        ended = medframe("run", recipe, "backbone.weights=random:7b", *more)
        assert (ended.code, "medframe bench" in ended.err, ended.err.count("\n")) == (2, True, 1)
    ended = medframe("check", recipe, "backbone.weights=random:8b")
    assert ended.code == 2
    assert "backbone.weights: random:8b: Llama knows the sizes 1b" in ended.out


def test_a_relative_directory_is_found_from_where_it_was_written(medframe: Medframe, recipe: Path) -> None:
    (recipe.parent / "shape").mkdir()
    for file in backbone("llama").directory().glob("*"):
        if file.suffix != ".safetensors":
            (recipe.parent / "shape" / file.name).write_bytes(file.read_bytes())
    ended = medframe("run", recipe, "--print", "backbone.weights=random:shape")
    assert f"weights: random:{recipe.parent / 'shape'}" in ended.out
    assert medframe("check", recipe, "backbone.weights=random:shape").code == 0
