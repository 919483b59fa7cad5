"""Training through the command line: exact gradients, exact resume, interrupts, proofs."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Ended, Medframe
from safetensors.torch import load_file, save_file

from medframe import BackboneError
from medframe.checkpoints import damage
from medframe_backbones.llama import Llama

Train = Callable[..., Ended]

SMALL = [
    "backbone.weights=tiny",
    "held_out={rows: 4}",
    "trainer.save_steps=4",
    "trainer.logging_steps=1",
    "trainer.modules_to_save=[]",
    "trainer.learning_rate=1e-3",
    "trainer.warmup_steps=0",
    "compare=0",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-two consultations of unequal length."""
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [
        {
            "query": f"第{n}位患者：" + "头痛三天，" * (n % 7 + 1),
            "response": "建议多休息，" * (n % 5 + 1) + f"第{n}天复诊。",
        }
        for n in range(22)
    ]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return file


def arguments(data: Path, out: Path, *overrides: str) -> list[str]:
    return ["run", "chatmed", f"data.consult.path={data}", f"out={out}", *SMALL, *overrides]


def start(data: Path, out: Path, *overrides: str, **options: object) -> subprocess.Popen[str]:
    """The command in a process of its own, to be stopped."""
    line = [sys.executable, "-m", "medframe", *arguments(data, out, *overrides)]
    return subprocess.Popen(line, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload, no-any-return]


@pytest.fixture
def train(medframe: Medframe, data: Path) -> Train:
    """The command in this process, to its end."""

    def call(out: Path, *overrides: str, data: Path = data) -> Ended:
        return medframe(*arguments(data, out, *overrides))

    return call


