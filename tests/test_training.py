"""Training through the command line: exact gradients, exact resume, interrupts, proofs."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from medframe import BackboneError
from medframe_backbones.llama import Llama

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


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "medframe", *map(str, arguments)]


# More threads than cores make a tiny model many times slower, and other tests may run beside these.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def start(data: Path, out: Path, *overrides: str, **options: object) -> subprocess.Popen[str]:
    line = command("run", "chatmed", f"data.consult.path={data}", f"out={out}", *SMALL, *overrides)
    return subprocess.Popen(
        line, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **ONE_THREAD}, **options
    )  # type: ignore[call-overload, no-any-return]


def train(data: Path, out: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    process = start(data, out, *overrides)
    printed, errors = process.communicate()
    assert "Traceback" not in errors, errors
    return subprocess.CompletedProcess([], process.returncode, printed, errors)


def metrics(out: Path, name: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


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
    # All 18 training examples in one optimizer step: how they are batched does not matter.
    for name, kind, accumulate in (("packed", "tokens: 10000", 1), ("padded", "rows: 6", 3)):
        batching = f"batching={{kind: {name}, {kind}}}"
        steps = ["trainer.max_steps=1", "trainer.dropout=0", f"trainer.gradient_accumulation_steps={accumulate}"]
        result = train(data, tmp_path / name, batching, *steps)
        assert result.returncode == 0, result.stderr
    for value in ("loss", "grad_norm", "held_out_loss"):
        one, other = (metrics(tmp_path / name, value)[1] for name in ("packed", "padded"))
        assert one == pytest.approx(other, rel=1e-5)


def test_a_run_killed_at_any_time_resumes_to_the_same_losses_and_weights(data: Path, tmp_path: Path) -> None:
    # Checkpoints at 4 and 8, logged at 3, 6, 9, 12: a resumed run goes on in the middle of a logged mean.
    settings = ["trainer.max_steps=12", "trainer.dropout=0.1", "batching={kind: packed, tokens: 400}"]
    settings.append("trainer.logging_steps=3")
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert train(data, straight, *settings).returncode == 0

    process = start(data, killed, *settings, start_new_session=True)
    wait_for(killed / "checkpoints" / "checkpoint-4", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    left = json.loads((killed / "manifest.json").read_text("utf-8"))
    assert left["state"] == "training"

    again = train(data, killed, *settings)
    assert again.returncode == 2
    assert "--resume" in again.stderr
    resumed = train(data, killed, *settings, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "Going on from checkpoint-" in resumed.stdout
    assert metrics(killed, "loss") == metrics(straight, "loss")
    assert metrics(killed, "held_out_loss") == metrics(straight, "held_out_loss")
    one, other = (load_file(out / "adapter" / "adapter_model.safetensors") for out in (straight, killed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_half_written_or_damaged_checkpoint_is_not_resumed_from(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = ["trainer.max_steps=20", "trainer.keep=9"]
    process = start(data, out, *settings, start_new_session=True)
    wait_for(out / "checkpoints" / "checkpoint-12", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    *_, flipped, damaged = sorted(
        (out / "checkpoints").glob("checkpoint-*[0-9]"), key=lambda c: int(c.name.rpartition("-")[2])
    )
    (damaged / "optimizer.pt").unlink()
    optimizer = bytearray((flipped / "optimizer.pt").read_bytes())
    optimizer[len(optimizer) // 2] ^= 1  # a fault of the disk
    (flipped / "optimizer.pt").write_bytes(optimizer)
    (out / "metrics.jsonl").unlink()
    half = out / "checkpoints" / "checkpoint-99.saving"
    half.mkdir()
    (half / "adapter_model.safetensors").write_bytes(b"half")
    resumed = train(data, out, *settings, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "checkpoint-99" not in resumed.stdout
    assert f"{flipped.name} is damaged and passed over: optimizer.pt is not as it was written" in resumed.stdout
    assert f"{damaged.name} is damaged and passed over: optimizer.pt is missing" in resumed.stdout
    assert "Going on from checkpoint-" in resumed.stdout
    assert "Held-out loss per supervised token: not measured before, " in resumed.stdout


def test_float16_is_refused_where_nothing_computes_in_it(data: Path, tmp_path: Path) -> None:
    result = train(data, tmp_path / "run", "trainer.max_steps=2", "trainer.fp16=true")
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    assert (result.returncode, "trainer.fp16: a CPU" in result.stderr) == (2, True)
    assert "Traceback" not in result.stderr


def test_ctrl_c_saves_exits_130_and_resumes(data: Path, tmp_path: Path) -> None:
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
    changed = train(data, out, *settings, "--resume", "trainer.learning_rate=5e-3")
    assert changed.returncode == 2
    assert "trainer.learning_rate: 0.001 then, 0.005 now" in changed.stderr


def test_resume_where_nothing_was_begun_starts_at_the_beginning(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = train(data, out, "trainer.max_steps=2", "--resume")
    assert result.returncode == 0, result.stderr
    assert "starting at the beginning" in result.stdout
    assert (out / "adapter" / "adapter_model.safetensors").exists()


def test_changed_data_is_not_resumed_with(data: Path, tmp_path: Path) -> None:
    own, out = tmp_path / "rows.jsonl", tmp_path / "run"
    own.write_bytes(data.read_bytes())
    process = start(own, out, "trainer.max_steps=50", start_new_session=True)
    wait_for(out / "checkpoints" / "checkpoint-4", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    own.write_text(own.read_text("utf-8").replace("复诊", "再来"), "utf-8")
    result = train(own, out, "trainer.max_steps=50", "--resume")
    assert result.returncode == 2
    assert "the data has changed" in result.stderr


def test_a_full_disk_is_an_error_that_keeps_the_last_good_checkpoint(data: Path, tmp_path: Path) -> None:
    import resource

    out = tmp_path / "run"
    # The second checkpoint's optimizer state does not fit: as on a full disk, a write is refused in the middle.
    first = start(data, out, "trainer.max_steps=8", start_new_session=True)
    wait_for(out / "checkpoints" / "checkpoint-4", first)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    limit = (out / "checkpoints" / "checkpoint-4" / "optimizer.pt").stat().st_size // 2
    full = start(
        data,
        out,
        "trainer.max_steps=8",
        "--resume",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    _, errors = full.communicate()
    assert full.returncode == 1, errors
    assert "Traceback" not in errors
    assert "could not be written" in errors
    assert [c.name for c in (out / "checkpoints").iterdir()] == ["checkpoint-4"]
    assert train(data, out, "trainer.max_steps=8", "--resume").returncode == 0


def test_a_run_in_the_way_is_never_lost_by_accident(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train(data, out, "trainer.max_steps=1").returncode == 0
    (out / "notes.txt").write_text("mine", "utf-8")
    before = (out / "adapter" / "adapter_model.safetensors").read_bytes()
    again = train(data, out, "trainer.max_steps=2")
    assert again.returncode == 2
    assert "already holds a run" in again.stderr
    assert (out / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert train(data, out, "trainer.max_steps=2", "--resume").returncode == 2  # it has finished
    assert train(data, out, "trainer.max_steps=2", "--overwrite").returncode == 0
    assert (out / "notes.txt").read_text("utf-8") == "mine"
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_text("cat", "utf-8")
    result = train(data, other, "--overwrite")
    assert result.returncode == 2
    assert (other / "cat.jpg").exists()
    assert train(data, tmp_path / "run" / "notes.txt").returncode == 2


def test_training_that_diverges_is_a_failure_not_a_run(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = train(data, out, "trainer.max_steps=8", "trainer.learning_rate=1e30", "trainer.max_grad_norm=0")
    assert result.returncode == 1
    assert "not finite" in result.stderr
    assert json.loads((out / "manifest.json").read_text("utf-8"))["state"] == "training"


def test_a_run_never_deletes_what_it_reads_or_what_is_no_run(data: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", "utf-8")
    result = train(data, tmp_path, "--overwrite")
    assert result.returncode == 2
    assert "no run; name another directory" in result.stderr
    weights = tmp_path / "weights"
    weights.mkdir()
    inside = train(data, weights / "run", f"backbone.weights={weights}")
    assert inside.returncode == 2
    assert "lie in each other" in inside.stderr
    assert (tmp_path / "model" / "config.json").exists()


def test_another_prompt_format_is_not_resumed_with(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(data, out, "trainer.max_steps=50", start_new_session=True)
    wait_for(out / "checkpoints" / "checkpoint-4", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    manifest["prompt"]["fingerprint"] = "of another version of the plugin"
    (out / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    result = train(data, out, "trainer.max_steps=50", "--resume")
    assert result.returncode == 2
    assert "the prompt format has changed" in result.stderr


def test_wrong_modules_are_named(data: Path, tmp_path: Path) -> None:
    result = train(data, tmp_path / "run", "trainer.targets=[q_porj]")
    assert result.returncode == 2
    assert "q_porj" in result.stderr
    assert "q_proj" in result.stderr


def test_broken_weights_are_named(data: Path, tmp_path: Path) -> None:
    weights = tmp_path / "llama"
    weights.mkdir()
    tiny = Llama()
    tiny.make_tiny_tokenizer(weights)
    tiny.make_tiny_weights(weights)
    tensors = load_file(weights / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights / "model.safetensors", metadata={"format": "pt"})
    result = train(data, tmp_path / "run", f"backbone.weights={weights}")
    assert result.returncode == 2
    assert "model.layers.1.mlp.up_proj.weight" in result.stderr
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.gate_proj.weight"].clone()
    bias, angles = "model.layers.0.self_attn.q_proj.bias", "model.layers.0.self_attn.rotary_emb.inv_freq"
    tensors |= {bias: torch.zeros(128), angles: torch.zeros(16)}
    save_file(tensors, weights / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=f"1 tensors that LlamaForCausalLM has no place for: {bias}"):
        Llama(weights=str(weights)).load_model()
    (weights / "model.safetensors").write_bytes(b"\x10\x00\x00")
    result = train(data, tmp_path / "run", f"backbone.weights={weights}")
    assert result.returncode == 2


def test_training_under_autocast_passes_its_own_proof(data: Path, tmp_path: Path) -> None:
    result = train(data, tmp_path / "run", "trainer.max_steps=2", "trainer.bf16=true")
    assert result.returncode == 0, result.stderr


def test_training_goes_on_when_the_reader_of_its_output_leaves(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    line = " ".join(map(shlex.quote, command("run", "chatmed", f"data.consult.path={data}", f"out={out}", *SMALL)))
    subprocess.run(f"{line} trainer.max_steps=2 | head -1", shell=True, check=True, env={**os.environ, **ONE_THREAD})
    assert json.loads((out / "manifest.json").read_text("utf-8"))["state"] == "finished"


def test_a_directory_that_does_not_say_what_model_it_holds_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", "utf-8")
    with pytest.raises(BackboneError, match="names no model_type, llama is expected"):
        Llama(weights=str(tmp_path)).load_config()


def test_half_precision_that_loses_gradients_is_refused(data: Path, tmp_path: Path) -> None:
    result = train(data, tmp_path / "run", "backbone.dtype=float16")
    assert result.returncode == 2
    assert "gradients of float16 weights vanish without loss scaling; give backbone.dtype=bfloat16" in result.stderr


def test_weights_of_another_architecture_are_refused(data: Path, tmp_path: Path) -> None:
    weights = tmp_path / "qwen"
    weights.mkdir()
    Llama().make_tiny_tokenizer(weights)
    (weights / "config.json").write_text('{"model_type": "qwen2"}', "utf-8")
    result = train(data, tmp_path / "run", f"backbone.weights={weights}")
    assert result.returncode == 2
    assert "holds a qwen2 model, this backbone is for llama" in result.stderr
