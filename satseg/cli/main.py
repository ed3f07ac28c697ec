"""The `satseg` command: a group of sub-commands, one file each, and how it ends.

Sub-commands parse, call one library function and print; heavy imports stand inside them, so that
``--help`` stays instant. Results go to stdout, logs and progress to stderr. Whatever goes wrong ends as
one line with its own exit status; a traceback is shown with ``-vv`` only.
"""

from __future__ import annotations

import codecs
import importlib
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

import click

from satseg.errors import SatsegError, UsageError

COMMANDS = {
    "info": "What a scene is: grid, CRS, bands, nodata, sensor, warnings.",
    "specs": "List, show and check documents of sensors, classes and indices.",
    "index": "Compute spectral indices such as NDVI; write a raster.",
    "train": "Learn classes from scenes and labels; write a model file.",
    "stack": "Weigh families of models trained in folds; write an ensemble.",
    "refit": "Fit thresholds and rules of a model anew; write a model file.",
    "detect": "Find what a model knows in scenes; write polygons.",
    "ensemble": "Name several models that answer as one; write a file.",
    "average": "Average the weights of models; write a model file.",
    "vote": "Find where enough layers of polygons agree, class by class.",
    "polygonize": "Turn a mask into polygons, exactly along its pixels.",
    "rasterize": "Turn polygons into a mask on a scene's grid.",
    "score": "Compare a prediction with the truth: Jaccard, F1, report.",
    "dstl": "The DSTL contest: generate, check, train, detect, submit, score.",
    "demo": "Make a scene, train, detect, export, score: the whole chain.",
    "env": "Versions, both GDALs, PROJ health, devices.",
}
TRACEBACKS = 2
"""Number of -v from which tracebacks are shown."""
NO_ARGUMENTS = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""What click (8.2 and later) raises in place of printing the help of a bare command."""


class LazyGroup(click.Group):
    """A group that imports a sub-command's module when it is used, and not for the list of all."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the work, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The sub-command, imported now; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        if "PROJ_DATA" in os.environ or "PROJ_LIB" in os.environ:
            from satseg.cli.surroundings import drop_foreign_proj

            drop_foreign_proj()
        command: click.Command = importlib.import_module(f"satseg.cli.{cmd_name}").command
        if all(param.name != "verbose" for param in command.params):
            command.params += _verbosity_options()
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


def _verbosity_options() -> list[click.Parameter]:
    """Return -v and -q, which stand before a sub-command or after it."""
    return [
        click.Option(
            ["-v", "--verbose"], count=True, expose_value=False, callback=_speak,
            help="Say more; -vv shows tracebacks.",
        ),
        click.Option(
            ["-q", "--quiet"], is_flag=True, expose_value=False, callback=_speak,
            help="Say nothing but results and errors.",
        ),
    ]  # fmt: skip


def _speak(ctx: click.Context, option: click.Parameter, value: int) -> None:
    """Add -v or -q to what was said before, and set the logs and the way defects are shown by it."""
    ctx.obj[option.name] += value
    verbose, quiet = ctx.obj["verbose"], ctx.obj["quiet"]
    steps = (logging.WARNING, logging.INFO, logging.DEBUG)
    level = logging.ERROR if quiet else steps[min(verbose, TRACEBACKS)]
    logging.getLogger("satseg").setLevel(level)
    sys.excepthook = sys.__excepthook__ if verbose >= TRACEBACKS else _defect


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from satseg import __version__

        click.echo(f"satseg {__version__}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    params=_verbosity_options(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
def cli() -> None:
    """From multispectral scenes to scored, georeferenced polygons."""


def _defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Report a defect of ours in one line; ``-vv`` keeps Python's traceback instead."""
    text = str(error).strip().splitlines()
    click.echo(
        f"satseg: error: {kind.__name__}: {text[0] if text else 'no message'} "
        "(a defect of satseg; run again with -vv to see where) [E-RUN-000]",
        err=True,
    )


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status (see `satseg.errors` for the numbers)."""
    said = {"verbose": 0, "quiet": 0}
    _write_utf8()
    with _logs_on_stderr(), _sigterm_unwinds():
        try:
            cli.main(args=args, prog_name="satseg", standalone_mode=False, obj=said)
        except SatsegError as error:
            return _failed(error, traceback=said["verbose"] >= TRACEBACKS)
        except click.ClickException as error:
            return _misused(error)
        except (KeyboardInterrupt, click.Abort):
            click.echo("satseg: stopped", err=True)
            return 128 + signal.SIGINT
        except Terminated:
            return 128 + signal.SIGTERM
        except SystemExit:  # how click leaves when the reader of stdout has gone
            return 128 + signal.SIGPIPE
    return 0


def _failed(error: SatsegError, *, traceback: bool = False) -> int:
    message = " ".join(str(error).split())
    click.echo(f"satseg: error: {message} [{error.code}]", err=True)
    if traceback:
        from traceback import print_exception

        print_exception(error)
    return error.exit_code


def _misused(error: click.ClickException) -> int:
    """Say in one line what click found wrong with the command, and where its help is."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    if isinstance(error, NO_ARGUMENTS):
        click.echo(error.format_message(), err=True)
        return UsageError.exit_code
    help_of = f"see {context.command_path} --help" if context else None
    return _failed(UsageError(error.format_message().rstrip("."), hint=help_of, code="E-USE-000"))


def _write_utf8() -> None:
    """Make stdout and stderr take every character: an ASCII locale is no reason to fail at a name."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            ascii_only = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding="utf-8" if ascii_only else None, errors="backslashreplace")


class _LowerCase(logging.Formatter):
    """``satseg: warning: ...``, like the errors."""

    def format(self, record: logging.LogRecord) -> str:
        return f"satseg: {record.levelname.lower()}: {record.getMessage()}"


@contextmanager
def _logs_on_stderr() -> Iterator[None]:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LowerCase())
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


class Terminated(BaseException):
    """SIGTERM arrived; unwinds the stack so that half-written files are removed."""


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # cleaning up is not to be interrupted
    raise Terminated


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
