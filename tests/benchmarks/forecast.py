"""The forecast of memory against what `medframe bench` measures: python tests/benchmarks/forecast.py [WORD ...]

Each line is a model with random weights and a recipe; with words, only the lines that hold all of them. By hand: the
whole grid takes half an hour on one core.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

FAMILIES = {
    "llama": lambda h, n, v: {
        "model_type": "llama", "hidden_size": h, "intermediate_size": 11 * h // 4 // 32 * 32, "num_hidden_layers": n,
        "num_attention_heads": h // 64, "num_key_value_heads": h // 64, "vocab_size": v, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
    },
    "bloom": lambda h, n, v: {
        "model_type": "bloom", "hidden_size": h, "n_layer": n, "n_head": h // 64, "vocab_size": v,
        "layer_norm_epsilon": 1e-5, "hidden_dropout": 0.0, "attention_dropout": 0.0, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 3,
    },
    "baichuan": lambda h, n, v: {
        "model_type": "baichuan", "hidden_size": h, "intermediate_size": 11 * h // 4 // 32 * 32,
        "num_hidden_layers": n, "num_attention_heads": h // 64, "vocab_size": v, "rms_norm_eps": 1e-6,
        "model_max_length": 4096, "positions": "alibi", "head": "linear", "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2,
    },
}  # fmt: skip
# family, hidden, layers, vocabulary, dtype, trainer, batching, checkpointing
GRID = [
    ("llama", 256, 2, 8000, "float32", "full", "packed", False),
    ("llama", 256, 2, 8000, "float32", "lora", "padded", False),
    ("llama", 512, 6, 8000, "float32", "lora", "packed", False),
    ("llama", 512, 6, 8000, "float32", "full", "packed", False),
    ("llama", 512, 6, 50000, "float32", "lora", "packed", True),
    ("llama", 512, 6, 50000, "bfloat16", "lora", "packed", False),
    ("llama", 512, 6, 50000, "bfloat16", "full", "packed", False),
    ("llama", 512, 6, 250000, "float32", "lora", "packed", False),
    ("llama", 512, 6, 50000, "float32", "lora", "padded", False),
    ("llama", 512, 12, 50000, "float32", "full", "packed", True),
    ("llama", 1024, 4, 50000, "float32", "full", "packed", False),
    ("llama", 1024, 12, 50000, "bfloat16", "lora", "packed", False),
    ("llama", 1024, 12, 50000, "bfloat16", "lora", "packed", True),
    ("bloom", 256, 2, 8000, "float32", "lora", "packed", False),
    ("bloom", 512, 6, 250000, "float32", "lora", "packed", False),
    ("bloom", 512, 6, 50000, "float32", "full", "padded", False),
    ("bloom", 1024, 4, 50000, "bfloat16", "lora", "packed", True),
    ("baichuan", 512, 4, 50000, "float32", "lora", "packed", False),
    ("baichuan", 512, 6, 50000, "float32", "full", "packed", True),
    ("baichuan", 1024, 4, 50000, "bfloat16", "lora", "padded", False),
]
BATCHING = {"packed": "{kind: packed, tokens: 2048}", "padded": "{kind: padded, rows: 12}"}


def recipe(folder: Path, line: tuple[Any, ...]) -> list[str]:
    """RECIPE and overrides of a line; its files are made in the folder."""
    family, hidden, layers, vocabulary, dtype, trainer, batching, checkpointing = line
    model = folder / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps({**FAMILIES[family](hidden, layers, vocabulary), "dtype": dtype}))
    text = "头痛发热咳嗽三天应当多喝水早休息并到医院看一看" * 20
    rows = [{"query": text[n % 7 : 80 + n % 13], "response": text[n % 11 : 70 + n % 17]} for n in range(120)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    tiny = {"llama": "Llama", "bloom": "Bloom", "baichuan": "Baichuan"}[family]
    module = {"llama": "llama", "bloom": "bloom", "baichuan": "baichuan"}[family]
    backbone = getattr(__import__(f"medframe_backbones.{module}", fromlist=[tiny]), tiny)()
    (folder / "recipe.yaml").write_text(
        f"""\
out: {folder}/run
backbone: {{use: {family}, weights: "random:{model}", tokenizer: "{backbone.tokenizer_directory()}", dtype: {dtype}}}
data: {{rows: {{use: chatmed-consult, path: "{folder}/rows.jsonl"}}}}
prompt: {{use: chatmed}}
batching: {BATCHING[batching]}
trainer: {{use: {trainer}, max_steps: 50, gradient_checkpointing: {str(checkpointing).lower()}}}
"""
    )
    return [str(folder / "recipe.yaml")]


def foretold(arguments: list[str]) -> Any:
    from medframe.compose import compose
    from medframe.forecast.forecast import forecast
    from medframe.prepare import prepare
    from medframe.recipe import build

    built = build(compose(Path(arguments[0]), arguments[1:]))
    return forecast(built, prepare(built).train).memory(built.processes)


def measured(arguments: list[str], folder: Path) -> dict[str, Any]:
    file = folder / "bench.json"
    line = [sys.executable, "-m", "medframe", "bench", "--steps", "2", "--json", str(file), *arguments]
    ended = subprocess.run(line, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(ended.stderr)
    (result,) = json.loads(file.read_text())
    return dict(result)


def main() -> None:
    print(f"{'forecast MB':>12} {'measured':>9} {'error':>6}  process   line")
    for line in GRID:
        name = " ".join(map(str, line[:-1])) + (" checkpointing" if line[-1] else "")
        if not all(word in name.split() for word in sys.argv[1:]):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            arguments = recipe(Path(temporary) / "line", line)
            memory, result = foretold(arguments), measured(arguments, Path(temporary))
            total, tensors = memory.total / 1e6, result["tensors"] / 1e6
            error, peak = total / tensors - 1, result["peak"] / 1e6
            parts = ", ".join(f"{key} {value / 1e6:.0f}" for key, value in vars(memory).items())
            print(f"{total:12,.0f} {tensors:9,.0f} {error:6.1%} {peak:8,.0f}   {name}   ({parts})", flush=True)


if __name__ == "__main__":
    main()
