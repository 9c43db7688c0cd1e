"""Optuna's tables in our database: made once, read by anybody, written in the proposer's steps.

What Optuna writes in a step is part of the step's transaction. It is stored with what we write, or
lost with it and with the lock that the transaction holds.
"""

import optuna
from optuna.storages import RDBStorage
from sqlalchemy import Connection, Engine

from storage import database, steps

optuna.logging.set_verbosity(optuna.logging.WARNING)


def make(engine: Engine) -> None:
    """Make Optuna's tables if they are not there; any number of processes may do this at once."""
    if are_there(engine):
        return
    # Optuna does not cope with several processes that make its tables at once. It takes two
    # connections for that, and one of our pool's holds the lock.
    once = engine.pool.recreate()
    with database.alone(engine, "optuna"):
        RDBStorage(_url(engine), engine_kwargs={"pool": once})
    once.dispose()


def are_there(engine: Engine) -> bool:
    """Tell whether Optuna's tables have been made."""
    return database.has_table(engine, "alembic_version")  # the last of them


def alone(engine: Engine) -> RDBStorage:
    """Return Optuna's storage as Optuna knows it, for who reads and for other tools; it has tables.

    It borrows our pool, so that a process has at most two connections whatever it does.
    """
    make(engine)
    return RDBStorage(_url(engine), engine_kwargs={"pool": engine.pool})


def joined(engine: Engine) -> "Joined | None":
    """Return Optuna's storage for transactions of ours, None if there are no tables yet."""
    return Joined(engine) if are_there(engine) else None


class Joined(RDBStorage):
    """Optuna's storage within transactions of ours, in which its commits are savepoints."""

    def __init__(self, engine: Engine) -> None:
        """Read the tables' version; they have to be there."""
        super().__init__(
            _url(engine), engine_kwargs={"pool": engine.pool}, skip_table_creation=True
        )

    def join(self, connection: Connection) -> None:
        """Write in the transaction of this connection from now on."""
        self.scoped_session = steps.sessions(connection)


def _url(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False)
