"""Connections to PostgreSQL, and the schema in it.

Every process keeps few connections. Nothing waits for ever: connecting, a lock, a
statement and a forgotten transaction all have a time limit.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg2 import OperationalError
from sqlalchemy import (
    URL,
    Connection,
    Dialect,
    Engine,
    ExceptionContext,
    create_engine,
    event,
    inspect,
    text,
)
from sqlalchemy.exc import DBAPIError, ProgrammingError

from storage import addresses, exposure
from storage.errors import (
    StorageError,
    StorageUnreachableError,
    StorageUrlError,
    UnreadableError,
)
from storage.retry import first_line

CONNECTIONS = 2
"""How many a process keeps at most."""

# Milliseconds, but for connect_timeout and keepalives (seconds). The longest frees the proposer's
# role (storage.steps) if its process is suspended or its host vanishes.
SETTINGS = {
    # Where Optuna keeps its tables. A user named densitune would look into our schema first.
    "search_path": "public",
    "timezone": "UTC",
    "lock_timeout": 5_000,
    "statement_timeout": 30_000,
    "idle_in_transaction_session_timeout": 120_000,
}
CONNECT_ARGUMENTS: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "application_name": "densitune",
    "client_encoding": "UTF8",
}

log = logging.getLogger("densitune.storage")

UNDEFINED_TABLE = "42P01"  # PostgreSQL's error code


def connect(
    url: str, revive: Callable[[], bool] | None = None, password: str | None = None
) -> Engine:
    """Return an engine for the server at `url`, having connected once.

    Whenever a connection fails from now on, `revive` may start the server, and says whether to try
    once more. A password takes the place of the URL's own. StorageUrlError if the URL cannot be
    used, StorageUnreachableError if no connection comes about, StorageError if the database cannot
    hold every text.
    """
    parsed = addresses.parse(url, password)
    engine = create_engine(
        parsed,
        pool_size=CONNECTIONS,
        max_overflow=0,
        pool_pre_ping=True,
        pool_recycle=1800,
        connect_args=_arguments(parsed),
    )
    event.listen(engine, "handle_error", _name_unreadable)
    if revive is not None:
        _revive_with(engine, revive)
    try:
        with engine.connect() as connection:
            _check_encoding(connection, parsed)
            _warn_of_exposure(connection)
        return engine
    except DBAPIError as error:
        engine.dispose()
        if _is_misunderstood(error):
            # Without the cause: who waits for the server would wait for ever.
            raise StorageUrlError(
                f"storage URL {addresses.masked(url)}: {_reason(error)}; the form is "
                f"{addresses.FORM}"
            ) from None
        raise unreachable(parsed, error) from error


def _is_misunderstood(error: DBAPIError) -> bool:
    """Tell whether libpq, before any server was asked, found something wrong with a parameter."""
    return isinstance(error, ProgrammingError) or _reason(error).startswith("invalid ")


def _arguments(url: URL) -> dict[str, Any]:
    """Return what libpq is told beside a URL, whose own parameters come first."""
    options = " ".join(f"-c {name}={value}" for name, value in SETTINGS.items())
    own = {**CONNECT_ARGUMENTS, **exposure.requirement(url)}
    wanted = {name: value for name, value in own.items() if name not in url.query}
    return {**wanted, "options": f"{options} {url.query.get('options', '')}".strip()}


def _check_encoding(connection: Connection, url: URL) -> None:
    driver: Any = connection.connection.driver_connection
    encoding = driver.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise StorageError(
            f"the database at {addresses.place(url)} has the encoding {encoding}, which cannot "
            "hold every text; make one with CREATE DATABASE name ENCODING 'UTF8' TEMPLATE "
            "template0, and name that in the storage URL"
        )


def unreachable(url: URL, error: DBAPIError) -> StorageError:
    """Return the one-line error for what the driver raised while talking to `url`."""
    place = addresses.place(url)
    code = getattr(error.orig, "pgcode", None)
    if code is not None and not code.startswith(("08", "57P")):  # 08: connection, 57P: shutdown
        return StorageError(f"PostgreSQL at {place} refused ({code}): {_reason(error)}")
    reason = _reason(error)
    advice = (
        "check that the server is up and that user, password and database are right (--storage, "
        "DENSITUNE_STORAGE)"
    )
    if reason.startswith("authentication method requirement"):
        advice = (
            "it was sent no password; have the server ask by SCRAM, or, if you trust it and the "
            "network, name what it may ask for in the URL: require_auth=password, md5 or none"
        )
    return StorageUnreachableError(f"cannot reach PostgreSQL at {place}: {reason}; {advice}")


@contextmanager
def translated(engine: Engine) -> Iterator[None]:
    """Turn what the driver raises inside into a StorageError."""
    try:
        yield
    except DBAPIError as error:
        raise unreachable(engine.url, error) from error


@dataclass(frozen=True)
class Schema:
    """Which revision of the schema a database has, beside those that this program knows."""

    revision: str | None
    """None if the database holds nothing of ours yet."""
    known: frozenset[str]
    newest: str


def schema(engine: Engine) -> Schema:
    """Return what is to be known of the schema; one query."""
    script = ScriptDirectory.from_config(_alembic())
    newest = script.get_current_head()
    assert newest is not None  # there are migrations
    known = frozenset(migration.revision for migration in script.walk_revisions())
    return Schema(_revision(engine), known, newest)


def prepare(engine: Engine) -> None:
    """Bring the schema to the newest revision; costs one query when it is there already.

    Any number of processes may do this at once, on an empty database too. StorageError if the
    database is newer than this program.
    """
    with translated(engine):
        stored = schema(engine)
    if stored.revision == stored.newest:
        return
    if stored.revision is not None and stored.revision not in stored.known:
        raise StorageError(
            f"the database at {addresses.place(engine.url)} has schema revision {stored.revision}, "
            f"which this densitune (up to {stored.newest}) does not know; update densitune"
        )
    config = _alembic()
    with translated(engine), alone(engine, "migrations") as connection:
        connection.execute(text("CREATE SCHEMA IF NOT EXISTS densitune"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def has_table(engine: Engine, name: str) -> bool:
    """Tell whether there is a table of this name where Optuna keeps its own."""
    return inspect(engine).has_table(name)


@contextmanager
def alone(engine: Engine, what: str) -> Iterator[Connection]:
    """Yield an open transaction that no other process has for `what`, once that is so."""
    with engine.begin() as connection:
        # Waiting for another process may take longer than a lock usually may.
        connection.execute(text("SET LOCAL lock_timeout = '5min'; SET LOCAL statement_timeout = 0"))
        connection.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"),
            {"name": f"densitune {what}"},
        )
        yield connection


def _revive_with(engine: Engine, revive: Callable[[], bool]) -> None:
    @event.listens_for(engine, "do_connect")
    def connect_twice(dialect: Dialect, _: object, arguments: Any, named: Any) -> Any:
        try:
            return dialect.connect(*arguments, **named)
        except OperationalError:
            if not revive():
                raise
        return dialect.connect(*arguments, **named)


def _name_unreadable(context: ExceptionContext) -> None:
    """Let a row that the driver cannot read be an error of the storage, not of the program."""
    fetching = context.statement is None
    if fetching and isinstance(context.original_exception, ValueError | RecursionError):
        reason = first_line(context.original_exception)
        raise UnreadableError(f"a stored value cannot be read: {reason}")


def _warn_of_exposure(connection: Connection) -> None:
    driver: Any = connection.connection.driver_connection
    if complaint := exposure.complaint(driver.info.host, driver.info.dsn_parameters):
        log.warning("%s", complaint)


def _reason(error: DBAPIError) -> str:
    """Return what PostgreSQL or libpq said, in one line."""
    # libpq reports every address it tried, and what went wrong after "failed: ".
    lines = str(error.orig).splitlines()
    tried = [line.partition(" failed: ")[2] for line in lines if " failed: " in line]
    return (tried[-1] if tried else first_line(error.orig)).removeprefix("FATAL:").strip()


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", "storage:migrations")
    return config


def _revision(engine: Engine) -> str | None:
    """Return the schema's revision, or None if there is no schema yet."""
    query = text("SELECT version_num FROM densitune.alembic_version")
    try:
        with engine.connect() as connection:
            revision: str | None = connection.scalar(query)
            return revision
    except ProgrammingError as error:
        if getattr(error.orig, "pgcode", None) == UNDEFINED_TABLE:
            return None
        raise
