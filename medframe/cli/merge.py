"""`medframe merge`: a base model and adapters, or what a run trained, as one model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import click

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


class Size(click.ParamType[int]):
    """A number of bytes such as 5GB."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([1-9]\d*)(KB|MB|GB)", str(value).strip().upper())
        if not found:
            self.fail(f"{value!r} is no size such as 500MB or 5GB", param, ctx)
        return int(found[1]) * _UNITS[found[2]]


@click.command("merge", short_help="Merge adapters into their base model, on disk.")
@click.argument("sources", nargs=-1, required=True, metavar="RUN | BASE ADAPTER [ADAPTER]...")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="The directory to write.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Precision of the result; else the base model's.",
)
@click.option("--shard-size", default="5GB", show_default=True, type=Size(), help="Largest file, such as 500MB.")
@click.option(
    "--rounding",
    type=click.Choice(["each", "once"]),
    default="each",
    show_default=True,
    help="each: after every adapter, as peft does; once: after the sum of all, which is closer.",
)
@click.option("--prompt", metavar="NAME", help="Bind the result to this prompt format, where no run says which.")
@click.option("--base", type=click.Path(path_type=Path), metavar="DIR", help="Where RUN's base model lies now.")
@click.option("--check", is_flag=True, help="Compare its logits with those of base and adapters; loads both in turn.")
def command(
    sources: tuple[str, ...],
    out: Path,
    dtype: Literal["float32", "bfloat16", "float16"] | None,
    shard_size: int,
    rounding: Literal["each", "once"],
    prompt: str | None,
    base: Path | None,
    check: bool,
) -> None:
    """Merge the adapters, in this order, into BASE; or the adapter of RUN into the base that it was trained on.

    Adapters are directories, runs, or hub models. Two tensors are in memory at a time. DIR appears once all is proven,
    or not at all: every `medframe` verb takes it as RUN, and transformers loads it as it is.
    """
    from medframe import quiet
    from medframe.merge.merge import Options, merge

    quiet.libraries()
    options = Options(
        base=base,
        dtype=dtype,
        shard_size=shard_size,
        rounding=rounding,
        prompt=prompt,
        check=check,
    )
    merge(sources, out, options, click.echo)
