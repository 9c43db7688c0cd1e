"""The embedded PostgreSQL of this machine's user: started on demand, stopped by its last user.

Every process that uses the server holds a shared `flock` on `postgresql.users`, which the kernel
takes back whatever becomes of the process. Whoever leaves tries to make its lock exclusive: success
means that nobody else is left, and the server is stopped. Joining and leaving are serialised by a
second lock, `postgresql.lock`. A server whose users were all killed stays, and is found again.
"""

import atexit
import fcntl
import logging
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from storage import postmaster
from storage.errors import StorageError
from storage.programs import ignore_environment


class _Use(NamedTuple):
    """What this process holds of a server that it uses."""

    lock: int
    """The descriptor that holds our shared lock."""
    socket: str
    """The socket's folder, valid as long as `kept` is open."""
    kept: ExitStack


log = logging.getLogger("densitune.storage")

_uses: dict[Path, _Use] = {}  # by data folder
_threads = threading.Lock()


def embedded_url(home: Path) -> str:
    """Start or join the server whose data lives in `home/postgresql`; return its SQLAlchemy URL.

    The server stays up at least until this process ends or calls `release`; if it was killed,
    another call starts it again. StorageError if the folder cannot be used, if the server does not
    start, or if it cannot be told whether one runs.
    """
    ignore_environment()
    data = data_folder(home)
    try:
        with _threads:
            if data in _uses:
                _check_place(data, _uses[data])
            else:
                data.parent.mkdir(parents=True, exist_ok=True)
            with _transition(data):
                folder = _enter(data)
    except OSError as error:
        raise StorageError(
            f"cannot use the data folder {home}: {error.strerror or error}; set DENSITUNE_HOME to "
            "a folder on a local disk that you may write to, or name a server with --storage"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise StorageError(
            f"PostgreSQL did not start within {error.timeout:.0f} s; its log is "
            f"{postmaster.log_of(data)}"
        ) from error
    return (
        f"postgresql+psycopg2://{postmaster.SUPERUSER}@/{postmaster.DATABASE}"
        f"?host={quote(folder, safe='')}&port={postmaster.PORT}"
    )


def revive(home: Path) -> bool:
    """Start the server again if nobody is at its socket; tell whether that was so and is mended."""
    if postmaster.listening(data_folder(home)):
        return False  # it refuses by itself, and says why
    try:
        embedded_url(home)
    except StorageError as error:
        log.warning("%s", error)
        return False
    return True


def was_killed(home: Path) -> bool:
    """Tell whether the server's process ended without shutting down; False if it is not ours."""
    data = data_folder(home)
    try:
        with _transition(data):
            return postmaster.was_killed(data)
    except OSError:
        return False


def data_folder(home: Path) -> Path:
    """Return where the server keeps its data, the same for all names of the folder."""
    return (home.expanduser().resolve() / "postgresql").resolve()


@atexit.register
def release() -> None:
    """Stop using the server, and stop it if nobody else uses it. Happens by itself at exit."""
    with _threads:
        while _uses:
            data, use = _uses.popitem()
            # The folder is gone, or another process holds its lock, or stopping failed. The server
            # then gives up by itself or is found by the next user.
            with suppress(OSError, StorageError), _transition(data):
                _check_place(data, use)
                fcntl.flock(use.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                postmaster.stop(data)
            use.kept.close()


def _enter(data: Path) -> str:
    """Become a user of the server and return the folder of its socket."""
    use = _uses.get(data)
    if use is not None:
        if not postmaster.join(data):
            postmaster.start(data)
        return use.socket
    with ExitStack() as kept:
        lock = _open(_users(data))
        kept.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not postmaster.join(data):
            postmaster.start(data)
        folder = kept.enter_context(postmaster.socket_folder(data))
        _uses[data] = _Use(lock, folder, kept.pop_all())
    return folder


def _check_place(data: Path, use: _Use) -> None:
    """Raise StorageError if the folder that this process uses was moved, and perhaps replaced."""
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(use.lock), _users(data).stat()):
            return
    raise StorageError(
        f"{data} was moved or replaced while this process used it; move it back, or end this "
        "command and set DENSITUNE_HOME to its new place"
    )


@contextmanager
def _transition(data: Path) -> Iterator[None]:
    """Keep every other process from starting or stopping the server meanwhile."""
    lock = _open(data.with_name(f"{data.name}.lock"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)  # explicitly: a child forked meanwhile has it open too
        os.close(lock)


def _users(data: Path) -> Path:
    return data.with_name(f"{data.name}.users")


def _open(lock: Path) -> int:
    return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _forget() -> None:
    """Drop, in a forked child, what is its parent's to hold and to release."""
    while _uses:
        _uses.popitem()[1].kept.close()


os.register_at_fork(after_in_child=_forget)
