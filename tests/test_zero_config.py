"""What a recipe names of DeepSpeed -> one complete configuration, or an error that says which two values differ."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Medframe

import medframe as public

ROOT = Path(__file__).parents[1]
SIZES = {"reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"}
"""Whose "auto" stays: transformers fills them from the model's hidden size."""

SPREAD = {
    "overlap_comm": True,
    "contiguous_gradients": True,
    "sub_group_size": 1e9,
    "reduce_bucket_size": "auto",
    "stage3_prefetch_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto",
    "stage3_max_live_parameters": 1e9,
    "stage3_max_reuse_distance": 1e9,
}
COUNTS = {
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}


def fp16(power: int) -> dict[str, Any]:
    return {
        "enabled": "auto",
        "loss_scale": 0,
        "loss_scale_window": 1000,
        "initial_scale_power": power,
        "hysteresis": 2,
        "min_loss_scale": 1,
    }


WARMUP = {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}
CPU = {"device": "cpu", "pin_memory": True}
CHATMED = {
    "fp16": fp16(10),
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto"}},
    "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto", **WARMUP}},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": CPU,
        "offload_param": CPU,
        **SPREAD,
        "stage3_gather_16bit_weights_on_model_save": False,
    },
    "steps_per_print": 10,
    **COUNTS,
}
"""The keys and values of ChatMed's deepspeed_config_zero3_offload.json."""
DISC = {
    "fp16": fp16(16),
    "bf16": {"enabled": "auto"},
    "optimizer": {
        "type": "Adam",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
    },
    "scheduler": {"type": "WarmupLR", "params": WARMUP},
    "zero_optimization": {"stage": 3, **SPREAD, "stage3_gather_16bit_weights_on_model_save": True},
    "steps_per_print": 200,
    **COUNTS,
}
"""The keys and values of DISC-MedLLM's ds_z3_config.json."""

Write = Callable[..., Path]


@pytest.fixture
def write(here: Path) -> Write:
    """Writes a DeepSpeed file of so many keys beside the recipe."""

    def file(content: object, name: str = "ds.json") -> Path:
        text = content if isinstance(content, str) else json.dumps(content)
        (here / name).write_text(text, "utf-8")
        return here / name

    return file


def config(deepspeed: object, *, rows: int | None = None, accumulate: int = 2, **fields: Any) -> dict[str, Any]:
    """The configuration of a training of 100 steps on four processes."""
    from medframe_trainers import zero
    from medframe_trainers.full import Full

    settings = Full(deepspeed=deepspeed if isinstance(deepspeed, dict) else str(deepspeed), **fields)
    return zero.config(settings, world=4, accumulate=accumulate, total_steps=100, rows=rows)


