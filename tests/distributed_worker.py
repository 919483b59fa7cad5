"""Trainings of small models, many of them in the same one or two processes; run by test_distributed.py.

By hand, `python tests/distributed_worker.py --all [WORD ...]` trains under every configuration, or those whose name
holds a word, on one and on two processes, goes on from their checkpoints, and prints how far each is from one plain
process.
"""

from __future__ import annotations

import gc
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent

RECIPE = """\
out: out
seed: 5
compare: 0
backbone: {use: llama, weights: llama}
data:
  consult: {use: chatmed-consult, path: rows.jsonl}
held_out: {rows: 5}
prompt: {use: chatmed}
batching: {kind: packed, tokens: 150}
"""


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training, told to a worker."""

    name: str
    """That of its folder too."""
    overrides: Sequence[str]
    resume: str | None = None
    """The checkpoint to go on from, relative to the folder; it is waited for."""


@dataclass(frozen=True)
class Curve:
    """What a training logged: step -> value."""

    loss: dict[int, float]
    held_out_loss: dict[int, float]
    learning_rate: dict[int, float]
    grad_norm: dict[int, float]


def write_data(folder: Path) -> None:
    """recipe.yaml and thirty consultations whose answers have from 3 to about 100 characters."""
    rows = [
        {
            "query": f"第{n}位患者：" + "头痛三天，" * (n % 5 + 1),
            "response": f"第{n}天复诊。" if n % 3 else "建议多休息，" * (n % 11 + 5) + f"第{n}天复诊。",
        }
        for n in range(30)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, "utf-8")


def write_model(folder: Path, backbone: str, fields: Mapping[str, str] | None = None, **changed: object) -> None:
    """The tiny model of the backbone, two layers deep, and with these keys of its configuration changed."""
    from safetensors.torch import load_file, save_file

    from medframe.plugins import catalog

    made = catalog().find("backbone", backbone).load()(**fields or {})
    folder.mkdir()
    made.make_tiny_tokenizer(folder)
    made.make_tiny_weights(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["n_layer" if "n_layer" in config else "num_hidden_layers"] = 2
    (folder / "config.json").write_text(json.dumps(config | changed), "utf-8")
    tensors = load_file(folder / "model.safetensors")
    for name in list(tensors):
        number = re.search(r"\.(\d+)\.", name)
        if (number and int(number[1]) >= 2) or (changed.get("tie_word_embeddings") and "lm_head" in name):
            del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_models(folder: Path) -> None:
    """Every model that is trained here, two layers deep.

    `tied` is a Qwen whose head is its embedding; `low` is `llama`, stored in bfloat16 as published models are.
    """
    from safetensors.torch import load_file, save_file

    for backbone in ("llama", "bloom", "baichuan"):
        write_model(folder / backbone, backbone)
    write_model(folder / "baichuan2", "baichuan", {"positions": "rope", "head": "norm"})
    write_model(folder / "tied", "auto", tie_word_embeddings=True)
    write_model(folder / "low", "llama", dtype="bfloat16")
    weights = folder / "low" / "model.safetensors"
    low = {name: tensor.bfloat16() for name, tensor in load_file(weights).items()}
    save_file(low, weights, metadata={"format": "pt"})


def start(folder: Path, world: int, trainings: Sequence[Training]) -> list[subprocess.Popen[bytes]]:
    """Start `world` processes that take the trainings in turn. What each leaves is read by `curve` and `failure`."""
    orders = folder / f"orders-{world}.json"
    orders.write_text(json.dumps([asdict(training) for training in trainings]), "utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "GLOO_SOCKET_IFNAME": "lo"}
    environment |= {"TORCH_CPP_LOG_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
    # Where no compiler is to be found, and with a place of its own for what might be compiled.
    environment |= {"PATH": str(folder), "TORCH_EXTENSIONS_DIR": str(folder / "extensions")}
    started = []
    for rank in range(world):
        launch = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        launch |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        log = (folder / f"log-{world}-{rank}.txt").open("wb")
        line = [sys.executable, __file__, str(folder), str(orders)]
        if world > 1:
            environment |= {name: str(value) for name, value in launch.items()}
        started.append(subprocess.Popen(line, env=environment, stdout=log, stderr=log))
    return started


def curve(out: Path, rank: int = 0) -> Curve:
    """What the process of this rank logged."""
    found = Curve({}, {}, {}, {})
    for line in (out / f"log-{rank}.jsonl").read_text("utf-8").splitlines():
        said = json.loads(line)
        for name in set(said) - {"step", "supervised_tokens_per_second"}:
            getattr(found, name)[said["step"]] = said[name]
    return found


def work(folder: Path, orders: Path) -> None:
    """Be one of the processes."""
    import torch

    from medframe import quiet, world

    torch.set_num_threads(1)
    quiet.libraries()
    os.chdir(folder)
    here = world.join(5, folder)
    for order in json.loads(orders.read_text("utf-8")):
        training, said = Training(**order), ""
        started = time.monotonic()
        try:
            train(folder, training, here.rank)
        except Exception as error:
            said = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        (folder / training.name / f"ended-{here.rank}.txt").write_text(said, "utf-8")
        print(f"{training.name}: {time.monotonic() - started:.1f} s", flush=True)
        # At stage 3 DeepSpeed collects garbage whenever a loss is measured: it need not look at the libraries again.
        gc.collect()
        gc.freeze()
    here.leave()
    here.part()
    os._exit(0)


def train(folder: Path, training: Training, rank: int) -> None:
    from medframe.compose import compose
    from medframe.prepare import job, prepare
    from medframe.recipe import build

    out = folder / training.name
    out.mkdir(parents=True, exist_ok=True)
    recipe = build(compose(folder / "recipe.yaml", [f"out={out}", *training.overrides]))
    log = (out / f"log-{rank}.jsonl").open("w", encoding="utf-8")

    def write(step: int, of: int, values: Mapping[str, float]) -> None:
        log.write(json.dumps({"step": step, **values}) + "\n")
        log.flush()

    resume = folder / training.resume if training.resume else None
    deadline = time.monotonic() + 300
    while resume and not resume.exists():
        ended = resume.parents[1] / "ended-0.txt"
        assert not ended.exists() and time.monotonic() < deadline, f"{resume} never came"
        time.sleep(0.1)
    recipe.trainer.fit(job(recipe, prepare(recipe), write, resume))
    log.close()


MODES = ("null", "zero0", "zero1", "zero2", "zero3", "zero2-offload", "zero3-offload")
SETTINGS = [
    "trainer.learning_rate=1e-3",
    "trainer.warmup_steps=2",
    "trainer.weight_decay=0.01",
    "trainer.max_grad_norm=0.2",
    "trainer.gradient_accumulation_steps=4",
    "trainer.num_train_epochs=1.3",
    "trainer.logging_steps=1",
    "trainer.save_steps=3",
    "trainer.eval_steps=2",
    "trainer.keep=9",
]
LORA = ["trainer={use: lora, dropout: 0.1}", *SETTINGS]
LORA_WHOLE = ["trainer={use: lora, dropout: 0.1, modules_to_save: [embed_tokens, lm_head]}", *SETTINGS]
FULL = ["trainer.use=full", *SETTINGS, "trainer.learning_rate=3e-4"]
FULL_SOME = ["trainer={use: full, parameters: [model.layers.1.*, '*norm*', lm_head.*]}", *SETTINGS]
BF16 = ["trainer.bf16=true", "trainer.learning_rate=2e-4"]
LOW = "backbone.weights=low"
TIED = ["backbone={use: auto, weights: tied}", "prompt.use=chat-template"]
BLOOM = ["backbone={use: bloom, weights: bloom}"]
BAICHUAN = ["backbone={use: baichuan, weights: baichuan}"]
BAICHUAN2 = ["backbone={use: baichuan, weights: baichuan2}"]
SOME = ("null", "zero2", "zero3")

KINDS = {"lora": LORA, "lora whole": LORA_WHOLE, "full": FULL, "full some": FULL_SOME}
GROUPS = {
    **{f"fp32 {name}": (kind, MODES) for name, kind in KINDS.items()},
    **{
        # An adapter is trained on the base as it is stored, which stage 0 would not do.
        f"bf16 {name}": ([*kind, *BF16, LOW], [mode for mode in MODES if mode != "zero0" or "full" in name])
        for name, kind in KINDS.items()
    },
    "padded lora": ([*LORA, "batching={kind: padded, rows: 2}"], SOME),
    "blocks full": ([*FULL, "batching={kind: blocks, length: 64}"], SOME),
    "checkpointing lora": ([*LORA, "trainer.gradient_checkpointing=true"], SOME),
    "checkpointing full": ([*FULL, "trainer.gradient_checkpointing=true"], SOME),
    "neftune full": ([*FULL, "trainer.neftune_noise_alpha=5"], SOME),
    "seldom logged lora": ([*LORA, "trainer.logging_steps=3"], SOME),
    "unclipped full": ([*FULL, "trainer.max_grad_norm=0"], MODES),
    "loader lora": ([*LORA, "trainer.training_arguments={dataloader_num_workers: 1}"], SOME),
    "sgd full": ([*FULL, "trainer.optim=sgd"], SOME),
    "adafactor full": ([*FULL, "trainer.optim=adafactor"], SOME),
    "steps lora": ([*LORA, "trainer.max_steps=5", "trainer.warmup_steps=0.3"], SOME),
    "cosine lora": ([*LORA, "trainer.lr_scheduler_type=cosine", "trainer.warmup_type=log"], SOME),
    "tied lora": ([*LORA, *TIED], SOME),
    "tied whole": ([*LORA, *TIED, "trainer.modules_to_save=[embed_tokens]"], SOME),
    "tied full": ([*FULL, *TIED], SOME),
    "tied full bf16": ([*FULL, *TIED, *BF16], SOME),
    "bloom lora": ([*LORA, *BLOOM], SOME),
    "bloom whole": ([*LORA, *BLOOM, "trainer.modules_to_save=[word_embeddings]"], SOME),
    "bloom full": ([*FULL, *BLOOM], SOME),
    "baichuan lora": ([*LORA, *BAICHUAN], SOME),
    "baichuan full": ([*FULL, *BAICHUAN], SOME),
    "baichuan full bf16": ([*FULL, *BAICHUAN, *BF16], SOME),
    "baichuan2 full": ([*FULL, *BAICHUAN2], SOME),
    "baichuan2 whole": (
        [*LORA, *BAICHUAN2, "trainer.modules_to_save=[lm_head]"],
        SOME,
    ),
}
"""Name -> overrides, and the configurations of DeepSpeed to train under; what is plain and on one process is right."""


def differences(one: Curve, other: Curve) -> dict[str, float]:
    """The largest difference of each curve over the steps that `other` has, that of the gradient norm relative."""
    found = {}
    for name in ("loss", "held_out_loss", "learning_rate", "grad_norm"):
        expected, values = getattr(one, name), getattr(other, name)
        scale = expected if name == "grad_norm" else dict.fromkeys(expected, 1.0)
        found[name] = max((abs(values[s] - expected[s]) / scale[s] for s in values), default=float("nan"))
    return found


def every(words: Sequence[str]) -> None:
    """Train under everything, and print the table."""
    with tempfile.TemporaryDirectory(prefix="medframe-distributed-") as name:
        folder = Path(name)
        write_data(folder)
        write_models(folder)
        print(folder, flush=True)
        trainings: dict[int, list[Training]] = {1: [], 2: []}
        for group, (overrides, modes) in GROUPS.items():
            if words and not any(word in f"{group} {mode}" for word in words for mode in modes):
                continue
            for mode in modes:
                case, given = f"{group} {mode}", [*overrides, f"trainer.deepspeed={mode}"]
                for world in (1, 2):
                    trainings[world].append(Training(name=f"{case} on {world}", overrides=given))
                for before, world in ((2, 1), (2, 2)):
                    begun = f"{case} on {before}/checkpoints/checkpoint-3"
                    name = f"{case} {before}->{world}"
                    trainings[world].append(Training(name=name, overrides=given, resume=begun))
        for world in (1, 2):
            trainings[world].sort(key=lambda training: training.resume is not None)
        began = time.monotonic()
        workers = [process for world in (1, 2) for process in start(folder, world, trainings[world])]
        for process in workers:
            process.wait()
        print(f"{time.monotonic() - began:.0f} s")
        for training in [*trainings[1], *trainings[2]]:
            out = folder / training.name
            if said := (out / "ended-0.txt").read_text("utf-8"):
                print(f"{training.name:40} FAILED {said[-300:]}")
                continue
            case = training.name.rpartition(" ")[0].removesuffix(" on")
            plain = folder / f"{case.rpartition(' ')[0]} null on 1"
            whole = folder / ((training.resume or "").partition("/")[0] or f"{case} on 1")
            parts = []
            for against in {plain, whole}:
                if (against / "ended-0.txt").exists() and not (against / "ended-0.txt").read_text():
                    found = differences(curve(against), curve(out))
                    parts.append(f"{against.name}: " + " ".join(f"{value:.1e}" for value in found.values()))
            print(f"{training.name:40} {len(curve(out).loss)} steps; " + " | ".join(sorted(parts)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--all"]:
        every(sys.argv[2:])
    else:
        work(Path(sys.argv[1]), Path(sys.argv[2]))
