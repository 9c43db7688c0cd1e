"""The command line: what commands there are, and how errors end them.

Exit codes: 0 done, 1 the study cannot go on (doctor: something is wrong), 2 bad usage or config,
3 storage unreachable, 4 evidence required but absent, 130 interrupted.
"""

import io
import logging
import os
import signal
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from optimizer.cli import audit, interruptions, look, train
from optimizer.errors import OptimizerError, UsageError
from optimizer.show import printing
from storage import printable, retry
from storage.errors import StorageError

app = typer.Typer(
    help="Tune the density function of weighted convolutions.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"densitune {version('densitune')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=_version),
    ] = False,
) -> None:
    """Tune the density function of weighted convolutions."""


app.command()(train.launch)
app.command()(train.check)
app.command()(train.resume)
app.command()(audit.audit)
app.command()(train.worker)
app.command("list")(look.list_studies)
app.command()(look.status)
app.command()(look.stop)
app.command()(look.delete)
app.command()(look.export)
app.command()(look.report)
app.command()(look.doctor)
app.command()(look.verify)
app.command()(look.dashboard)
app.command()(look.schema)


def main() -> None:
    """Run the command line; errors of our own end it with one line and their exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # signs that a locale lacks end no command
            stream.reconfigure(errors="backslashreplace")
    with printing.guarded():
        _run()


def _run() -> None:
    printing.log("%(message)s", logging.WARNING)
    try:
        try:
            app()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # now, so that a full disk is told in one line
    except (OptimizerError, StorageError) as error:
        code, message = error.exit_code, str(error)
    except PackageNotFoundError as error:  # run from a checkout, say: what a study records lacks
        code = UsageError.exit_code
        message = f"{error.name} is not installed; run pip install -e . in the checkout"
    except OSError as error:
        code, message = UsageError.exit_code, _unwritten(error)
    except KeyboardInterrupt:
        code, message = interruptions.INTERRUPTED, "interrupted"
    except Exception as error:
        cause = retry.source(error)  # Optuna wraps it
        if cause is None:
            raise
        code, message = StorageError.exit_code, f"PostgreSQL: {retry.first_line(cause.orig)}"
    finally:
        # What is left is short and must not be cut: the embedded server is released at exit.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    print(f"densitune: {printable.line(message)}", file=sys.stderr)
    sys.exit(code)


def _unwritten(error: OSError) -> str:
    """Return what the system refused; nothing more is written to the standard output."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    where = f"{error.filename}: " if error.filename else "output cannot be written: "
    return f"{where}{error.strerror or error}"
