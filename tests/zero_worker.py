"""One of two processes that train a small model under several DeepSpeed configurations; run by test_zero_config.py."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from medframe import quiet
from medframe_trainers import zero
from medframe_trainers.full import Full

STEPS, ROWS = 8, 4
SIZES = {
    "reduce_bucket_size": 4096,
    "stage3_prefetch_bucket_size": 4096,
    "stage3_param_persistence_threshold": 100,
}
"""What transformers would make of a hidden size of 64."""


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    embedding, head = torch.nn.Embedding(64, 64), torch.nn.Linear(128, 64)
    made = torch.nn.Sequential(embedding, torch.nn.Linear(64, 128), torch.nn.ReLU(), head)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


def batches() -> torch.Tensor:
    """Rows to learn by heart: token ids, int64 [steps, rows, tokens + 1]."""
    return torch.randint(0, 64, (1, ROWS, 17), generator=torch.Generator().manual_seed(1)).repeat(STEPS, 1, 1)


def loss_of(module: Any, rows: torch.Tensor) -> Any:
    logits = module(rows[:, :-1]).float()
    return torch.nn.functional.cross_entropy(logits.reshape(-1, 64), rows[:, 1:].reshape(-1))


def alone(bf16: bool) -> list[float]:
    """The losses of one process without DeepSpeed, in float32 or under autocast as the Trainer runs it."""
    module, losses = model(), []
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.0)
    for rows in batches():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_of(module, rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def together(deepspeed: str, bf16: bool) -> list[float]:
    """The losses of two processes, each with half of the rows."""
    import deepspeed as library

    settings = Full(deepspeed=deepspeed, learning_rate=1e-3, bf16=bf16)
    config = zero.config(settings, world=2, accumulate=1, total_steps=STEPS)
    sizes = config["zero_optimization"]
    sizes |= {key: SIZES[key] for key, value in sizes.items() if value == "auto"}
    module, losses = model(), []
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.0)
    engine, *_ = library.initialize(model=module, optimizer=optimizer, config=config)
    for rows in batches():
        loss = loss_of(engine, rows.chunk(2)[torch.distributed.get_rank()])
        engine.backward(loss)
        engine.step()
        mean = loss.detach().float() / 2
        torch.distributed.all_reduce(mean)
        losses.append(mean.item())
    return losses


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    quiet.libraries()
    zero.prepare()
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {"alone": alone(False), "alone bf16": alone(True)}
    for name, bf16 in [("zero0", True), ("zero1", True), ("zero2-offload", False), ("zero3", True)]:
        found[name] = together(name, bf16)
    found["chatmed"] = together(str(folder / "chatmed.json"), False)
    if rank == 0:
        (folder / "result.json").write_text(json.dumps(found), "utf-8")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # now and then DeepSpeed's threads abort an interpreter that ends


main(Path(sys.argv[1]))
