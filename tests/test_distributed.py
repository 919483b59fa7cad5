"""Training on two processes, plain or under DeepSpeed, is training on one: the losses, the weights, the way back."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import distributed_worker as worker
import pytest
import torch
from distributed_worker import (
    BAICHUAN2,
    BF16,
    BLOOM,
    FULL,
    FULL_SOME,
    LORA,
    LORA_WHOLE,
    LOW,
    TIED,
    Curve,
    Training,
    curve,
)
from safetensors.torch import load_file, save_file
from test_zero_config import CHATMED, DISC

from medframe import ProofError
from medframe_backbones.llama import Llama
from medframe_trainers.divergence import Divergence

DEEPSPEED = "trainer.deepspeed"
OWN_RATES = ["trainer.lr_scheduler_type=null", "trainer.warmup_steps=3"]
PLAIN = {
    "lora": LORA,
    "full": FULL,
    "some": FULL_SOME,
    "tied": [*LORA_WHOLE, *TIED],
    "tied full": [*FULL, *TIED, "trainer.max_shard_size=1MB"],
    "bf16": [*FULL, *BF16, LOW],
    "bf16 lora": [*LORA, *BF16, LOW],
    "baichuan": [*FULL, *BAICHUAN2],
    "bloom": [*LORA, *BLOOM],
}
"""What one plain process trains. Each ends within a step, one process then having only idle micro-batches."""

TOGETHER = {
    "lora": ["null", "zero1", "zero2-offload"],
    "full": ["null", "zero0", "zero2", "zero3"],
    "some": ["zero3-offload"],
    "tied": ["zero3"],
    "tied full": ["zero3"],
    "bf16": ["zero0", "zero1", "zero3"],
    "bf16 lora": ["zero3"],
    "baichuan": ["zero3"],
    "bloom": ["zero3"],
}
"""What two processes train, under these configurations."""
PAIRS = [(kind, mode) for kind, modes in TOGETHER.items() for mode in modes]

# What is gone on with: kind, configuration, processes before and after.
RESUMED = [
    ("lora", "null", 2, 1),
    ("full", "null", 2, 2),
    ("lora", "zero1", 2, 1),
    ("full", "zero3", 2, 2),
    ("some", "zero3-offload", 2, 1),
    ("lora", "zero2-offload", 2, 2),
    ("full", "zero0", 2, 1),
    ("lora", "null", 1, 2),
    ("full", "zero3", 1, 2),
]


def trainings(folder: Path) -> dict[int, list[Training]]:
    """What one process and what two processes train in turn."""
    (folder / "chatmed.json").write_text(json.dumps(CHATMED), "utf-8")
    (folder / "disc.json").write_text(json.dumps(DISC), "utf-8")
    shared = ["trainer.gradient_accumulation_steps=null", "trainer.max_steps=5"]
    one = [Training(name=f"{kind} null on 1", overrides=overrides) for kind, overrides in PLAIN.items()]
    alone = [("full", "zero3"), *((kind, mode) for kind, mode in PAIRS if "bf16" in kind)]
    one += [
        Training(name=f"{kind} {mode} on 1", overrides=[*PLAIN[kind], f"{DEEPSPEED}={mode}"]) for kind, mode in alone
    ]
    one.append(Training(name="unshared on 1", overrides=[*FULL, *shared]))
    two = [
        Training(name=f"{kind} {mode} on 2", overrides=[*PLAIN[kind], f"{DEEPSPEED}={mode}"]) for kind, mode in PAIRS
    ]
    two += [
        Training(name=f"{name} on 2", overrides=[*FULL, *OWN_RATES, f"{DEEPSPEED}={name}.json"])
        for name in ("chatmed", "disc")
    ]
    two.append(Training(name="shared on 2", overrides=[*FULL, *shared]))
    for kind, mode, before, after in RESUMED:
        (one if after == 1 else two).append(
            Training(
                name=f"{kind} {mode} {before}->{after}",
                overrides=[*PLAIN[kind], f"{DEEPSPEED}={mode}"],
                resume=f"{kind} {mode} on {before}/checkpoints/checkpoint-3",
            )
        )
    wild = [*FULL, "trainer.learning_rate=1e30", "trainer.max_grad_norm=0", "trainer.warmup_steps=0"]
    two.append(Training(name="wild on 2", overrides=wild))
    one.append(Training(name="shared 2->1", overrides=[*FULL, *shared], resume="shared on 2/checkpoints/checkpoint-3"))
    two.append(
        Training(name="unshared 1->2", overrides=[*FULL, *shared], resume="unshared on 1/checkpoints/checkpoint-3")
    )
    return {1: one, 2: two}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All trainings, each in a folder of its name: those of one process and of two at the same time."""
    folder = tmp_path_factory.mktemp("trainings")
    worker.write_data(folder)
    worker.write_models(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        processes = [
            process for world, what in trainings(folder).items() for process in worker.start(folder, world, what)
        ]
        try:
            codes = [process.wait(timeout=400) for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert codes == [0, 0, 0], "".join(log.read_text("utf-8")[-3000:] for log in folder.glob("log-*.txt"))
        yield folder


def found(folder: Path, name: str) -> Curve:
    """What the training logged, in all its processes."""
    for rank in range(2 if name[-1] == "2" else 1):
        assert (folder / name / f"ended-{rank}.txt").read_text("utf-8") == ""
    first = curve(folder / name)
    if name[-1] == "2":
        assert curve(folder / name, 1) == first
    return first


def assert_same(right: Curve, other: Curve, tolerance: float, norms: float = 2e-4) -> None:
    for curve_name in ("loss", "held_out_loss", "learning_rate"):
        expected, values = getattr(right, curve_name), getattr(other, curve_name)
        assert values == pytest.approx({step: expected[step] for step in values}, rel=0, abs=tolerance), curve_name
    assert other.grad_norm == pytest.approx({step: right.grad_norm[step] for step in other.grad_norm}, rel=norms)


def by_hand(folder: Path, overrides: list[str], rates: Callable[[Any], Any] | None = None) -> Curve:
    """Training every parameter in a plain loop: what is right, by nothing that the trainers use.

    `rates` makes the schedule of the optimizer; without it, 2 steps of warm-up and a linear descent.
    """
    from medframe.compose import compose
    from medframe.prepare import prepare
    from medframe.recipe import build

    recipe = build(compose(folder / "recipe.yaml", overrides))
    prepared, trainer = prepare(recipe), recipe.trainer
    model: Any = recipe.backbone.load_model().train()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": trainer.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=trainer.learning_rate)
    batches = [*prepared.train.epoch(0), *prepared.train.epoch(1)][:17]
    steps = math.ceil(len(batches) / 4)

    def linear(step: int) -> float:
        return step / 2 if step < 2 else (steps - step) / (steps - 2)

    schedule = rates(optimizer) if rates else torch.optim.lr_scheduler.LambdaLR(optimizer, linear)
    log = Curve({}, {}, {}, {})
    for step in range(steps):
        micro = batches[step * 4 : step * 4 + 4]
        labels, total = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in micro), 0.0
        for batch in micro:
            logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits[0, :-1], batch["labels"][0, 1:], reduction="sum") / labels
            loss.backward()
            total += loss.item()
        log.grad_norm[step + 1] = float(torch.nn.utils.clip_grad_norm_(model.parameters(), trainer.max_grad_norm))
        log.loss[step + 1], log.learning_rate[step + 1] = total, optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return log


