"""Whether a PostgreSQL server lives on a data folder, wherever that server may be.

A server holds an exclusive `flock` on the folder's file PG_VERSION: it inherits the lock from
whoever started it, and so do all its processes. The kernel keeps the lock until the last of them
has ended, by the file itself and not by its path, and shows it in every container of the host. A
copy of the folder has a file of its own, which nobody holds. Process ids, paths and the reach of a
socket differ from one container to the next, so nothing is concluded from them
alone.
"""

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.errors import StorageError

MARK = "PG_VERSION"  # every data folder has it, and nobody replaces it
PID_FILE = "postmaster.pid"

_held: set[int] = set()


def occupied(data: Path) -> bool:
    """Tell whether a server lives on the folder."""
    try:
        mark = _open(data)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(mark, fcntl.LOCK_UN)  # explicitly: a child forked meanwhile has it open too
    except BlockingIOError:
        return True
    finally:
        os.close(mark)
    return _is_at_home(data)


@contextmanager
def occupation(data: Path) -> Iterator[int]:
    """Hold the lock for a server that is about to start; yield the descriptor that it inherits.

    StorageError if another server lives on the folder.
    """
    mark = _open(data)
    _held.add(mark)
    try:
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # under two homes that share the folder
            raise StorageError(
                f"another PostgreSQL server is starting on {data}; run the command again"
            ) from None
        _host_note(data).write_text(_this_host())
        yield mark
    finally:
        _held.discard(mark)
        os.close(mark)


def refuse_other_host(data: Path) -> None:
    """Raise StorageError if the server may be running on another host that shares the folder.

    Not every shared file system shows its locks there, and two servers would ruin the data.
    """
    pid = data / PID_FILE
    if not (pid.exists() and _host_note(data).exists()):
        return
    host, _, boot = _host_note(data).read_text().partition(" ")
    here, _, this_boot = _this_host().partition(" ")
    if host not in ("", here) and (not boot or boot != this_boot):
        raise StorageError(
            f"the database in {data} is in use on host {host}; name a server that both hosts reach "
            f"with --storage, or, if no densitune runs on {host}, remove {pid}"
        )


def _open(data: Path) -> int:
    """Open the file that is locked; StorageError if another folder shares it."""
    mark = os.open(data / MARK, os.O_RDWR | os.O_CLOEXEC)
    if os.fstat(mark).st_nlink > 1:
        os.close(mark)
        raise StorageError(
            f"files in {data} are hard links and may belong to another database as well; make a "
            "copy with files of its own (cp -a), and set DENSITUNE_HOME to that"
        )
    return mark


def _is_at_home(data: Path) -> bool:
    """Tell whether the process that `postmaster.pid` names works in the folder.

    Finds servers that somebody else started, which hold no lock, if their processes can be seen.
    """
    try:
        pid, _, _ = (data / PID_FILE).read_text().partition("\n")
        return os.path.samestat(os.stat(f"/proc/{int(pid)}/cwd"), data.stat())
    except (OSError, ValueError):  # no such file or process; cut off by a crash
        return False


def _host_note(data: Path) -> Path:
    return data.with_name(f"{data.name}.host")


def _this_host() -> str:
    """Return host name and, where there is one, the id of this boot: equal in all containers."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{platform.node()} {boot.read_text().strip() if boot.exists() else ''}"


def _forget() -> None:
    """Close, in a forked child, what is its parent's to hand on."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_forget)
