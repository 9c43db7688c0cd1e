"""The proposer's steps: transactions that hold its role for a study.

All that a step writes, Optuna's tables included, is part of its transaction. So who loses the role
(with the connection, for instance) loses what it has written, and nobody finds half a step.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from psycopg2 import Error as DriverError
from sqlalchemy import Connection, Engine, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker

SPEAK_SECONDS = 30.0
"""Between two signs of life in a step that takes long: several to database.SETTINGS' limit for
transactions in which nothing happens."""


def may_propose(engine: Engine) -> bool:
    """Tell whether this connection's role may add trials; a worker's may not (storage.roles)."""
    query = text("SELECT has_table_privilege('densitune.trials', 'INSERT')")
    with engine.connect() as connection:
        return bool(connection.scalar(query))


@contextmanager
def begun(engine: Engine, study_id: int) -> Iterator[Connection | None]:
    """Yield an open transaction that holds the proposer's role for the study, or None if taken.

    The role lasts as long as the transaction, which commits at the end and rolls back on an error.
    """
    query = text("SELECT pg_try_advisory_xact_lock(hashtextextended(:name, 0))")
    with engine.begin() as connection:
        if not connection.scalar(query, _role(study_id)):
            yield None
            return
        with _awake(connection):
            yield connection


@contextmanager
def awaited(engine: Engine, study_id: int) -> Iterator[Connection]:
    """Yield the same, once whoever is at a step has ended it."""
    query = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")
    with engine.begin() as connection:
        # A proposal may take a minute, and to delete a large study takes longer than a statement.
        connection.execute(text("SET LOCAL lock_timeout = '2min'; SET LOCAL statement_timeout = 0"))
        connection.execute(query, _role(study_id))
        yield connection


@contextmanager
def one_moment(engine: Engine) -> Iterator[Connection]:
    """Yield a transaction that sees everything as it is at its first query, between two steps."""
    with engine.connect() as connection:
        options = connection.execution_options(isolation_level="REPEATABLE READ")
        with options.begin():
            yield options


def sessions(connection: Connection) -> scoped_session[Session]:
    """Return sessions within a connection's transaction: what they commit is stored with it.

    They fail once the connection is lost, or the transaction over.
    """
    return scoped_session(sessionmaker(bind=connection, join_transaction_mode="create_savepoint"))


def _role(study_id: int) -> dict[str, Any]:
    return {"name": f"densitune proposer {study_id}"}


@contextmanager
def _awake(connection: Connection) -> Iterator[None]:
    """Keep a transaction from counting as idle while its process thinks.

    A Gaussian process may take longer for a proposal than an idle transaction may last. If the
    process is suspended, or its host has vanished, the transaction ends and the role is free.
    """
    driver = connection.connection.driver_connection
    assert driver is not None
    end = threading.Event()

    def speak() -> None:
        while not end.wait(SPEAK_SECONDS):
            # Threads may share a psycopg2 connection: it sends one statement after the other. What
            # is wrong with the connection, the step's own statements will meet.
            with suppress(DriverError), driver.cursor() as cursor:
                cursor.execute("SELECT 1")

    speaker = threading.Thread(target=speak, name="awake", daemon=True)
    speaker.start()
    try:
        yield
    finally:
        end.set()
        speaker.join()
