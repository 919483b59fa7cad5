"""`medframe check`: everything that can be known before training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from medframe.forecast.devices import NAMES

if TYPE_CHECKING:
    from medframe.check import Report

SHOWN = 20
"""Problems shown on a terminal; --json has them all."""


@click.command("check", short_help="Find every problem of a recipe and its data before training.")
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--all-profiles", is_flag=True, help="Check every profile; values left ??? are named, not refused.")
@click.option("--device", type=click.Choice(NAMES), help="Foretell for this device; cpu: this machine.")
@click.option("--json", "as_json", is_flag=True, help="One object for each profile.")
def command(recipe: str, overrides: tuple[str, ...], all_profiles: bool, device: str | None, as_json: bool) -> None:
    """Read all that RECIPE names, every row of its data included, and say what is wrong and what a run will do.

    Never loads weights: memory and time are foretold from shapes. Exits with 2 when there is any problem.
    """
    import json
    from dataclasses import asdict

    from medframe import quiet
    from medframe.check import check
    from medframe.cli.composing import found
    from medframe.compose import compose

    quiet.libraries()
    file = found(recipe)
    composed = compose(file, overrides)
    profiles = sorted({name for layer in composed.layers for name in layer.profiles}) if all_profiles else []
    reports = [
        check(compose(file, [*overrides, f"profile={name}"]), open_ended=True, device=device) for name in profiles
    ]
    reports = reports or [check(composed, device=device)]
    if as_json:
        for report in reports:
            click.echo(json.dumps(asdict(report), ensure_ascii=False))
    else:
        for report in reports:
            _show(report)
    if any(report.problems for report in reports):
        raise click.exceptions.Exit(2)


def _show(report: Report) -> None:
    from medframe.check import written

    if report.profile:
        click.secho(f"profile {report.profile}", bold=True)
    for source in report.sources:
        click.echo(
            f"  {source['source']}: {source['rows']:,} rows: {source['kept']:,} kept, "
            f"{source['shortened']:,} shortened, {source['skipped']:,} skipped"
        )
    if report.tokens:
        t = report.tokens
        click.echo(
            f"  training: {t['examples']:,} examples, {t['tokens']:,} tokens ({t['supervised']:,} supervised); "
            f"length {t['mean']:,} mean, {t['median']:,.0f} median, {t['longest']:,} longest"
        )
        by = f" in {report.processes} processes" if report.processes > 1 else ""
        steps = "unknown until training" if report.steps is None else f"{report.steps:,}"
        click.echo(f"  {report.micro_batches:,} micro-batches an epoch, {steps} optimizer steps{by}")
        for line in written(report.out or ""):
            click.echo(f"  writes {line}")
    if report.forecast:
        _show_forecast(report.forecast)
    for note in report.notes:
        click.secho(f"  note: {note.removeprefix('WARNING ')}", fg="yellow")
    if report.to_give:
        click.echo(f"  to be given: {', '.join(report.to_give)}; the rest of the recipe is valid")
    for problem in report.problems[:SHOWN]:
        click.secho(f"  problem: {problem}", fg="red")
    if len(report.problems) > SHOWN:
        click.echo(f"  ... and {len(report.problems) - SHOWN:,} more problems; --json has them all")
    if not report.problems:
        click.echo("  no problem found")


def _show_forecast(told: dict[str, Any]) -> None:
    if told["memory"] is None:
        click.echo("  memory unknown: this model cannot be measured on a narrow copy of itself")
    else:
        parts = ", ".join(f"{name} {_gb(count)}" for name, count in told["memory"].items() if count and name != "total")
        click.echo(f"  memory of each device: {_gb(told['memory']['total'])} ({parts})")
    if told["operations"] is None:
        click.echo("  operations unknown")
    else:
        click.echo(f"  {told['operations'] / 1e15:,.3g} PFLOP needed")
    if told["devices"]:
        counts = "".join(f"{f'{count} of them':>13}" for count in told["devices"][0]["hours"])
        at = f"time at {told['reached']:.0%} of peak operations"
        click.echo(f"    {at:43}{counts}")
    for device in told["devices"]:
        hours = "".join(f"{_hours(each):>13}" for each in device["hours"].values())
        click.echo(f"    {device['name']:8} {device['fits']:34}{hours}")
    for change in told["changes"]:
        overrides = " ".join(change["overrides"])
        time = "time unknown" if change["hours"] is None else _hours(change["hours"])
        click.echo(f"  fits {told['on']} with {overrides}: {_gb(change['total'])}, {time}")


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _hours(hours: float | None) -> str:
    if hours is None:
        return "-"
    return f"{hours:,.1f} h" if hours >= 0.95 else f"{60 * hours:.0f} min" if hours >= 1 / 60 else "under 1 min"
