"""`medframe report`: a run, or several side by side, as one HTML page."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report", short_help="One HTML page about a run, or several runs compared.")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN [RUN]...")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The page to write; else RUN/report.html, and report.html here for several runs.",
)
def command(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write one HTML page about RUN: its curves, its rows, its answers, what it is. Several are compared.

    The page needs no network and no other file. A run that has not finished is shown as far as it got.
    """
    from medframe.errors import MedframeError, RunError
    from medframe.report.page import MARK, page
    from medframe.report.record import Record, read
    from medframe.saving import write

    records: list[Record] = []
    problems: list[str] = []
    for run in {run.resolve(): run for run in runs}.values():
        try:
            records.append(read(run))
        except MedframeError as error:
            problems += error.args
    if problems:
        raise RunError(*problems)
    file = out or (records[0].folder if len(records) == 1 else Path()) / "report.html"
    if not file.parent.is_dir():
        raise RunError(f"--out: there is no folder {file.parent}; make it, or name another")
    if file.exists() and not _is_report(file, MARK):
        raise RunError(f"{file} is there and is no report; name another file with --out")
    write(file, page(records))
    click.echo(file)


def _is_report(file: Path, mark: str) -> bool:
    with file.open("rb") as stream:
        return mark.encode() in stream.read(1000)
