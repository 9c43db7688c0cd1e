"""The embedded PostgreSQL of this machine's user: started on demand, stopped by its last user.

Every process that uses the server holds a shared `flock` on `postgresql.users`, which the kernel
takes back whatever becomes of the process. Whoever leaves tries to make its lock exclusive: success
means that nobody else is left, and the server is stopped. Joining and leaving are serialised by a
second lock, `postgresql.lock`. A server whose users were all killed stays, and is found again.
"""

import atexit
import fcntl
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from storage import postmaster
from storage.errors import StorageError

_users: dict[Path, int] = {}  # home -> descriptor that holds our shared lock
_threads = threading.Lock()


def embedded_url(home: Path) -> str:
    """Start or join the server whose data lives in `home/postgresql`; return its SQLAlchemy URL.

    The server stays up at least until this process ends or calls `release`. StorageError if the
    folder cannot be used or the server does not start.
    """
    home = home.expanduser().resolve()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _threads, _transition(home):
            socket_folder = _enter(home)
    except OSError as error:
        raise StorageError(
            f"cannot use the data folder {home}: {error.strerror or error}; set DENSITUNE_HOME to "
            "a folder on a local disk that you may write to, or name a server with --storage"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise StorageError(
            f"PostgreSQL did not start within {error.timeout:.0f} s; its log is "
            f"{postmaster.log_of(data_folder(home))}"
        ) from error
    return (
        f"postgresql+psycopg2://{postmaster.SUPERUSER}@/{postmaster.DATABASE}"
        f"?host={quote(str(socket_folder), safe='')}&port={postmaster.PORT}"
    )


def data_folder(home: Path) -> Path:
    """Return where the server keeps its data."""
    return home / "postgresql"


@atexit.register
def release() -> None:
    """Stop using the server, and stop it if nobody else uses it. Happens by itself at exit."""
    with _threads:
        while _users:
            home, lock = _users.popitem()
            # OSError: the folder is gone, or another process holds its lock, or stopping failed.
            # The server then gives up by itself or is found by the next user.
            with suppress(OSError, subprocess.SubprocessError), _transition(home):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                postmaster.stop(data_folder(home))
            os.close(lock)


def _enter(home: Path) -> Path:
    """Become a user of the server and return the folder of its socket."""
    newcomer = home not in _users
    if newcomer:
        _users[home] = _open(home / "postgresql.users")
    try:
        fcntl.flock(_users[home], fcntl.LOCK_SH)
        data = data_folder(home)
        return postmaster.join(data) or postmaster.start(data)
    except BaseException:
        if newcomer:
            os.close(_users.pop(home))
        raise


@contextmanager
def _transition(home: Path) -> Iterator[None]:
    """Keep every other process from starting or stopping the server meanwhile."""
    lock = _open(home / "postgresql.lock")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)  # explicitly: a child forked meanwhile has it open too
        os.close(lock)


def _open(lock: Path) -> int:
    return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _forget() -> None:
    """Drop, in a forked child, the lock that is its parent's to hold and to release."""
    while _users:
        os.close(_users.popitem()[1])


os.register_at_fork(after_in_child=_forget)
