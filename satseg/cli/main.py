"""The `satseg` command: a group of sub-commands, one file each, and how it ends.

Sub-commands parse, call one library function and print; heavy imports stand inside them, so that
``--help`` stays instant. Results go to stdout, logs and progress to stderr. Every SatsegError ends as
one line with its own exit status; a traceback is shown with ``-vv`` only.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

import click

from satseg.errors import SatsegError

COMMANDS = {
    "info": "What a scene is: grid, CRS, bands, nodata, sensor, warnings.",
    "specs": "List, show and check sensor and class documents.",
    "train": "Learn classes from scenes and labels; write a model file.",
    "detect": "Find what a model knows in scenes; write polygons.",
    "polygonize": "Turn a mask into polygons, exactly along its pixels.",
    "rasterize": "Turn polygons into a mask on a scene's grid.",
    "score": "Compare a prediction with the truth: Jaccard, F1, report.",
    "demo": "Make a scene, train, detect, export, score: the whole chain.",
    "env": "Versions, both GDALs, PROJ health, devices.",
}
VERBOSE = 2
"""Number of -v from which tracebacks are shown."""


class LazyGroup(click.Group):
    """A group that imports a sub-command's module when it is used, and not for the list of all."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the work, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The sub-command, imported now; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"satseg.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list from `COMMANDS`, importing nothing."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        """Find the sub-command; an unknown one is answered with the nearest."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            ctx.fail(f"no command {args[0]!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from satseg import __version__

        click.echo(f"satseg {__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("-v", "--verbose", count=True, help="Say more; -vv shows tracebacks.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but results and errors.")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version.")
@click.pass_context
def cli(ctx: click.Context, verbose: int, quiet: bool) -> None:
    """From multispectral scenes to scored, georeferenced polygons."""
    ctx.obj = {"verbose": verbose, "quiet": quiet}
    level = logging.ERROR if quiet else logging.DEBUG if verbose > 1 else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="satseg: %(levelname)s: %(message)s", stream=sys.stderr, force=True)
    logging.getLogger("satseg").setLevel(level)
    if verbose < VERBOSE:
        sys.excepthook = _one_line


def _one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Report a defect of ours in one line; ``-vv`` keeps Python's traceback instead."""
    text = str(error).strip().splitlines()
    click.echo(
        f"satseg: error: {kind.__name__}: {text[0] if text else 'no message'} "
        "(a defect of satseg; run again with -vv to see where) [E-RUN-000]",
        err=True,
    )


class Terminated(BaseException):
    """SIGTERM arrived; unwinds the stack so that half-written files are removed."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status (see `satseg.errors` for the numbers)."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        result = cli.main(args=args, prog_name="satseg", standalone_mode=False)
    except SatsegError as error:
        return _failed(error)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("satseg: stopped", err=True)
        return 128 + signal.SIGINT
    except Terminated:
        return 128 + signal.SIGTERM
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return result if isinstance(result, int) else 0


def _failed(error: SatsegError) -> int:
    message = " ".join(str(error).split())
    click.echo(f"satseg: error: {message} [{error.code}]", err=True)
    context = click.get_current_context(silent=True)
    verbose = "-vv" in sys.argv if context is None else context.obj["verbose"] >= VERBOSE
    if verbose:
        import traceback

        traceback.print_exception(error)
    return error.exit_code
