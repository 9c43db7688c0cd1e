"""Trying again, knowingly: which errors pass by themselves, and how long to wait meanwhile.

Whoever uses this knows that its statement may be repeated: a commit whose acknowledgement was lost
has happened, and happens again. Every statement of `jobs`, `ledger` and `roster` says so of itself.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
    TimeoutError,
)

from storage.errors import StorageUnreachableError

FIRST_WAIT, LONGEST_WAIT = 1.0, 20.0
"""Seconds between two attempts; the wait doubles. With the five seconds that connecting may take,
the longest is short enough for everybody to be back within half a minute of the server."""

OUTAGE_SECONDS = 3600.0
"""How long whoever is not told otherwise waits for a storage that is away."""

# PostgreSQL's error codes, appendix A of its manual.
PASSING_CLASSES = (
    "08",  # the connection failed
    "53",  # the server has no connection, memory or disk left
    "57",  # shutdown, crash, starting up; a statement took too long
)
PASSING_CODES = (
    "25006",  # read-only: a standby that is about to take over
    "25P03",  # the transaction was idle for too long
    "40001",  # serialisation
    "40P01",  # deadlock
    "55P03",  # a lock took too long
)

# Nothing that a statement brings along can be blamed for these.
DATABASE_CLASSES = (
    "25",  # the transaction is read-only, or has failed before
    "28",  # nobody of this name and password
    "3D", "3F",  # no such database, no such schema
    "42",  # no such table, or no right to it
    "55",  # a setting or an object is in the way
    "58", "F0", "XX",  # a fault outside or within the server
)  # fmt: skip

Result = TypeVar("Result")

log = logging.getLogger("densitune.storage")


def is_passing(error: BaseException | None) -> bool:
    """Tell whether an error, or one that caused it, means a server that is away or overloaded.

    Optuna and `storage.database` wrap the driver's errors. What the driver raises while connecting
    has no code; all of it counts as passing, a wrong password too: whoever waits has a limit.
    """
    while error is not None:
        # All connections of this process are busy, or the one that it went on with was just lost.
        if isinstance(error, TimeoutError | PendingRollbackError):
            return True
        if isinstance(error, DBAPIError):
            code = getattr(error.orig, "pgcode", None)
            if code is None:
                connection = isinstance(error, OperationalError | InterfaceError)
                return connection or error.connection_invalidated
            return code.startswith(PASSING_CLASSES) or code in PASSING_CODES
        error = error.__cause__
    return False


def source(error: BaseException) -> DBAPIError | None:
    """Return the driver's error that caused this one, if there is one: Optuna wraps it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DBAPIError):
        cause = cause.__cause__
    return cause


def is_of_the_database(error: BaseException) -> bool:
    """Tell whether an error would meet any other statement too, until somebody mends the server."""
    code = getattr(error.orig, "pgcode", None) if isinstance(error, DBAPIError) else None
    return code is not None and code.startswith(DATABASE_CLASSES)


def waits(uniform: Callable[[float, float], float] = random.uniform) -> Iterator[float]:
    """Yield, for ever, the seconds to wait before each further attempt.

    The later half of an interval that doubles is drawn from, so that workers who lost the server
    at the same moment do not all come back at the same moment.
    """
    longest = FIRST_WAIT
    while True:
        yield uniform(longest / 2, longest)
        longest = min(2 * longest, LONGEST_WAIT)


def persist(
    attempt: Callable[[], Result],
    limit_seconds: float,
    *,
    pause: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    uniform: Callable[[float, float], float] = random.uniform,
) -> Result:
    """Return the attempt's result, trying again as long as it fails for a passing reason.

    The last error comes through after `limit_seconds`, any other error at once. `pause` waits for
    so many seconds; if it returns something true (an event's `wait`), there is no further attempt.
    """
    deadline, pauses = clock() + limit_seconds, waits(uniform)
    while True:
        try:
            return attempt()
        except Exception as error:
            seconds = next(pauses)
            if not is_passing(error) or clock() + seconds > deadline:
                raise
            said = first_line(source(error) or error)
            log.warning("storage is away, trying again in %.0f s: %s", seconds, said)
            if pause(seconds):
                raise


def patiently(
    attempt: Callable[[], Result],
    limit_seconds: float,
    advice: str,
    *,
    pause: Callable[[float], object] = time.sleep,
) -> Result:
    """Return the attempt's result, trying again while the storage is away: see `persist`.

    StorageUnreachableError after `limit_seconds`, or when `pause` says so; `advice` ends it.
    """
    try:
        return persist(attempt, limit_seconds, pause=pause)
    except Exception as error:
        if not is_passing(error):
            raise
        raise StorageUnreachableError(
            f"PostgreSQL was away for {limit_seconds:.0f} s: {first_line(source(error) or error)}; "
            f"{advice}"
        ) from error


def first_line(error: BaseException | None) -> str:
    """Return what an error says before it quotes statements and hints, or else its name."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip()
