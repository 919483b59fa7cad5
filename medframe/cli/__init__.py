"""The command line: one file per verb, imported when that verb is called."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click

import medframe
from medframe import worker, world

VERBS = {
    "run": "run",
    "check": "check",
    "bench": "bench",
    "preview": "preview",
    "chat": "chat",
    "generate": "generate",
    "serve": "serve",
    "merge": "merge",
    "evaluate": "evaluate",
    "report": "report",
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
@click.option("--local_rank", "--local-rank", "local_rank", hidden=True, help="Given by deepspeed's launcher.")
def group(local_rank: str | None) -> None:
    """Fine-tune, check and talk to Chinese medical language models, from one YAML recipe."""


def main() -> None:
    """Run the command line; exits 0, 1 for a failure while running, 2 for wrong input, 130 when interrupted,

    143 when terminated.
    """
    # Threads that wait should sleep: spinning, as OpenMP does by default, makes a small model several times slower
    # wherever another process wants the same cores. To be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Importing torch and transformers makes half a million objects that stay. Looking among them for garbage after
    # every 700 took a fifth of the start.
    gc.set_threshold(10_000)
    try:
        with _sigterm_raises():
            worker.start()
            code, said = _ended()
    except BaseException:
        if not world.is_launched():
            raise
        code, said = 1, traceback.format_exc()
    worker.tell(code, said, world.current().follows)
    if world.is_launched() or world.current().left:
        # What a process group leaves behind may abort an ordinary exit, or wait for ever.
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _ended() -> tuple[int, str]:
    """Run the command; its exit code, and what is to be said of it."""
    try:
        code = group(standalone_mode=False)
        # Within the handlers' reach, so that a closed pipe or a full disk behind stdout is seen here.
        if sys.stdout:
            sys.stdout.flush()
        return (code if isinstance(code, int) else 0), ""
    except click.ClickException as error:
        error.show()
        return error.exit_code, ""
    except medframe.MedframeError as error:
        return error.exit_code, "\n".join(f"Error: {problem}" for problem in error.args)
    except (click.Abort, KeyboardInterrupt):
        return 130, "Interrupted."
    except medframe.Terminated:
        return 143, "Terminated."
    except BrokenPipeError:
        return nobody_reads(), ""
    except OSError as error:
        if error.errno is None:
            raise
        named = f"{error.filename}: " if error.filename else ""
        return 1, f"Error: {named}{error.strerror}"


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Have SIGTERM unwind what is at work, as Ctrl-C does, so that nothing is left half-done."""

    def terminate(*_: object) -> None:
        raise medframe.Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def nobody_reads() -> int:
    """The reader of our output has gone, as `| head` does; there is nobody left to tell."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
