"""The forecast of `medframe check`: memory against what is measured, operations by hand, and changes that fit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Consultations, Distribution, Medframe

from medframe.compose import compose
from medframe.flops import Load, load_of, work
from medframe.plugins import catalog
from medframe.prepare import prepare
from medframe.recipe import build

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import forecast as grid

SEVEN = "backbone.weights=random:7b"


def shapes_of(use: str, trainer: str, weights: str, **fields: Any) -> Any:
    """The model on the meta device as the trainer trains it."""
    from medframe.backbone import shapes

    backbone = catalog().find("backbone", use).load()(weights=weights)
    made = catalog().find("trainer", trainer).load()(**fields).footprint(shapes(backbone), backbone)
    return made.model


def forecast_of(medframe: Medframe, *arguments: object) -> dict[str, Any]:
    ended = medframe("check", *arguments, "--json")
    report = json.loads(ended.out)
    assert ended.code == 0, report["problems"]
    forecast: dict[str, Any] = report["forecast"]
    return forecast


# Others are in tests/benchmarks/forecast.py, which takes half an hour, and in test_bench.py.
def test_the_memory_foretold_is_what_is_measured(tmp_path: Path) -> None:
    line = ("bloom", 256, 2, 16000, "bfloat16", "lora", "padded", True)
    arguments = grid.recipe(tmp_path / "line", line)
    foretold, measured = grid.foretold(arguments).total, grid.measured(arguments, tmp_path)["tensors"]
    assert foretold == pytest.approx(measured, rel=0.15)


def test_operations_of_full_training_are_six_for_each_element_and_token() -> None:
    forward, backward = work(shapes_of("llama", "full", "random:7b")) or pytest.fail("unknown")
    layers = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    assert (forward.token, backward.token) == (2 * layers, 4 * layers)
    assert (forward.supervised, backward.supervised) == (2 * 32000 * 4096, 4 * 32000 * 4096)
    assert (forward.pair, backward.pair) == (4 * 32 * 4096, 8 * 32 * 4096)
    load = Load(tokens=100, slots=120, supervised=10, pairs=5050)
    assert forward.of(load) == 200 * layers + 20 * 32000 * 4096 + 5050 * 4 * 32 * 4096


def test_under_lora_the_weights_themselves_take_no_gradient() -> None:
    forward, backward = work(shapes_of("llama", "lora", "random:7b", rank=8, targets=["q_proj"])) or pytest.fail(
        "unknown"
    )
    layers, adapters = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008), 32 * 2 * 8 * 4096
    assert forward.token == 2 * (layers + adapters)
    # Of the first layer nothing is passed on through what lies before the first adapter.
    assert backward.token == 2 * (layers - 4096 * 4096) + 4 * adapters - 2 * 8 * 4096
    assert backward.supervised == forward.supervised


def test_layers_below_the_first_that_is_trained_are_not_gone_back_through() -> None:
    _, backward = work(shapes_of("llama", "full", "random:7b", parameters=["model.layers.31.*"])) or pytest.fail(
        "unknown"
    )
    assert backward.token < 4 * (4 * 4096 * 4096 + 3 * 4096 * 11008)


@pytest.mark.parametrize("batching", ["{kind: packed, tokens: 128}", "{kind: padded, rows: 3}", "{kind: blocks}"])
def test_what_is_told_of_micro_batches_is_what_they_are(
    recipe: Path, consultations: Consultations, batching: str
) -> None:
    consultations([{"query": "头疼" * (n + 1), "response": "休息" * 9} for n in range(8)])
    epoch = prepare(build(compose(recipe, [f"batching={batching}"]))).train.epoch(0)
    assert epoch.loads() == [load_of(batch) for batch in epoch]
    assert sum(epoch.loads(), Load()).tokens == sum(2 * n + 31 for n in range(8))


def test_what_does_not_fit_comes_with_changes_that_do(medframe: Medframe, recipe: Path) -> None:
    full = [recipe, SEVEN, "trainer.use=full"]
    told = forecast_of(medframe, *full, "--device", "a100-80")
    assert told["devices"][0]["times"] == 0
    assert told["memory"]["weights"] == pytest.approx(4 * 6.738e9, rel=0.001)
    assert told["memory"]["optimizer"] == pytest.approx(8 * 6.738e9, rel=0.001)
    assert 1 <= len(told["changes"]) <= 3
    for change in told["changes"]:
        again = forecast_of(medframe, *full, *change["overrides"], "--device", "a100-80")
        assert again["devices"][0]["times"] >= 1, change
        assert again["changes"] == []
        assert again["memory"]["total"] == pytest.approx(change["total"])
        assert again["memory"]["total"] < 80e9


def test_a_micro_batch_that_is_too_large_is_made_one_that_fits(medframe: Medframe, recipe: Path) -> None:
    rows = [{"query": "头疼" * 30, "response": "休息" * 30}] * 256
    (recipe.parent / "consultations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    arguments = [recipe, SEVEN, "batching={kind: padded, rows: 256}"]
    told = forecast_of(medframe, *arguments, "--device", "3090")
    assert 0 < told["devices"][0]["times"] < 1
    override = told["changes"][0]["overrides"]
    assert override[0].startswith("batching.rows=")
    again = forecast_of(medframe, *arguments, *override, "--device", "3090")
    assert 1 <= again["devices"][0]["times"] < 1.5
    assert "trainer.gradient_checkpointing=true" in {o for change in told["changes"] for o in change["overrides"]}


def test_zero_shares_among_processes_what_its_stage_says(medframe: Medframe, recipe: Path) -> None:
    def memory(*overrides: str) -> Any:
        told = forecast_of(medframe, recipe, SEVEN, "trainer={use: full, bf16: true}", "processes=4", *overrides)
        return told["memory"]

    plain, two, three, off = (
        memory(*([f"trainer.deepspeed={name}"] if name else [])) for name in ("", "zero2", "zero3", "zero3-offload")
    )
    assert two["optimizer"] == pytest.approx(12 * 6.738e9 / 4, rel=0.001)
    assert two["weights"] == pytest.approx(2 * 6.738e9, rel=0.001)
    assert two["gradients"] == pytest.approx(2 * 6.738e9 / 4, rel=0.001)
    assert three["weights"] < two["weights"] < plain["weights"]
    assert off["optimizer"] == off["gradients"] == 0


def test_checkpointing_keeps_less_and_computes_more(medframe: Medframe, recipe: Path) -> None:
    kept, again = (
        forecast_of(
            medframe,
            recipe,
            SEVEN,
            "batching={kind: padded, rows: 1}",
            f"trainer.gradient_checkpointing={on}",
            "--device",
            "h100",
        )
        for on in ("false", "true")
    )
    assert again["devices"][0]["times"] > 1024  # however many rows fit
    assert again["memory"]["activations"] < kept["memory"]["activations"] / 4
    assert again["operations"] == kept["operations"]
    assert again["devices"][0]["hours"]["1"] > 1.3 * kept["devices"][0]["hours"]["1"]


def test_check_shows_the_forecast(medframe: Medframe, recipe: Path) -> None:
    ended = medframe("check", recipe, SEVEN)
    assert "memory of each device: " in ended.out
    assert "(weights 13.5 GB, adapter 80 MB, " in ended.out
    for name in ("3090", "4090", "a100-40", "a100-80", "a800", "h100", "h200"):
        assert f"    {name} " in ended.out
    ended = medframe("check", recipe, SEVEN, "trainer.use=full", "--device", "4090")
    assert "    4090     does not fit" in ended.out
    assert "fits 4090 with trainer.use=lora: " in ended.out
    assert medframe("check", recipe, "--device", "b300").code == 2
    ended = medframe("check", recipe, "--device", "cpu")
    assert "    cpu      fits, up to batching.tokens=" in ended.out


@pytest.mark.parametrize("layers", [1, 36])
def test_models_whose_layers_are_listed_are_measured_however_many_they_are(
    medframe: Medframe, recipe: Path, layers: int
) -> None:
    from medframe_backbones.tiny_qwen import tokenizer_files

    shape = {"hidden_size": 4096, "intermediate_size": 12288, "head_dim": 128, "vocab_size": 151936}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": layers}
    folder = recipe.parent / "qwen3"
    folder.mkdir()
    config = {"model_type": "qwen3", "dtype": "bfloat16", "tie_word_embeddings": False, **shape, **heads}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    tokenizer_files(folder)
    chosen = f"backbone={{use: auto, weights: 'random:{folder}'}}"
    told = forecast_of(medframe, recipe, chosen, "prompt.use=chat-template", "--device", "h100")
    weights = 2 * (2 * 151936 * 4096 + layers * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12288))
    assert told["memory"]["weights"] == pytest.approx(weights, rel=1e-3)
    assert told["devices"][0]["times"] > 1


def test_of_a_model_that_cannot_be_measured_the_time_is_told(
    medframe: Medframe, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medframe.forecast.forecast.activations", lambda *_: None)
    told = forecast_of(medframe, recipe, SEVEN, "--device", "h100")
    (device,) = told["devices"]
    assert (told["memory"], device["times"], device["fits"], told["changes"]) == (None, None, "unknown", [])
    assert device["hours"]["4"] > 0


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["trainer.targets=[q_porj]"], "trainer.targets: the model has no module q_porj; it has act_fn, "),
        (["backbone.dtype=float16"], "gradients of float16 weights vanish without loss scaling"),
    ],
)
def test_what_the_trainer_will_refuse_is_a_problem_beside_others(
    medframe: Medframe, recipe: Path, overrides: list[str], said: str
) -> None:
    ended = medframe("check", recipe, SEVEN, *overrides, "--json")
    (problem,) = json.loads(ended.out)["problems"]
    assert (ended.code, said in problem) == (2, True)


def test_what_needs_the_weights_is_unknown(medframe: Medframe, recipe: Path, distribution: Distribution) -> None:
    source = """\
