"""Forward and backward passes as medframe makes them, against BenTsao's own way, on the same rows and weights.

    python tests/benchmarks/speed.py --data FILE [--backbone llama] [--vocabulary 8000] [--train lora] [--threads 1]

FILE holds rows as published with BenTsao (llama_data.json). BenTsao's way: 128 rows a micro-batch, or as many as leave
its logits below --logits GB, padded on the left to the longest, with an attention mask; logits of the whole vocabulary
at every place; the library's loss; fp32. Ours: the same rows packed up to 8192 tokens, by what the trainers use.
Both take turns in one process. Prints real (not padding) tokens a second, the ratio of the medians, and how far the
gradients are apart.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from medframe import quiet
from medframe.attention import quicken
from medframe.batch import packed
from medframe.compose import compose
from medframe.prepare import prepare
from medframe.recipe import build
from medframe.shipped import recipes
from medframe_trainers.head import head
from medframe_trainers.loss import token_loss
from medframe_trainers.precision import quickest

SHAPES = {
    "llama": {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 688},
    "bloom": {"hidden_size": 256, "n_layer": 6, "n_head": 4},
    "baichuan": {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 688},
}


def rows(file: str, backbone: str) -> list[Any]:
    """(ids, trained) of every row, as int64 and bool arrays."""
    with tempfile.TemporaryDirectory() as out:
        overrides = [f"out={out}", f"backbone={{use: {backbone}, weights: tiny}}", f"data.knowledge.path={file}"]
        recipe = build(compose(recipes()["bentsao-llama"], [*overrides, "held_out=null", "data.knowledge.limit=2000"]))
        train = prepare(recipe).train
        return [(e.ids(i), e.trained(i)) for e, i in (train.example(n) for n in range(len(train)))]


def model(backbone: str, vocabulary: int, train: str) -> Any:
    """Random weights of a small shape, under LoRA as BenTsao has it (rank 8 on queries and values) or all trained."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    if backbone == "llama":
        from transformers import LlamaConfig, LlamaForCausalLM

        made: Any = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **SHAPES[backbone]))
    elif backbone == "bloom":
        from transformers import BloomConfig

        from medframe_backbones.bloom_attention import BloomForCausalLM

        made = BloomForCausalLM(BloomConfig(vocab_size=vocabulary, **SHAPES[backbone]))
    else:
        from medframe_backbones.baichuan.config import BaichuanConfig
        from medframe_backbones.baichuan.model import BaichuanForCausalLM

        made = BaichuanForCausalLM(BaichuanConfig(vocab_size=vocabulary, **SHAPES[backbone]))
    if train == "lora":
        targets = {"llama": ["q_proj", "v_proj"], "bloom": ["query_key_value"], "baichuan": ["W_pack"]}[backbone]
        made = get_peft_model(made, LoraConfig(r=8, lora_alpha=16, target_modules=targets, init_lora_weights=False))
    return made.train()


def bentsaos(model: Any, samples: list[Any], size: int) -> int:
    """Micro-batches of `size` rows in BenTsao's way; their real tokens."""
    labels = sum(int(trained[1:].sum()) for _, trained in samples)
    return sum(_bentsaos(model, samples[start : start + size], labels) for start in range(0, len(samples), size))


def _bentsaos(model: Any, samples: list[Any], of_all: int) -> int:
    width = max(len(ids) for ids, _ in samples)
    ids, mask = (torch.zeros(len(samples), width, dtype=torch.int64) for _ in range(2))
    labels = torch.full((len(samples), width), -100)
    for row, (tokens, trained) in enumerate(samples):
        start = width - len(tokens)
        ids[row, start:] = torch.tensor(tokens)
        mask[row, start:] = 1
        labels[row, start:] = torch.where(torch.tensor(trained), ids[row, start:], -100)
        labels[row, start] = -100
    loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
    # The library's mean over this micro-batch, as a part of the mean over all rows.
    (loss * (int((labels[:, 1:] != -100).sum()) / of_all)).backward()
    return int(mask.sum())


def ours(model: Any, samples: list[Any], own_head: Any, low: bool, limit: int = 8192) -> int:
    """The same rows in packs; their tokens."""
    packs: list[list[Any]] = [[]]
    for sample in samples:
        if sum(len(ids) for ids, _ in packs[-1]) + len(sample[0]) > limit:
            packs.append([])
        packs[-1].append(sample)
    batches = [packed(pack) for pack in packs]
    labels = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16) if low else nullcontext():
            loss, _ = token_loss(model, batch, own_head)
        (loss / labels).backward()
    return sum(len(ids) for ids, _ in samples)


def gradients(model: Any) -> list[torch.Tensor]:
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return found


def measure(args: argparse.Namespace, samples: list[Any], vocabulary: int) -> None:
    theirs, mine = (model(args.backbone, vocabulary, args.train) for _ in range(2))
    samples = [(ids % vocabulary, trained) for ids, trained in samples]
    quicken(mine.get_base_model() if args.train == "lora" else mine)
    own_head = head(mine)
    first = samples[: args.rows]
    longest = max(len(ids) for ids, _ in samples)
    size = max(1, min(args.rows, int(args.logits * 2**30 / (4 * vocabulary * longest))))
    bentsaos(theirs, first, size)
    with quickest(1):
        ours(mine, first, own_head, low=False)
    largest = max(
        float((a - b).abs().max() / a.abs().max()) for a, b in zip(gradients(theirs), gradients(mine), strict=True)
    )
    speeds: dict[str, list[float]] = {"bentsao": [], "fp32": [], "bf16": []}
    for round_ in range(args.rounds):
        part = samples[(round_ * args.rows) % (len(samples) - args.rows) :][: args.rows]
        for name in speeds:
            began = time.perf_counter()
            if name == "bentsao":
                tokens = bentsaos(theirs, part, size)
            else:
                with quickest(1) if name == "fp32" else nullcontext():
                    began = time.perf_counter()  # the probe is made once in a training
                    tokens = ours(mine, part, own_head, low=name == "bf16")
            speeds[name].append(tokens / (time.perf_counter() - began))
            theirs.zero_grad()
            mine.zero_grad()
    median = {name: statistics.median(found) for name, found in speeds.items()}
    ratios = "  ".join(
        f"{name} {median[name]:8,.0f} = {median[name] / median['bentsao']:.2f} x" for name in ("fp32", "bf16")
    )
    print(
        f"{args.backbone:9}{vocabulary:8,}{median['bentsao']:9,.0f}   {ratios}   gradients {largest:.1e} apart",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--backbone", default="llama", choices=SHAPES)
    parser.add_argument("--vocabulary", type=int, nargs="*", default=[8000, 49954, 250880])
    parser.add_argument("--train", default="lora", choices=["lora", "full"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--logits", type=float, default=1.0, metavar="GB")
    args = parser.parse_args()
    quiet.libraries()
    torch.set_num_threads(args.threads)
    samples = rows(str(Path(args.data).resolve()), args.backbone)
    mean = sum(len(ids) for ids, _ in samples) / len(samples)
    supervised = sum(int(trained.sum()) for _, trained in samples) / sum(len(ids) for ids, _ in samples)
    print(
        f"{args.train}, {args.threads} threads; rows of {mean:.0f} tokens, {supervised:.0%} supervised; real tokens/s"
    )
    print(f"{'':9}{'vocab.':>8}{'rows':>6}{'BenTsao':>9}   ours")
    for vocabulary in args.vocabulary:
        measure(args, samples, vocabulary)


if __name__ == "__main__":
    main()
