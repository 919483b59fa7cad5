"""The command line: one file per verb, imported when that verb is called."""

from __future__ import annotations

import importlib
import os
import sys

import click

import medframe

VERBS = {
    "run": "run",
    "check": "check",
    "preview": "preview",
    "chat": "chat",
    "recipes": "recipes",
    "list-plugins": "list_plugins",
    "new-plugin": "new_plugin",
}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"medframe.cli.{VERBS[cmd_name]}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from difflib import get_close_matches

        if args and args[0] not in VERBS and (near := get_close_matches(args[0], VERBS, n=1)):
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click itself would end with 1
            return nobody_reads()


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(medframe.__version__, prog_name="medframe")
def group() -> None:
    """Fine-tune, check and talk to Chinese medical language models, from one YAML recipe."""


def main() -> None:
    """Run the command line; exits 0, 1 for a failure while running, 2 for wrong input, 130 when interrupted."""
    # Threads that wait should sleep: spinning, as OpenMP does by default, makes a small model several times slower
    # wherever another process wants the same cores. To be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = group(standalone_mode=False)
        # Within the handlers' reach, so that a closed pipe or a full disk behind stdout is seen here.
        if sys.stdout:
            sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except medframe.MedframeError as error:
        for problem in error.args:
            click.echo(f"Error: {problem}", err=True)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        code = 130
    except BrokenPipeError:
        code = nobody_reads()
    except OSError as error:
        if error.errno is None:
            raise
        named = f"{error.filename}: " if error.filename else ""
        click.echo(f"Error: {named}{error.strerror}", err=True)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def nobody_reads() -> int:
    """The reader of our output has gone, as `| head` does; there is nobody left to tell."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
