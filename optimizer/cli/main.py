"""The command line: what commands there are, and how errors end them.

Exit codes: 0 done, 1 the study cannot go on (doctor: something is wrong), 2 bad usage or config,
3 storage unreachable, 4 evidence required but absent, 130 interrupted.
"""

import signal
import sys

import typer
from sqlalchemy.exc import DBAPIError

from optimizer.cli import look, train
from optimizer.errors import OptimizerError
from storage.errors import StorageError
from storage.retry import first_line

app = typer.Typer(
    help="Tune the density function of weighted convolutions.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(train.launch)
app.command()(train.resume)
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
    try:
        app()
    except (OptimizerError, StorageError) as error:
        code, message = error.exit_code, str(error)
    except DBAPIError as error:
        code, message = StorageError.exit_code, f"PostgreSQL: {first_line(error.orig)}"
    except KeyboardInterrupt:
        code, message = 130, "interrupted"
    finally:
        # What is left is short and must not be cut: the embedded server is released at exit.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    print(f"densitune: {message}", file=sys.stderr)
    sys.exit(code)