def left(content: dict[str, Any]) -> set[str]:
    """The keys whose value is still "auto"."""
    inner = [left(value) for value in content.values() if isinstance(value, dict)]
    return {key for key, value in content.items() if value == "auto"}.union(*inner)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    ("name", "stage", "offloaded"),
    [
        ("zero0", 0, []),
        ("zero1", 1, []),
        ("zero2", 2, []),
        ("zero3", 3, []),
        ("zero2-offload", 2, ["offload_optimizer"]),
        ("zero3-offload", 3, ["offload_optimizer", "offload_param"]),
    ],
)
def test_a_name_is_a_whole_configuration(name: str, stage: int, offloaded: list[str], bf16: bool) -> None:
    found = config(name, bf16=bf16, max_grad_norm=0.7)
    zero = found["zero_optimization"]
    assert zero["stage"] == stage
    assert [key for key in zero if key.startswith("offload")] == offloaded
    assert (found["train_micro_batch_size_per_gpu"], found["gradient_accumulation_steps"]) == (1, 2)
    assert (found["train_batch_size"], found["gradient_clipping"]) == (8, 0.7 if stage else 0.0)
    assert left(found) <= SIZES
    assert found["fp16"]["enabled"] is False
    if stage == 0 and bf16:  # what one process without DeepSpeed does
        assert found["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
        assert not found["bf16"].get("enabled")
    else:
        assert found["bf16"]["enabled"] is bf16
    assert zero.get("stage3_gather_16bit_weights_on_model_save", False) is (stage == 3)
    assert found.get("zero_force_ds_cpu_optimizer", True) is not bool(offloaded)


def test_chatmeds_published_file_is_taken_as_it_is(write: Write) -> None:
    found = config(write(CHATMED), learning_rate=1e-4, weight_decay=0.01, warmup_steps=0.05)
    assert found["zero_optimization"] == {
        **CHATMED["zero_optimization"],  # type: ignore[dict-item]
        "stage3_gather_16bit_weights_on_model_save": True,  # off, a checkpoint of ZeRO-3 holds no weights
    }
    assert found["fp16"] == {**fp16(10), "enabled": False}
    assert found["zero_force_ds_cpu_optimizer"] is False
    assert not {"optimizer", "scheduler"} & set(found)  # the Trainer runs both
    assert left(found) == SIZES


def test_discs_published_file_is_taken_as_it_is(write: Write) -> None:
    found = config(write(DISC), learning_rate=1e-5, warmup_steps=800, bf16=True, rows=4, accumulate=3)
    assert found["zero_optimization"] == DISC["zero_optimization"]
    assert found["bf16"] == {"enabled": True}
    assert (found["train_batch_size"], found["gradient_accumulation_steps"]) == (12, 3)
    assert not {"optimizer", "scheduler"} & set(found)
    assert left(found) == SIZES


def test_discs_file_beside_discs_cosine_is_two_schedules(medframe: Medframe, recipe: Path, write: Write) -> None:
    write(DISC)
    ended = medframe("run", recipe, "trainer.deepspeed=ds.json", "trainer.lr_scheduler_type=cosine")
    assert ended.code == 2
    assert "ds.json names the scheduler WarmupLR, the recipe lr_scheduler_type cosine" in ended.err


@pytest.mark.parametrize(
    ("key", "value", "recipes", "ours"),
    [
        ("optimizer.params.lr", 2e-5, "learning_rate", "0.0002"),
        ("optimizer.params.weight_decay", 0.1, "weight_decay", "0.0"),
        ("optimizer.params.betas", [0.9, 0.95], "adam_beta1, adam_beta2", "[0.9, 0.999]"),
        ("optimizer.params.eps", 1e-6, "adam_epsilon", "1e-08"),
        ("gradient_clipping", 0.5, "max_grad_norm", "1.0"),
        ("bf16.enabled", True, "bf16", "false"),
        ("fp16.enabled", True, "fp16", "false"),
        ("gradient_clipping", "1.0", "max_grad_norm", "1.0"),
    ],
)
def test_two_values_for_one_thing_are_told_with_both(
    medframe: Medframe, recipe: Path, write: Write, key: str, value: Any, recipes: str, ours: str
) -> None:
    content = deepcopy(DISC)
    *parents, last = key.split(".")
    place: Any = content
    for parent in parents:
        place = place[parent]
    place[last] = value
    write(content)
    ended = medframe("run", recipe, "--print", "trainer.deepspeed=ds.json")
    said = f'ds.json says {key} {json.dumps(value)}, the recipe {recipes} {ours}; make them equal or write "auto"'
    assert (ended.code, said in ended.err) == (2, True), ended.err


def test_equal_values_are_no_contradiction(write: Write) -> None:
    content = {
        "optimizer": {"type": "AdamW", "params": {"lr": 2e-05, "betas": [0.9, 0.999], "eps": 1e-8}},
        "gradient_clipping": 1,
        "bf16": {"enabled": False},
        "gradient_accumulation_steps": 2,
        "train_micro_batch_size_per_gpu": 4,
        "train_batch_size": 32,
        "zero_optimization": {"stage": 1},
    }
    found = config(write(content), learning_rate=2e-5, rows=4)
    assert (found["train_micro_batch_size_per_gpu"], found["train_batch_size"]) == (1, 8)


@pytest.mark.parametrize(
    ("content", "rows", "said"),
    [
        ({"train_micro_batch_size_per_gpu": 8}, 4, "train_micro_batch_size_per_gpu 8, the recipe batching.rows 4"),
        ({"train_micro_batch_size_per_gpu": 8}, None, "the recipe one packed row in a micro-batch: 1"),
        ({"gradient_accumulation_steps": 8}, 4, "gradient_accumulation_steps, on each of 4 processes, 2"),
        ({"train_batch_size": 48}, 4, "train_batch_size 48, the recipe batching.rows x gradient_accumulation_steps 32"),
        (
            {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 9}}},
            None,
            "scheduler.params.warmup_num_steps 9, the recipe warmup_steps 10",
        ),
        ({"zero_optimization": {"stage": 3, "sub_group_size": "auto"}}, None, 'sub_group_size "auto", which nothing'),
        ({"bf16": {"enabeld": True}}, None, "enabeld: Extra inputs are not permitted"),
    ],
)
def test_what_shows_once_the_steps_are_counted(content: dict[str, Any], rows: int | None, said: str) -> None:
    with pytest.raises(public.RecipeError) as error:
        config(content, rows=rows, warmup_steps=0.1)
    assert str(error.value).startswith("trainer: deepspeed: the mapping")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("zero4", "deepspeed 'zero4' is unknown; did you mean 'zero3'?"),
        ("zero2_offload", "did you mean 'zero2-offload'?"),
        ("stage2", "take zero0, zero1, zero2, zero3, zero2-offload, zero3-offload, a JSON file or a mapping"),
        ("none.json", "none.json"),
        ("{}", ""),
        ("[1]", "trainer.deepspeed"),
        ("", "null"),
        ("{zero_optimisation: {stage: 2}}", "did you mean 'zero_optimization'?"),
        ("{zero_optimization: 2}", "zero_optimization 2; it must be a mapping"),
        ("{zero_optimization: {stage: 4}}", "stage 4; it is 0, 1, 2 or 3"),
        ("{zero_optimization: {stage: true}}", "stage true; it is 0, 1, 2 or 3"),
        ("{zero_optimization: {stage: 2, overlap_com: true}}", "did you mean 'overlap_comm'?"),
        ("{zero_optimization: {stage: 3, offload_param: {device: nvme}}}", 'device "nvme"; it can be cpu or none'),
        ("{zero_optimization: {stage: 2, offload_param: {device: cpu}}}", "offload_param, which needs stage 3"),
        ("{zero_optimization: {offload_optimizer: {device: cpu}}}", "needs stage 1 or more, not 0"),
        ("{zero_optimization: {stage: 2, cpu_offload: true}}", 'write "offload_optimizer": {"device": "cpu"}'),
        ("{optimizer: {type: OneBitAdam}}", 'the optimizer "OneBitAdam"; take Adam, AdamW, SGD'),
        ("{optimizer: {type: Adam, params: 3}}", "optimizer.params 3; it must be a mapping"),
        ("{zero_optimization: {stage: 2, overlap_comm: maybe}}", 'overlap_comm "maybe"; it must be true or false'),
        ("{zero_optimization: {stage: 2, reduce_bucket_size: big}}", "it must be a whole number from 0 on"),
        ("{zero_optimization: {stage: 2, sub_group_size: -1}}", "sub_group_size -1; it must be a whole number"),
        ("{zero_optimization: {stage: 2, offload_optimizer: cpu}}", 'offload_optimizer "cpu"; it must be a mapping'),
        (
            "{zero_optimization: {stage: 2, offload_optimizer: {device: cpu, pin_memory: 3}}}",
            "zero_optimization.offload_optimizer.pin_memory 3; it must be true or false",
        ),
        ("{bf16: {enabled: 0}}", "bf16.enabled 0; it must be true or false"),
        ("{fp16: {loss_scale: high}}", 'fp16.loss_scale "high"; it must be a number'),
        ("{communication_data_type: fp64}", 'communication_data_type "fp64"; it must be fp32, fp16 or bf16'),
        ("{data_types: {grad_accum_dtype: 7}}", "data_types.grad_accum_dtype 7; it must be fp32, fp16 or bf16"),
        ("{data_types: {param_dtype: fp32}}", "data_types.param_dtype, which cannot be honoured here"),
        ("{prescale_gradients: 1}", "prescale_gradients 1; it must be true or false"),
    ],
)
def test_what_is_no_configuration_is_told_when_the_recipe_is_read(
    medframe: Medframe, recipe: Path, value: str, said: str
) -> None:
    ended = medframe("run", recipe, "--print", f"trainer.deepspeed={value}")
    if value in ("", "{}"):
        assert ended.code == 0
    else:
        assert (ended.code, said in ended.err) == (2, True), ended.err


