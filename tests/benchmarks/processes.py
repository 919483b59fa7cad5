"""Two processes on two cores against one on one core: tokens a second of the same recipe, in turn.

    python tests/benchmarks/processes.py --data FILE [--rounds 3] [--use full] [--tokens 8192] [--steps 6]

FILE holds rows as published with BenTsao (llama_data.json). A LLaMA of six layers of 256 takes the same steps on the
same samples each way: plain data parallel and ZeRO-2. The speed is the median of the logged steps, the first left out.
Needs two cores that nobody else uses.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WAYS = {
    "one process": ["processes=1"],
    "two, plain": ["processes=2"],
    "one process, zero2": ["processes=1", "trainer.deepspeed=zero2"],
    "two, zero2": ["processes=2", "trainer.deepspeed=zero2"],
}


def model(folder: Path, data: str, hidden: int = 256) -> None:
    """A LLaMA of six layers with random weights and the tokenizer that the tiny one has."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from medframe.compose import compose
    from medframe.recipe import build
    from medframe.shipped import recipes

    overrides = [f"out={folder}", "backbone={use: llama, weights: tiny}", f"data.knowledge.path={data}"]
    tokenizer = build(compose(recipes()["bentsao-llama"], overrides)).backbone.load_tokenizer()
    shape = {"num_hidden_layers": 6, "num_attention_heads": hidden // 64, "intermediate_size": hidden * 43 // 16}
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=hidden, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def speed(out: Path, overrides: list[str]) -> float:
    """Supervised tokens a second, over all processes."""
    line = [sys.executable, "-m", "medframe", "run", "bentsao-llama", f"out={out}", "compare=0", *overrides]
    ended = subprocess.run(line, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    return statistics.median([line["supervised_tokens_per_second"] for line in lines if "loss" in line][1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--use", default="full", choices=["full", "lora"])
    parser.add_argument("--tokens", type=int, default=8192, help="of a micro-batch")
    parser.add_argument("--accumulation", type=int, default=4, help="micro-batches of a step, over all processes")
    parser.add_argument("--steps", type=int, default=6)
    told = parser.parse_args()
    settings = [f"data.knowledge.path={told.data}", "data.knowledge.limit=4000", "held_out=null"]
    settings += ["profile=embedded", f"batching={{kind: packed, tokens: {told.tokens}}}"]
    settings += [f"trainer={{use: {told.use}, max_steps: {told.steps}, learning_rate: 1e-5, logging_steps: 1}}"]
    settings += ["trainer.save_steps=1000", f"trainer.gradient_accumulation_steps={told.accumulation}"]
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        model(Path(folder) / "model", told.data)
        settings.append(f"backbone={{use: llama, weights: {folder}/model}}")
        for number in range(told.rounds):
            for name, way in WAYS.items():
                out = Path(folder) / f"{name}-{number}".replace(" ", "-").replace(",", "")
                found[name].append(speed(out, [*settings, *way]))
    one = statistics.median(found["one process"])
    for name, speeds in found.items():
        middle = statistics.median(speeds)
        print(f"{name:20} {middle:8,.0f} supervised tokens/s = {middle / one:.2f} x")


if __name__ == "__main__":
    main()