def test_one_plain_process_is_a_loop_written_by_hand(folder: Path) -> None:
    one, right = found(folder, "full null on 1"), by_hand(folder, FULL)
    assert len(one.loss) == 5
    assert one.loss[1] - one.loss[5] > 0.1
    assert_same(right, Curve(one.loss, {}, one.learning_rate, one.grad_norm), 5e-6)


def test_nothing_is_compiled_and_nothing_is_printed(folder: Path) -> None:
    assert not (folder / "extensions").exists()
    said = "".join(log.read_text("utf-8") for log in folder.glob("log-*.txt"))
    assert [line for line in said.splitlines() if not re.fullmatch(r".+: [\d.]+ s", line)] == []


@pytest.mark.parametrize(("kind", "mode"), [pair for pair in PAIRS if "bf16" not in pair[0]])
def test_two_processes_follow_the_curves_of_one(folder: Path, kind: str, mode: str) -> None:
    one = found(folder, f"{kind} null on 1")
    steps = 6 if "tied" in kind else 5  # its chat template is longer
    assert set(one.loss) == set(one.grad_norm) == set(range(1, steps + 1))
    assert set(one.held_out_loss) == {0, 2, 4, steps}
    assert_same(one, found(folder, f"{kind} {mode} on 2"), 5e-6)


@pytest.mark.parametrize(("kind", "mode"), [pair for pair in PAIRS if "bf16" in pair[0]])
def test_two_processes_follow_the_curves_of_one_in_bfloat16(folder: Path, kind: str, mode: str) -> None:
    plain = found(folder, f"{kind} null on 1")
    one, two = (found(folder, f"{kind} {mode} on {world}") for world in (1, 2))
    assert plain.held_out_loss[0] - plain.held_out_loss[5] > 0.001
    assert_same(one, two, 1e-3, norms=1e-2)
    # DeepSpeed has bfloat16 weights where autocast rounds them for products alone, and not those of norms.
    assert_same(plain, two, 5e-3, norms=1e-2)


