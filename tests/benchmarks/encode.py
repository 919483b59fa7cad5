"""Encoding into the store, against the tokenizer's own batch call on the same texts.

    python tests/benchmarks/encode.py [--rows 549000] [--tokenizer DIR]

Prints rows a second of both, interleaved in one run, their ratio, and the peak memory of encoding all rows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from medframe import cache
from medframe.compose import compose
from medframe.encode import Encoder
from medframe.recipe import Recipe, build
from medframe.shipped import recipes
from medframe.store import examples

PART = 60_000


def write_rows(file: Path, count: int) -> None:
    """Consultations of the length of ChatMed's, no two alike, from a shuffled text of GB 2312's common characters."""
    random.seed(1)
    characters = [bytes((row, cell)).decode("gb2312") for row in range(0xB0, 0xD7) for cell in range(0xA1, 0xFF)]
    with file.open("w", encoding="utf-8") as stream:
        for _ in range(count):
            query = "".join(random.choices(characters, k=random.randint(20, 80))) + "，怎么办？"
            response = "".join(random.choices(characters, k=random.randint(60, 200))) + "。"
            stream.write(json.dumps({"query": query, "response": response}, ensure_ascii=False) + "\n")


def recipe(file: Path, tokenizer: str | None) -> Recipe:
    own = [f"backbone.tokenizer={tokenizer}"] if tokenizer else []
    return build(compose(recipes()["chatmed"], [f"data.consult.path={file}", *own]))


def encode(file: Path, tokenizer: str | None) -> None:
    """Encode the whole file into a store of its own: the work that the figures are of."""
    found = recipe(file, tokenizer)
    examples(found.data[0], Encoder(found.prompt, found.backbone.load_tokenizer(), found.limits))


def compare(file: Path, tokenizer_folder: str | None) -> None:
    tokenizer = recipe(file, tokenizer_folder).backbone.load_tokenizer()
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    texts = [f"问：\n{row['query']}\n答：\n{row['response']}\n" for row in rows]
    ours, theirs = [], []
    for turn in range(5):
        # A cache folder of its own each time, so that nothing is found encoded.
        with tempfile.TemporaryDirectory() as folder:
            cache.folder = lambda folder=folder: Path(folder)  # type: ignore[assignment, misc]
            recipe(file, tokenizer_folder).backbone.load_tokenizer()
            started = time.perf_counter()
            encode(file, tokenizer_folder)
            ours.append(len(rows) / (time.perf_counter() - started))
        started = time.perf_counter()
        tokenizer(texts, add_special_tokens=False)
        theirs.append(len(rows) / (time.perf_counter() - started))
        print(f"  {turn + 1}: {ours[-1]:,.0f} rows/s into the store, {theirs[-1]:,.0f} by the tokenizer's batch call")
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    print(f"ratio: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=549_000)
    parser.add_argument("--tokenizer", help="a LLaMA tokenizer's directory; by default the tiny one")
    parser.add_argument("--encode", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.encode:
        started = time.perf_counter()
        encode(arguments.encode, arguments.tokenizer)
        seconds = time.perf_counter() - started
        # Not getrusage: a child's ru_maxrss begins with what its parent held.
        status = Path("/proc/self/status").read_text("utf-8")
        peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
        print(f"{arguments.rows:,} rows: {seconds:.0f} s, {arguments.rows / seconds:,.0f} rows/s, peak {peak:,.0f} MB")
        return
    with tempfile.TemporaryDirectory() as folder:
        part, whole = Path(folder) / "part.jsonl", Path(folder) / "whole.jsonl"
        write_rows(part, PART)
        print(f"{PART:,} rows, five times in turn:")
        compare(part, arguments.tokenizer)
        write_rows(whole, arguments.rows)
        command = [sys.executable, __file__, "--encode", str(whole), "--rows", str(arguments.rows)]
        command += ["--tokenizer", arguments.tokenizer] if arguments.tokenizer else []
        subprocess.run(command, check=True, env={**os.environ, "MEDFRAME_CACHE": f"{folder}/cache"})


if __name__ == "__main__":
    main()
