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
    create_engine,
    event,
    inspect,
    make_url,
    text,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, ProgrammingError

from storage import exposure
from storage.errors import StorageError, StorageUnreachableError, StorageUrlError
from storage.retry import first_line

CONNECTIONS = 2
"""How many a process keeps at most."""

FORM = "postgresql://user:password@host:5432/database"
DRIVER = "postgresql+psycopg2"
SCHEMES = ("postgres", "postgresql", DRIVER)

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
}

log = logging.getLogger("densitune.storage")

UNDEFINED_TABLE = "42P01"  # PostgreSQL's error code


def connect(url: str, revive: Callable[[], bool] | None = None) -> Engine:
    """Return an engine for the server at `url`, having connected once.

    Whenever a connection fails from now on, `revive` may start the server, and says whether to try
    once more. StorageUrlError if the URL cannot be used, StorageUnreachableError if no connection
    comes about.
    """
    parsed = _parse(url)
    options = " ".join(f"-c {name}={value}" for name, value in SETTINGS.items())
    engine = create_engine(
        parsed.set(drivername=DRIVER),
        pool_size=CONNECTIONS,
        max_overflow=0,
        pool_pre_ping=True,
        pool_recycle=1800,
        connect_args={**CONNECT_ARGUMENTS, **exposure.requirement(parsed), "options": options},
    )
    if revive is not None:
        _revive_with(engine, revive)
    try:
        with engine.connect() as connection:
            _warn_of_exposure(connection)
        return engine
    except ProgrammingError as error:  # libpq did not understand a parameter
        engine.dispose()
        raise StorageUrlError(
            f"storage URL {masked(url)}: {_reason(error)}; the form is {FORM}"
        ) from error
    except DBAPIError as error:
        engine.dispose()
        raise unreachable(url, error) from error


def masked(url: str) -> str:
    """Return the URL with *** in place of the password, fit for messages and logs."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return "(unreadable URL)"
    secrets = [name for name in parsed.query if name.endswith("password")]  # sslpassword too
    parsed = parsed.update_query_dict(dict.fromkeys(secrets, "***"))
    return parsed.render_as_string(hide_password=True)


def with_password(url: str, password: str) -> str:
    """Return the URL with a password; one that cannot be read stays as it is."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return url  # what is wrong with it is said where it is used
    return parsed.set(password=password).render_as_string(hide_password=False)


def unreachable(url: str, error: DBAPIError) -> StorageError:
    """Return the one-line error for what the driver raised while talking to `url`."""
    parsed = _parse(url)
    code = getattr(error.orig, "pgcode", None)
    if code is not None and not code.startswith(("08", "57P")):  # 08: connection, 57P: shutdown
        return StorageError(f"PostgreSQL at {_place(parsed)} refused ({code}): {_reason(error)}")
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
    return StorageUnreachableError(
        f"cannot reach PostgreSQL at {_place(parsed)}: {reason}; {advice}"
    )


@contextmanager
def translated(engine: Engine) -> Iterator[None]:
    """Turn what the driver raises inside into a StorageError."""
    try:
        yield
    except DBAPIError as error:
        raise unreachable(engine.url.render_as_string(hide_password=False), error) from error


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
            f"the database at {_place(engine.url)} has schema revision {stored.revision}, which "
            f"this densitune (up to {stored.newest}) does not know; update densitune"
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


def _warn_of_exposure(connection: Connection) -> None:
    driver: Any = connection.connection.driver_connection
    if complaint := exposure.complaint(driver.info.host, driver.info.dsn_parameters):
        log.warning("%s", complaint)


def _parse(url: str) -> URL:
    """Parse a storage URL; StorageUrlError, without its text, if that fails."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Without the cause: it may quote the password.
        raise StorageUrlError(f"the storage URL cannot be read; the form is {FORM}") from None
    if "@" in (parsed.host or ""):  # the rest of a password, which no message may show
        raise StorageUrlError(
            f"the storage URL has more than one @; write %40 for one in a password, the form is "
            f"{FORM}"
        )
    if parsed.drivername not in SCHEMES:
        raise StorageUrlError(
            f"storage URL {masked(url)} has the scheme {parsed.drivername}; densitune stores in "
            f"PostgreSQL, and the form is {FORM}"
        )
    return parsed


def _place(url: URL) -> str:
    """Return where a URL points: host and port, or the folder of a socket."""
    host = url.host or url.query.get("host") or "localhost"
    hosts = host if isinstance(host, str) else ", ".join(host)
    return f"socket {hosts}" if hosts.startswith("/") else f"{hosts}:{url.port or 5432}"


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
