"""`medframe evaluate`: held-out loss of what was trained, and of its base."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medframe.cli.opening import opens

if TYPE_CHECKING:
    from medframe.quantised import Bits


@click.command("evaluate", short_help="Held-out loss of what was trained, and of its base.")
@opens
@click.option(
    "--data", type=click.Path(path_type=Path, dir_okay=False), help="Rows to measure on; else those held out."
)
@click.option(
    "--source", "reads", metavar="NAME", help="What explains them: a data section of the run, or a component."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write what was measured; else RUN/evaluation.json.",
)
def command(
    run: Path,
    base: Path | None,
    prompt: str | None,
    weights_dtype: Bits | None,
    data: Path | None,
    reads: str | None,
    out: Path | None,
) -> None:
    """Measure RUN, and its base, on rows that it was not trained on: the loss per supervised token.

    The rows are laid out and encoded as in training. Of a whole model, --base names what to compare it with.
    """
    from medframe import quiet
    from medframe.errors import RunError
    from medframe.evaluate.evaluate import FILE, Asked, evaluate, keep
    from medframe.trained import kind_of

    quiet.libraries()
    if reads and not data:
        raise RunError("--source: it explains the rows of --data FILE, which is not given")
    if out is None and kind_of(run) != "plain":  # what a plain directory holds is not ours
        out = run / FILE
    if out is not None and not out.absolute().parent.is_dir():
        raise RunError(f"--out: there is no folder {out.parent}; make it, or name another")
    shown = 0
    with click.progressbar(length=0, label="measured", show_pos=True, file=sys.stderr) as bar:

        def told(done: int, of: int) -> None:
            nonlocal shown
            bar.length = of
            bar.update(done - shown)
            shown = done

        found = evaluate(Asked(run, base, prompt, data, reads, weights_dtype), click.echo, told)
    _show(found)
    if out is not None:
        keep(found, out)
        click.echo(out)


def _show(found: dict[str, Any]) -> None:
    data = found["data"]
    skipped = f", {data['skipped']:,} rows could not be used" if data["skipped"] else ""
    counts = f"{data['rows']:,} rows, {data['examples']:,} examples, {data['supervised_tokens']:,} supervised tokens"
    click.echo(f"{data['what']}: {counts}{skipped}")
    click.echo(f"{'':8} {'loss per supervised token':>25}   95 % interval")
    for name in ("base", "tuned", "less_by"):
        if measured := found[name]:
            low, high = measured["interval"]
            click.echo(f"{name.replace('_', ' '):8} {measured['loss']:25.4f}   {low:.4f} to {high:.4f}")
    click.echo(f"Intervals: {found['intervals']}.")
