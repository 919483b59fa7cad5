"""Merging a model of 1.8 GB in four files: `medframe merge` and peft's own way, each in a process of its own, in turn.

    python tests/benchmarks/merge.py [--rounds N] [--layers N] [--folder DIR]

Prints the most memory that each process ever held (VmHWM, pages of mapped files included), and how long it took from
its start to its end; and compares what they wrote, tensor by tensor.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

HIDDEN, INNER, HEADS, VOCABULARY, RANK = 2048, 5504, 16, 32000, 8
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make(folder: Path, layers: int) -> None:
    """A LLaMA of random float16 weights in four files, and a LoRA adapter of all its linear modules."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from medframe_backbones.llama import Llama

    base, adapter = folder / "base", folder / "adapter"
    base.mkdir()
    adapter.mkdir()
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        dtype="float16",
    )
    with torch.device("meta"):
        shapes = LlamaForCausalLM(config).state_dict()
    config.save_pretrained(base)
    torch.manual_seed(0)
    block = torch.randn(1 << 24).half() * 0.02
    files: list[dict[str, Any]] = [{}]
    size = sum(like.numel() * 2 for like in shapes.values())
    for name, like in shapes.items():
        if sum(tensor.nbytes for tensor in files[-1].values()) > size / 4:
            files.append({})
        files[-1][name] = block.repeat(-(-like.numel() // len(block)))[: like.numel()].view(like.shape).clone()
    places = {}
    for number, tensors in enumerate(files, 1):
        file = f"model-{number:05}-of-{len(files):05}.safetensors"
        save_file(tensors, base / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (base / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    Llama().make_tiny_tokenizer(base)
    lora = {}
    for name, like in shapes.items():
        if name.split(".")[-2] in TARGETS:
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            lora[f"{stem}.lora_A.weight"] = torch.randn(RANK, like.shape[1]) * 0.02
            lora[f"{stem}.lora_B.weight"] = torch.randn(like.shape[0], RANK) * 0.02
    save_file(lora, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    written = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 32, "target_modules": [*TARGETS]}
    (adapter / "adapter_config.json").write_text(json.dumps(written), "utf-8")


def by_medframe(base: str, adapter: str, out: str) -> None:
    from medframe.cli import main

    sys.argv = ["medframe", "merge", base, adapter, "--out", out, "--shard-size", "500MB"]
    with suppress(SystemExit):
        main()


def by_peft(base: str, adapter: str, out: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(base)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(out, max_shard_size="500MB")
    AutoTokenizer.from_pretrained(base).save_pretrained(out)


WAYS = {"medframe": by_medframe, "peft": by_peft}


def measured(way: str, folder: Path) -> tuple[float, float]:
    """(most memory in bytes, seconds) of one merge in a process of its own."""
    out = folder / way
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    line = [sys.executable, __file__, "--way", way, "--folder", str(folder)]
    start = time.perf_counter()
    ended = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - start
    return float(ended.stdout.splitlines()[-1]) * 1024, seconds


def same(one: Path, other: Path) -> bool:
    """Whether the two directories hold the same tensors."""
    from medframe.merge.tensors import content, of_model

    a, b = of_model(one), of_model(other)
    return a.keys() == b.keys() and all(content(a[name]) == content(b[name]) for name in a)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=15)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--way", choices=WAYS)
    given = parser.parse_args()
    if given.way:
        WAYS[given.way](*(str(given.folder / name) for name in ("base", "adapter", given.way)))
        status = Path("/proc/self/status").read_text()
        print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        make(folder, given.layers)
        files = sorted((folder / "base").glob("*.safetensors"))
        print(f"{sum(file.stat().st_size for file in files) / 1e9:.2f} GB in {len(files)} files")
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for _ in range(given.rounds):
            for way in WAYS:
                found[way].append(measured(way, folder))
                print(f"  {way:9} {found[way][-1][0] / 1e9:5.2f} GB  {found[way][-1][1]:6.1f} s", flush=True)
        memory, seconds = (
            {way: statistics.median(each[which] for each in found[way]) for way in WAYS} for which in (0, 1)
        )
        for what, of in (("memory", memory), ("time", seconds)):
            print(f"{what}: {of['medframe'] / of['peft']:.2f} of peft's")
        print("the same tensors" if same(folder / "medframe", folder / "peft") else "OTHER TENSORS")


if __name__ == "__main__":
    main()