def metrics(out: Path, name: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


# Checkpoints at 4, 8, ..., logged at 3, 6, ...: a resumed run goes on in the middle of a logged mean.
KILLED = [
    "trainer.max_steps=20",
    "trainer.keep=9",
    "trainer.dropout=0.1",
    "batching={kind: packed, tokens: 400}",
    "trainer.logging_steps=3",
]


@pytest.fixture(scope="module")
def killed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of KILLED that was killed beyond its third checkpoint; it is to be copied."""
    out = tmp_path_factory.mktemp("killed") / "run"
    process = start(data, out, *KILLED, start_new_session=True)
    wait_for(out / "checkpoints" / "checkpoint-12", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return out


@pytest.fixture
def left(killed: Path, tmp_path: Path) -> Path:
    """What the killed run left, to be gone on with."""
    return Path(shutil.copytree(killed, tmp_path / "left"))


def test_packed_and_padded_training_have_the_same_gradients_and_isolation_is_what_makes_it_so(
    data: Path,
) -> None:
    from medframe.batch import Batches, Batching, Selection, supervised
    from medframe.compose import compose
    from medframe.prepare import prepare
    from medframe.recipe import build
    from medframe.shipped import recipes
    from medframe_trainers.loss import token_loss

    recipe = build(compose(recipes()["chatmed"], [f"data.consult.path={data}", "held_out=null"]))
    (whole,) = prepare(recipe).train.selections
    selection = Selection(whole.examples, whole.indices[:9])
    assert len(set(whole.examples.lengths[:9])) > 5
    model = recipe.backbone.load_model().train()

    def gradients(batching: Batching, isolated: bool = True) -> dict[str, torch.Tensor]:
        batches = list(Batches([selection], batching, pad=0, seed=1).epoch(0))
        assert len(batches) == 3  # accumulated into one step
        total = sum(map(supervised, batches))
        model.zero_grad()
        for batch in batches:
            if not isolated:
                batch["position_ids"] = torch.arange(batch["input_ids"].shape[1])[None]
            loss, _ = token_loss(model, batch)
            (loss / total).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
        return max(float((one[n] - other[n]).norm() / other[n].norm()) for n in other)

    tokens = int(whole.examples.lengths[:9].sum()) // 3 + 40
    padded = gradients(Batching(kind="padded", rows=3))
    assert apart(gradients(Batching(kind="packed", tokens=tokens)), padded) < 1e-5
    assert apart(gradients(Batching(kind="packed", tokens=tokens), isolated=False), padded) > 1e-3


def test_packed_and_padded_runs_take_the_same_step(data: Path, tmp_path: Path) -> None:
    from medframe.compose import compose
    from medframe.prepare import job, prepare
    from medframe.recipe import build
    from medframe.shipped import recipes

    # All 18 training examples in one optimizer step: how they are batched does not matter.
    taken: list[dict[str, float]] = []
    for name, kind, accumulate in (("packed", "tokens: 10000", 1), ("padded", "rows: 6", 3)):
        steps = ["trainer.max_steps=1", "trainer.dropout=0", f"trainer.gradient_accumulation_steps={accumulate}"]
        _, _, *overrides = arguments(data, tmp_path / name, f"batching={{kind: {name}, {kind}}}", *steps)
        recipe = build(compose(recipes()["chatmed"], overrides))
        logged: dict[str, float] = {}
        recipe.trainer.fit(job(recipe, prepare(recipe), lambda step, of, values, to=logged: to.update(values)))
        taken.append(logged)
    for value in ("loss", "grad_norm", "held_out_loss"):
        assert taken[0][value] == pytest.approx(taken[1][value], rel=1e-5)


def test_a_run_killed_at_any_time_resumes_to_the_same_losses_and_weights(
    train: Train, left: Path, tmp_path: Path
) -> None:
    assert json.loads((left / "manifest.json").read_text("utf-8"))["state"] == "training"
    again = train(left, *KILLED)
    assert again.code == 2
    assert "--resume" in again.err
    resumed = train(left, *KILLED, "--resume")
    assert resumed.code == 0, resumed.err
    assert "Going on from checkpoint-" in resumed.out
    straight = tmp_path / "straight"
    assert train(straight, *KILLED).code == 0
    assert metrics(left, "loss") == metrics(straight, "loss")
    assert metrics(left, "held_out_loss") == metrics(straight, "held_out_loss")
    one, other = (load_file(out / "adapter" / "adapter_model.safetensors") for out in (straight, left))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_half_written_or_damaged_checkpoint_is_not_resumed_from(train: Train, left: Path) -> None:
    *_, flipped, damaged = sorted(
        (left / "checkpoints").glob("checkpoint-*[0-9]"), key=lambda c: int(c.name.rpartition("-")[2])
    )
    (damaged / "optimizer.pt").unlink()
    optimizer = bytearray((flipped / "optimizer.pt").read_bytes())
    optimizer[len(optimizer) // 2] ^= 1  # a fault of the disk
    (flipped / "optimizer.pt").write_bytes(optimizer)
    (left / "metrics.jsonl").unlink()
    half = left / "checkpoints" / "checkpoint-99.saving"
    half.mkdir()
    (half / "adapter_model.safetensors").write_bytes(b"half")
    resumed = train(left, *KILLED, "--resume")
    assert resumed.code == 0, resumed.err
    assert "checkpoint-99" not in resumed.out
    assert f"{flipped.name} is damaged and passed over: optimizer.pt is not as it was written" in resumed.out
    assert f"{damaged.name} is damaged and passed over: optimizer.pt is missing" in resumed.out
    assert "Going on from checkpoint-" in resumed.out
    assert "Held-out loss per supervised token: not measured before, " in resumed.out


def test_float16_is_refused_where_nothing_computes_in_it(train: Train, tmp_path: Path) -> None:
    result = train(tmp_path / "run", "trainer.max_steps=2", "trainer.fp16=true")
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    assert (result.code, "trainer.fp16: a CPU" in result.err) == (2, True)


def test_ctrl_c_saves_exits_130_and_resumes(data: Path, train: Train, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = ["trainer.max_steps=400", "trainer.save_steps=300"]
    process = start(data, out, *settings)
    wait_for(out / "metrics.jsonl", process)
    while (out / "metrics.jsonl").stat().st_size < 300:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "--resume" in printed
    (checkpoint,) = (out / "checkpoints").iterdir()
    assert 0 < int(checkpoint.name.rpartition("-")[2]) < 300
    changed = train(out, *settings, "--resume", "trainer.learning_rate=5e-3")
    assert changed.code == 2
    assert "trainer.learning_rate: 0.001 then, 0.005 now" in changed.err


def test_changed_data_is_not_resumed_with(data: Path, train: Train, left: Path) -> None:
    before = data.read_bytes()
    data.write_text(before.decode().replace("复诊", "再来"), "utf-8")
    try:
        result = train(left, *KILLED, "--resume")
    finally:
        data.write_bytes(before)
    assert result.code == 2
    assert "the data has changed" in result.err


def test_another_prompt_format_is_not_resumed_with(train: Train, left: Path) -> None:
    manifest = json.loads((left / "manifest.json").read_text("utf-8"))
    manifest["prompt"]["fingerprint"] = "of another version of the plugin"
    (left / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    result = train(left, *KILLED, "--resume")
    assert result.code == 2
    assert "the prompt format has changed" in result.err


def test_a_full_disk_is_an_error_that_keeps_the_last_good_checkpoint(data: Path, left: Path) -> None:
    import resource

    for checkpoint in (left / "checkpoints").iterdir():
        if checkpoint.name != "checkpoint-4":
            shutil.rmtree(checkpoint)
    # The second checkpoint's optimizer state does not fit: as on a full disk, a write is refused in the middle.
    limit = (left / "checkpoints" / "checkpoint-4" / "optimizer.pt").stat().st_size // 2
    full = start(
        data, left, *KILLED, "--resume", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    _, errors = full.communicate()
    assert full.returncode == 1, errors
    assert "Traceback" not in errors
    assert "could not be written" in errors
    (kept,) = (left / "checkpoints").iterdir()
    assert (kept.name, damage(kept)) == ("checkpoint-4", None)


def test_a_run_in_the_way_is_never_lost_by_accident(train: Train, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = train(out, "trainer.max_steps=1", "--resume")
    assert first.code == 0, first.err
    assert "starting at the beginning" in first.out  # nothing was begun
    (out / "notes.txt").write_text("mine", "utf-8")
    before = (out / "adapter" / "adapter_model.safetensors").read_bytes()
    again = train(out, "trainer.max_steps=2")
    assert again.code == 2
    assert "already holds a run" in again.err
    assert (out / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert train(out, "trainer.max_steps=2", "--resume").code == 2  # it has finished
    # Anew, under autocast: what it saved passes its own proof.
    assert train(out, "trainer.max_steps=2", "trainer.bf16=true", "--overwrite").code == 0
    assert (out / "adapter" / "adapter_model.safetensors").read_bytes() != before
    assert (out / "notes.txt").read_text("utf-8") == "mine"
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_text("cat", "utf-8")
    result = train(other, "--overwrite")
    assert result.code == 2
    assert (other / "cat.jpg").exists()
    assert train(tmp_path / "run" / "notes.txt").code == 2


def test_training_that_diverges_is_a_failure_not_a_run(train: Train, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = train(out, "trainer.max_steps=8", "trainer.learning_rate=1e30", "trainer.max_grad_norm=0")
    assert result.code == 1
    assert "not finite" in result.err
    assert json.loads((out / "manifest.json").read_text("utf-8"))["state"] == "training"


def test_a_run_never_deletes_what_it_reads_or_what_is_no_run(train: Train, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", "utf-8")
    result = train(tmp_path, "--overwrite")
    assert result.code == 2
    assert "no run; name another directory" in result.err
    weights = tmp_path / "weights"
    weights.mkdir()
    inside = train(weights / "run", f"backbone.weights={weights}")
    assert inside.code == 2
    assert "lie in each other" in inside.err
    assert (tmp_path / "model" / "config.json").exists()


def test_wrong_modules_are_named(train: Train, tmp_path: Path) -> None:
    result = train(tmp_path / "run", "trainer.targets=[q_porj]")
    assert result.code == 2
    assert "q_porj" in result.err
    assert "q_proj" in result.err


def test_broken_weights_are_named(train: Train, tmp_path: Path) -> None:
    weights = tmp_path / "llama"
    weights.mkdir()
    tiny = Llama()
    tiny.make_tiny_tokenizer(weights)
    tiny.make_tiny_weights(weights)
    tensors = load_file(weights / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights / "model.safetensors", metadata={"format": "pt"})
    result = train(tmp_path / "run", f"backbone.weights={weights}")
    assert result.code == 2
    assert "model.layers.1.mlp.up_proj.weight" in result.err
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.gate_proj.weight"].clone()
    bias, angles = "model.layers.0.self_attn.q_proj.bias", "model.layers.0.self_attn.rotary_emb.inv_freq"
    tensors |= {bias: torch.zeros(128), angles: torch.zeros(16)}
    save_file(tensors, weights / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=f"1 tensors that LlamaForCausalLM has no place for: {bias}"):
        Llama(weights=str(weights)).load_model()
    (weights / "model.safetensors").write_bytes(b"\x10\x00\x00")
    result = train(tmp_path / "run", f"backbone.weights={weights}")
    assert result.code == 2


def test_training_goes_on_when_the_reader_of_its_output_leaves(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    line = shlex.join([sys.executable, "-m", "medframe", *arguments(data, out, "trainer.max_steps=2")])
    subprocess.run(f"{line} | head -1", shell=True, check=True)
    assert json.loads((out / "manifest.json").read_text("utf-8"))["state"] == "finished"


def test_a_directory_that_does_not_say_what_model_it_holds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", "utf-8")
    with pytest.raises(BackboneError, match="names no model_type, llama is expected"):
        Llama(weights=str(tmp_path)).load_config()


def test_half_precision_that_loses_gradients_is_refused(train: Train, tmp_path: Path) -> None:
    result = train(tmp_path / "run", "backbone.dtype=float16")
    assert result.code == 2
    assert "gradients of float16 weights vanish without loss scaling; give backbone.dtype=bfloat16" in result.err


def test_weights_of_another_architecture_are_refused(train: Train, tmp_path: Path) -> None:
    weights = tmp_path / "qwen"
    weights.mkdir()
    Llama().make_tiny_tokenizer(weights)
    (weights / "config.json").write_text('{"model_type": "qwen2"}', "utf-8")
    result = train(tmp_path / "run", f"backbone.weights={weights}")
    assert result.code == 2
    assert "holds a qwen2 model, this backbone is for llama" in result.err
