"""`medframe chat`: a conversation with what a run trained."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medframe.cli.decoding import chosen, decodes
from medframe.cli.opening import opens

if TYPE_CHECKING:
    from medframe.quantised import Bits


@click.command("chat", short_help="Talk to what a run trained.")
@opens
@decodes
@click.option("--seed", default=0, show_default=True, help="Of what is drawn.")
def command(
    run: Path, base: Path | None, prompt: str | None, weights_dtype: Bits | None, seed: int, **decoding: Any
) -> None:
    """Talk to RUN: a run, a merged model, or with --prompt any directory of weights. /clear forgets, /exit leaves."""
    from medframe import quiet
    from medframe.answer import Answerer
    from medframe.dataset import Turn
    from medframe.errors import PromptError
    from medframe.trained import open_run

    quiet.libraries()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # a stray byte is no reason to end
    opened = open_run(run, base, prompt=prompt).rounded(weights_dtype)
    spoken = opened.encoder.prompt
    settings = chosen(opened.decoding, **decoding)
    answerer = Answerer(opened.model(), opened.encoder)
    click.echo(
        f"{run}: format {opened.manifest['prompt']['use']}. Decoding: {settings.told()}. "
        "/clear forgets the conversation, /exit leaves."
    )
    if opened.is_tiny:
        click.echo("The base is a tiny random model: it proves the pipeline and knows no medicine.")
    if not spoken.multi_turn:
        click.echo("This format has no turns: each question is answered on its own, without what was said before.")
    turns: list[Turn] = []
    while (question := _ask()) is not None:
        if question == "/clear":
            turns.clear()
            click.echo("(forgotten)")
        if question in ("", "/clear"):
            continue
        turns = [*turns, Turn("user", question)] if spoken.multi_turn else [Turn("user", question)]
        said = ""
        answer = answerer.stream(turns, settings, f"{seed}/{len(turns)}")
        try:
            for piece in answer:
                said += piece
                click.echo(piece, nl=False)
        except PromptError as error:
            hint = "; /clear forgets the conversation" if len(turns) > 1 else ""
            click.echo(f"({error}{hint})", nl=False)
        except KeyboardInterrupt:
            answer.close()
            click.echo(" (stopped)", nl=False)
        click.echo()
        turns = [*turns, Turn("assistant", said.strip())] if said else turns[:-1]


def _ask() -> str | None:
    """The next line typed, or None at the end: /exit, end of input, Ctrl-C at the prompt."""
    try:
        line = input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        click.echo()
        return None
    return None if line == "/exit" else line