def test_an_optimizer_that_looks_at_whole_tensors_is_refused(medframe: Medframe, recipe: Path) -> None:
    ended = medframe("run", recipe, "--print", "trainer.deepspeed=zero2", "trainer.optim=adafactor")
    assert ended.code == 2
    assert "optim adafactor would do something else" in ended.err
    assert "take adamw_torch, adamw_torch_fused, rmsprop, sgd" in ended.err
    assert medframe("run", recipe, "--print", "trainer.deepspeed=zero2", "trainer.optim=sgd").code == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"bf16": {"enabled": true,}}', "ds.json:1: "),
        ("[]", "holds no mapping"),
        ('{"bf16": {}, "bf16": {}}', "'bf16' is there twice"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_broken_file_is_told(medframe: Medframe, recipe: Path, write: Write, text: str, said: str) -> None:
    write(text)
    ended = medframe("run", recipe, "--print", "trainer.deepspeed=ds.json")
    assert (ended.code, said in ended.err) == (2, True), ended.err


@pytest.mark.parametrize(
    "key",
    [
        "tensor_parallel",
        "pipeline",
        "elasticity",
        "data_efficiency",
        "compression_training",
        "activation_checkpointing",
        "checkpoint",
        "nebula",
        "wandb",
        "tensorboard",
        "flops_profiler",
        "torch_autocast",
        "gradient_allreduce_op",
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(medframe: Medframe, recipe: Path, write: Write, key: str) -> None:
    write({key: {"enabled": True}})
    ended = medframe("run", recipe, "--print", "trainer.deepspeed=ds.json")
    assert ended.code == 2
    assert f"ds.json has {key}, which cannot be honoured here: " in ended.err
    write({key: {"enabled": False}})
    assert medframe("run", recipe, "--print", "trainer.deepspeed=ds.json").code == 0
    assert key not in config(Path("ds.json").resolve())


def test_every_problem_of_a_file_is_a_line_of_its_own(medframe: Medframe, recipe: Path, write: Write) -> None:
    write({"wandb": {"enabled": True}, "zero_optimization": {"stage": 7}})
    ended = medframe("run", recipe, "--print", "trainer.deepspeed=ds.json")
    assert len([line for line in ended.err.splitlines() if "trainer: deepspeed: ds.json" in line]) == 2


def test_what_only_prints_is_left_out() -> None:
    found = config({"steps_per_print": 1, "wall_clock_breakdown": True, "comms_logger": {"enabled": True}})
    assert found["steps_per_print"] > 10**9
    assert not {"wall_clock_breakdown", "comms_logger"} & set(found)


def test_an_optimizer_that_is_not_the_recipes_stays_deepspeeds() -> None:
    found = config({"optimizer": {"type": "SGD", "params": {"lr": "auto"}}}, learning_rate=3e-4, weight_decay=0.1)
    assert found["optimizer"] == {"type": "SGD", "params": {"lr": 3e-4, "weight_decay": 0.1}}
    found = config({"optimizer": {"type": "Adam", "params": {"adam_w_mode": False}}}, learning_rate=3e-4)
    assert found["optimizer"]["params"] == {
        "adam_w_mode": False,
        "lr": 3e-4,
        "weight_decay": 0.0,
        "torch_adam": True,  # DeepSpeed's own must be compiled
    }


def test_an_optimizer_to_compile_is_refused_where_nothing_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    section = {"optimizer": {"type": "AdamW", "params": {"torch_adam": False}}}
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(public.RecipeError, match="must be compiled, and c\\+\\+ or ninja is not here"):
        config(section)


def test_two_optimizers_are_refused(medframe: Medframe, recipe: Path, write: Write) -> None:
    write(DISC)
    ended = medframe("run", recipe, "--print", "trainer.deepspeed=ds.json", "trainer.optim=adafactor")
    assert ended.code == 2
    assert "ds.json names the optimizer Adam, the recipe optim adafactor: two optimizers" in ended.err


def test_float16_is_refused_where_deepspeed_cannot(medframe: Medframe, recipe: Path) -> None:
    import torch

    ended = medframe("run", recipe, "--print", "trainer.deepspeed=zero0", "trainer.fp16=true")
    assert ended.code == 2
    assert "in float16, stage 0 of DeepSpeed starts Adam one step late" in ended.err
    if torch.accelerator.is_available() or torch.ops.mkldnn._is_mkldnn_fp16_supported():
        pytest.skip("this machine has float16")
    with pytest.raises(public.RecipeError, match=r"trainer\.fp16: DeepSpeed has no float16 on this machine"):
        config("zero2", fp16=True)


def test_deepspeed_that_is_not_installed_is_told(
    medframe: Medframe, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "deepspeed" else found(name))
    assert medframe("run", recipe, "--print").code == 0
    ended = medframe("run", recipe, "--print", "trainer.deepspeed=zero2")
    assert (ended.code, "deepspeed is not installed: pip install deepspeed" in ended.err) == (2, True)


def test_a_path_is_relative_to_the_recipe_and_a_name_is_a_name(medframe: Medframe, recipe: Path, write: Write) -> None:
    folder = recipe.parent / "configs"
    folder.mkdir()
    (recipe.parent / "zero2").mkdir()  # such as a run directory
    write({"zero_optimization": {"stage": 1}}, "configs/ds.json")
    text = recipe.read_text("utf-8")
    other = folder / "other.yaml"
    other.write_text("include: [../recipe.yaml]\ntrainer: {deepspeed: ds.json}\n", "utf-8")
    printed = medframe("run", other, "--print")
    assert yaml.safe_load(printed.out)["trainer"]["deepspeed"] == str(folder / "ds.json")
    recipe.write_text(text.replace("{use: lora}", "{use: lora, deepspeed: zero2}"), "utf-8")
    assert yaml.safe_load(medframe("run", recipe, "--print").out)["trainer"]["deepspeed"] == "zero2"


def test_a_mapping_in_the_recipe_and_on_the_command_line(medframe: Medframe, recipe: Path) -> None:
    text = recipe.read_text("utf-8")
    recipe.write_text(
        text.replace("{use: lora}", "{use: lora, deepspeed: {zero_optimization: {stage: 3, sub_group_size: 1e9}}}"),
        "utf-8",
    )
    printed = medframe("run", recipe, "--print", "trainer.deepspeed.zero_optimization.stage=2").out
    assert yaml.safe_load(printed)["trainer"]["deepspeed"] == {"zero_optimization": {"stage": 2, "sub_group_size": 1e9}}
    printed = medframe("run", recipe, "--print", "trainer.deepspeed=null").out
    assert yaml.safe_load(printed)["trainer"]["deepspeed"] is None


@pytest.mark.parametrize("line", [["run", "recipe.yaml", "--print"], ["list-plugins", "trainer/full"]])
def test_neither_torch_nor_deepspeed_is_loaded_to_look_at_a_recipe(recipe: Path, write: Write, line: list[str]) -> None:
    write(DISC)
    recipe.write_text(recipe.read_text("utf-8").replace("{use: lora}", "{use: full, deepspeed: ds.json}"), "utf-8")
    code = (
        "import sys\nfrom medframe.cli import main\nsys.argv = ['medframe', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'deepspeed', 'transformers'} & set(sys.modules)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, *line], capture_output=True, text=True, cwd=recipe.parent)
    assert ended.returncode == 0, ended.stderr
    assert "deepspeed" in ended.stdout
