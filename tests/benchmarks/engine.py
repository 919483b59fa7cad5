"""The engine against transformers: one answer at a time, and transformers' own continuous batching, in turn.

    python tests/benchmarks/engine.py RUN [--questions 48] [--rows 16] [--rounds 3]

RUN holds a LoRA of the recipe chatmed; its questions are the sample's, answered greedily with up to 128 tokens on one
thread. Prints tokens a second, and how many answers are the same.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import GenerationConfig

from medframe import quiet
from medframe.answer import Answerer
from medframe.dataset import Turn
from medframe.decoding import Decoding
from medframe.engine.engine import Engine
from medframe.trained import open_run
from medframe_datasets.chatmed import ChatMedConsult

LONGEST = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    told = parser.parse_args()
    quiet.libraries()
    torch.set_num_threads(1)
    opened = open_run(Path(told.run))
    model = opened.model().merge_and_unload()
    answerer = Answerer(model, opened.encoder)
    samples = [sample for _, sample in zip(range(told.questions), ChatMedConsult(path="sample"), strict=False)]
    asked = [sample.turns[:1] for sample in samples if hasattr(sample, "turns")]
    ids = [answerer.request(turns, Decoding(max_new_tokens=LONGEST)).ids for turns in asked]
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=LONGEST,
        eos_token_id=sorted(answerer.ends),
        pad_token_id=opened.encoder.tokenizer.pad_token_id,
    )

    def ours() -> list[list[int]]:
        requests = [
            answerer.request([Turn("user", turns[0].text)], Decoding(max_new_tokens=LONGEST)) for turns in asked
        ]
        engine, waiting = Engine(model, rows=told.rows), list(requests)
        while waiting or len(engine):
            while waiting and engine.fits(waiting[0]):
                engine.add(waiting.pop(0))
            engine.step()
        return [request.tokens for request in requests]

    def alone() -> list[list[int]]:
        answers = []
        for each in ids:
            given = torch.tensor([each])
            out = model.generate(given, attention_mask=torch.ones_like(given), generation_config=settings)
            answers.append(out[0, len(each) :].tolist())
        return answers

    def batched() -> list[list[int]]:
        model.set_attn_implementation("sdpa")
        found = model.generate_batch(ids, generation_config=settings, progress_bar=False)
        model.set_attn_implementation("sdpa")
        return [list(each.generated_tokens) for _, each in sorted(found.items())]

    ways: dict[str, Callable[[], list[list[int]]]] = {"engine": ours, "alone": alone, "generate_batch": batched}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, set[tuple[int, ...]]] = {}
    for _ in range(told.rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            found = [tuple(token for token in each if token not in answerer.ends) for each in way()]
            speeds[name].append(sum(map(len, found)) / (time.perf_counter() - began))
            answers[name] = set(found)
    for name, each in speeds.items():
        same = len(answers[name] & answers["engine"])
        print(
            f"{name:15} {statistics.median(each):7,.0f} tokens/s, {same} of {len(answers['engine'])} answers the same"
        )


if __name__ == "__main__":
    main()