from dataclasses import dataclass
import medframe
from medframe_backbones.llama import Llama

@dataclass(kw_only=True)
class Own(Llama):
    "Reads files in its own way."
    def load_model(self):
        from transformers import LlamaForCausalLM
        return LlamaForCausalLM.from_pretrained(self.directory())

@medframe.hookimpl
def backbones():
    return {"own": Own}
"""
    distribution("own", {"own_plugin": source}, ["own_plugin"])
    tiny = catalog().find("backbone", "llama").load()().directory()
    ended = medframe("check", recipe, f"backbone={{use: own, weights: {tiny}}}")
    assert ended.code == 0
    assert "memory and time are unknown: Own does not make its model without weights: " in ended.out


def test_what_a_trainer_does_not_tell_is_unknown(medframe: Medframe, recipe: Path, distribution: Distribution) -> None:
    source = """\
from dataclasses import dataclass
import medframe

@dataclass(kw_only=True)
class Silent(medframe.Trainer):
    "Tells nothing."
    def fit(self, job): ...

@medframe.hookimpl
def trainers():
    return {"silent": Silent}
"""
    distribution("silent", {"silent_plugin": source}, ["silent_plugin"])
    ended = medframe("check", recipe, SEVEN, "trainer={use: silent}")
    assert ended.code == 0
    assert "memory and time are unknown: the trainer does not tell what it holds" in ended.out
