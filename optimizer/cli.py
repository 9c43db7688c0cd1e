"""The command line: what commands there are, and how errors end them.

Exit codes: 0 done, 1 the study cannot go on (doctor: something is wrong), 2 bad usage or config,
3 storage unreachable, 4 evidence required but absent, 130 interrupted.
"""

import signal
import sys

import typer
from sqlalchemy.exc import DBAPIError

from optimizer import run_commands, study_commands
from optimizer.errors import EvidenceError, StudyFailedError, UsageError
from storage.errors import StorageError

app = typer.Typer(
    help="Tune the density function of weighted convolutions.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(run_commands.launch)
app.command()(run_commands.resume)
app.command()(run_commands.worker)
app.command("list")(study_commands.list_studies)
app.command()(study_commands.status)
app.command()(study_commands.stop)
app.command()(study_commands.delete)
app.command()(study_commands.export)
app.command()(study_commands.report)
app.command("doctor")(study_commands.examine)
app.command()(study_commands.verify)
app.command()(study_commands.dashboard)


def main() -> None:
    """Run the command line; errors of our own end it with one line and their exit code."""
    try:
        app()
    except (UsageError, StudyFailedError, EvidenceError, StorageError) as error:
        code, message = error.exit_code, str(error)
    except DBAPIError as error:
        code, message = StorageError.exit_code, f"PostgreSQL: {str(error.orig).splitlines()[0]}"
    except KeyboardInterrupt:
        code, message = 130, "interrupted"
    finally:
        # What is left is short and must not be cut: the embedded server is released at exit.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    print(f"densitune: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
