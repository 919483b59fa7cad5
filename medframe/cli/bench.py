"""`medframe bench`: some steps of a recipe, measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from medframe.bench.result import Result

WARM_UP = 3
"""Steps that are taken before those that count."""


@click.command("bench", short_help="Measure how fast a recipe trains here, and in how much memory.")
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--steps", default=10, show_default=True, type=click.IntRange(1), help="Optimizer steps that count.")
@click.option("--apart", is_flag=True, help="One variant after the other, where memory does not hold them all.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write it all there too.")
@click.option("--worker", "folder", type=click.Path(path_type=Path), hidden=True, help="Of a process it started.")
def command(
    recipe: str, overrides: tuple[str, ...], steps: int, apart: bool, json_file: Path | None, folder: Path | None
) -> int | None:
    """Train some steps of RECIPE as `run` would, in a process of its own, and say how fast they were.

    KEY=A,B compares: a step with A, a step with B, and so on in turn. Nothing is written but a temporary folder.
    """
    from medframe.cli.composing import composed, found
    from medframe.recipe import build

    file = found(recipe)
    if folder:
        return _work(file, overrides, steps, folder)
    import json
    from dataclasses import asdict

    from medframe.errors import RunError

    if json_file and not json_file.resolve().parent.is_dir():
        raise RunError(f"--json: there is no folder {json_file.parent}; make it, or name another")
    from medframe.bench.result import Result
    from medframe.bench.turns import measure
    from medframe.bench.variants import variants
    from medframe.saving import write

    chosen = variants(overrides)
    for variant in chosen:
        build(composed(file, variant.overrides))
    measured = measure(file, chosen, WARM_UP + steps, apart)
    results = [Result.of(v.name, ranks, WARM_UP) for v, ranks in zip(chosen, measured, strict=True)]
    for result in results:
        _show(result)
    if len(results) > 1:
        _compare(results)
    if json_file:
        write(json_file, json.dumps([asdict(result) for result in results], indent=1) + "\n")
    return None


def _work(file: Path, overrides: tuple[str, ...], steps: int, folder: Path) -> int | None:
    """As one of the processes that are measured, or as their supervisor."""
    from medframe import world
    from medframe.cli.composing import composed
    from medframe.recipe import build

    built = build(composed(file, overrides))
    if world.found() is None and built.processes > 1:
        from medframe.launch import supervise

        options = ["--steps", str(steps), "--worker", str(folder)]
        return supervise(built.processes, ["bench", *options, "--", str(file), *overrides], folder)
    from medframe.bench.worker import work

    work(built, folder, steps)
    return None


def _show(result: Result) -> None:
    click.secho(result.name or "bench", bold=True)
    by = f", {result.processes} processes" if result.processes > 1 else ""
    why = f": {result.reason}" if result.reason else ""
    click.echo(f"  {result.kind}{why}; {result.dtype} on {result.device}{by}")
    click.echo(
        f"  {result.tokens_per_second:,.0f} tokens/s, {result.supervised_tokens_per_second:,.0f} of them supervised; "
        f"{result.tokens_per_step:,.0f} tokens a step, padding {result.padding:.1%}"
    )
    click.echo(
        f"  step {result.step_seconds:.3f} s median ({result.fastest:.3f} to {result.slowest:.3f}), "
        f"{result.steps} steps after {result.warm_up}"
    )
    loading = f", {_gb(result.loading)} while it was loaded and proven" if result.loading > result.peak else ""
    click.echo(f"  memory: tensors {_gb(result.tensors)} at most; the process {_gb(result.peak)}{loading}")
    if result.needed is None:
        click.echo(f"  needed operations: unknown; a large matrix product reaches {_tera(result.ceiling)}/s")
    else:
        click.echo(
            f"  needed {_tera(result.needed)} a step, {_tera(result.reached)}/s: {result.share:.1%} of a large matrix "
            f"product's {_tera(result.ceiling)}/s"
        )
    if result.whole:
        click.echo(f"  the whole training, {result.whole:,} steps: {_hours(result.hours)}")


def _compare(results: list[Result]) -> None:
    first, width = results[0], max(len(result.name) for result in results)
    click.echo(f"\n{'':{width}}  tokens/s   ratio  supervised/s  padding    memory  of ceiling")
    for result in results:
        share = "unknown" if result.needed is None else f"{result.share:.1%}"
        click.echo(
            f"{result.name:{width}}  {result.tokens_per_second:8,.0f}  {result.ratio(first):6.2f}"
            f"  {result.supervised_tokens_per_second:12,.0f}  {result.padding:7.1%}"
            f"  {_gb(result.tensors):>8}  {share:>10}"
        )


def _gb(count: float | None) -> str:
    return "unknown" if count is None else f"{count / 1e9:.2f} GB"


def _tera(operations: float) -> str:
    return f"{operations / 1e12:,.3g} TFLOP"


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"