def test_one_process_under_deepspeed_follows_the_curves_of_a_plain_one(folder: Path) -> None:
    assert_same(found(folder, "full null on 1"), found(folder, "full zero3 on 1"), 5e-6)


@pytest.mark.parametrize("name", ["chatmed", "disc"])
def test_the_published_configurations_train_as_a_loop_with_deepspeeds_schedule(folder: Path, name: str) -> None:
    from deepspeed.runtime import lr_schedules

    def rates(optimizer: Any) -> Any:
        named = {"chatmed": CHATMED, "disc": DISC}[name]["scheduler"]["type"]
        total = {"total_num_steps": 5} if name == "chatmed" else {}
        return getattr(lr_schedules, named)(optimizer, warmup_max_lr=3e-4, warmup_num_steps=3, **total)

    other, right = found(folder, f"{name} on 2"), by_hand(folder, FULL, rates)
    assert_same(right, Curve(other.loss, {}, other.learning_rate, other.grad_norm), 5e-6)


@pytest.mark.parametrize(("kind", "mode", "before", "after"), RESUMED)
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(
    folder: Path, kind: str, mode: str, before: int, after: int
) -> None:
    whole, rest = found(folder, f"{kind} {mode} on {before}"), found(folder, f"{kind} {mode} {before}->{after}")
    assert list(rest.loss) == [4, 5]
    assert list(rest.held_out_loss) == [4, 5]
    assert_same(whole, rest, 0 if before == after else 5e-6, norms=0 if before == after else 2e-4)
    if before == after:
        first, second = (weights(folder / f"{kind} {mode} {end}") for end in (f"on {before}", f"{before}->{after}"))
        assert all(tensor.equal(second[name]) for name, tensor in first.items())


def test_a_run_whose_processes_decided_the_micro_batches_of_a_step_keeps_them(folder: Path) -> None:
    whole, rest = found(folder, "shared on 2"), found(folder, "shared 2->1")
    assert list(rest.loss) == [4, 5]
    assert_same(whole, rest, 5e-6)
    for rank in range(2):
        said = (folder / "unshared 1->2" / f"ended-{rank}.txt").read_text("utf-8")
        assert said.startswith(
            "RecipeError: trainer.gradient_accumulation_steps: the 1 micro-batches of a step cannot be shared evenly "
            "by 2 processes; make it a multiple of 2\n"
        )


def weights(out: Path) -> dict[str, torch.Tensor]:
    """What the training saved at its end."""
    files = [*(out / "adapter").glob("*.safetensors"), *(out / "model").glob("*.safetensors")]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def reloaded(folder: Path, kind: str, out: Path) -> Any:
    """What was saved, loaded as anyone would."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from medframe.compose import compose
    from medframe.recipe import build

    if (out / "model").is_dir():
        import medframe_backbones.baichuan.model  # noqa: F401  # transformers has no Baichuan

        return AutoModelForCausalLM.from_pretrained(out / "model").eval()
    base = build(compose(folder / "recipe.yaml", PLAIN[kind])).backbone
    plain = AutoModelForCausalLM.from_pretrained(base.directory())
    return PeftModel.from_pretrained(plain, out / "adapter").eval()


@pytest.mark.parametrize(("kind", "mode"), [pair for pair in PAIRS if pair[1].startswith("zero3")])
def test_what_is_saved_under_zero_3_is_whole_and_computes_what_was_trained(folder: Path, kind: str, mode: str) -> None:
    out = folder / f"{kind} {mode} on 2"
    mine, plain = weights(out), weights(folder / f"{kind} null on 1")
    assert {name: tensor.shape for name, tensor in mine.items()} == {n: t.shape for n, t in plain.items()}
    if kind == "tied full":
        assert len(list((out / "model").glob("*.safetensors"))) > 1
    model = reloaded(folder, kind, out)
    live, one = load_file(out / "proof.safetensors"), load_file(folder / f"{kind} null on 1" / "proof.safetensors")
    for number in range(3):
        ids, expected = live[f"ids.{number}"], live[f"logits.{number}"]
        with torch.no_grad():
            logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
        low = "bf16" in kind
        assert float((logits - expected).abs().max()) < (2e-2 if low else 1e-4)
        assert ids.equal(one[f"ids.{number}"])
        assert float((expected - one[f"logits.{number}"]).abs().max()) < (5e-2 if low else 1e-3)


def test_a_training_that_diverges_is_ended_on_every_process_with_its_rows(folder: Path) -> None:
    for rank in range(2):
        said = (folder / "wild on 2" / f"ended-{rank}.txt").read_text("utf-8").splitlines()[0]
        assert re.match(r"ProofError: the (loss|gradient) is not finite at step \d, rows .*rows\.jsonl:\d+", said), said
        assert "the last checkpoint is kept. A lower learning_rate" in said


def watched(norms: list[float], growth: float | None = 10.0, scaled: bool = False) -> int | None:
    """The step at which a training of these gradient norms is ended."""
    watch = Divergence(growth, scaled)
    for step, norm in enumerate(norms, 1):
        said = ""
        try:
            watch.step(step, 1.0, norm, lambda broken: "rows a.jsonl:1")
        except ProofError as error:
            said = str(error)
        if said:
            assert f"at step {step}" in said
            assert "rows a.jsonl:1" in said
            return step
    return None


USUAL = [1.0, 2.0] * 10


@pytest.mark.parametrize(
    ("norms", "ended"),
    [
        ([*USUAL, 20.0, 20.0, 20.0], 23),
        ([*USUAL, 20.0, 20.0, 2.0, 20.0, 20.0, 2.0], None),  # strange micro-batches, clipped and forgotten
        ([*USUAL, 14.0, 14.0, 14.0, 14.0], None),
        ([*USUAL, *[20.0] * 2, *USUAL, *[20.0] * 3], 45),
        ([1.0, 20.0, 20.0, 20.0, 20.0], None),  # nothing is usual yet
        ([100.0] * 120 + [1.0] * 100 + [15.0] * 3, 223),  # what was long ago is no measure
        ([*USUAL, math.nan], 21),
        ([math.inf], 1),
    ],
)
def test_a_gradient_that_explodes_ends_the_training(norms: list[float], ended: int | None) -> None:
    assert watched(norms) == ended


def test_what_may_happen_does_not_end_a_training() -> None:
    assert watched([*USUAL, 1e9, 1e9, 1e9], growth=None) is None
    assert watched([1.0, math.inf, 1.0], scaled=True) is None  # float16's scale is being found


def command(*arguments: object, by: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, *by, "-m", "medframe", "run", *map(str, arguments)]
    result = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in result.stdout + result.stderr, result.stderr
    return result


def metrics(out: Path) -> Curve:
    (out / "log-0.jsonl").write_bytes((out / "metrics.jsonl").read_bytes())
    return curve(out)


def test_torchrun_under_zero_3_is_the_run_of_one_process(folder: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python", sys.executable)
    result = command("recipe.yaml", *LORA, f"{DEEPSPEED}=zero3", "out=by-torchrun", by=launcher)
    assert result.returncode == 0, result.stderr
    assert "2 processes, as launched.\n" in result.stdout
    assert result.stdout.count("Training on ") == 1
    assert_same(found(folder, "lora null on 1"), metrics(folder / "by-torchrun"), 5e-6)
    assert weights(folder / "by-torchrun").keys() == weights(folder / "lora null on 1").keys()
    manifest = json.loads((folder / "by-torchrun" / "manifest.json").read_text("utf-8"))
    assert (manifest["state"], manifest["processes"]) == ("finished", 2)  # proven in a process of its own


def test_a_row_that_breaks_the_loss_is_named_and_the_last_checkpoint_kept(folder: Path) -> None:
    """On one of the processes alone, and all end."""
    worker.write_model(folder / "broken", "llama")
    tensors = load_file(folder / "broken" / "model.safetensors")
    tokenizer = Llama(weights=str(folder / "broken")).load_tokenizer()
    (token,) = tokenizer("癍", add_special_tokens=False)["input_ids"][-1:]
    tensors["model.embed_tokens.weight"][token] = math.inf
    save_file(tensors, folder / "broken" / "model.safetensors", metadata={"format": "pt"})
    rows = (folder / "rows.jsonl").read_text("utf-8").splitlines()
    rows[18] = rows[18].replace("头痛", "癍")
    (folder / "broken.jsonl").write_text("\n".join(rows), "utf-8")
    result = command(
        "recipe.yaml",
        *LORA,
        "processes=2",
        "out=broken-run",
        "backbone.weights=broken",
        "data.consult.path=broken.jsonl",
        "held_out=null",
        "trainer.save_steps=1",
        "trainer.gradient_accumulation_steps=2",
    )
    assert result.returncode == 1
    said = re.search(
        r"Error: the loss is not finite at step (\d+), rows (.*?): the training has diverged", result.stderr
    )
    assert said, result.stderr
    lines = {int(line) for line in re.findall(r"(?::|, )(\d+)", said[2])}
    assert 19 in lines
    assert len(lines) <= 4  # the other process's rows are not named
    assert result.stderr.count("Error") == 1
    kept = {int(name.name.rpartition("-")[2]) for name in (folder / "broken-run" / "checkpoints").iterdir()}
    assert kept == set(range(1, int(said[1])))
