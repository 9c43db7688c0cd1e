"""One data folder's PostgreSQL server: join it when it runs, start it, stop it.

Callers hold a lock against other starters and stoppers (`storage.server`).
"""

import os
import platform
import shlex
import shutil
import socket
import tempfile
import time
from hashlib import sha256
from pathlib import Path

import psycopg2

from storage.errors import StorageError
from storage.programs import VERSION, Account, let_pass, owner_of, run

SUPERUSER = DATABASE = "postgres"
PORT = 5432  # only a part of the socket's name: the server listens on no network
SOCKET_PATH_BYTES = 103  # the shortest limit of the supported systems (macOS; Linux has 107)
START_SECONDS = 60.0  # with the recovery after a crash
STOP_SECONDS = 30.0
PATIENCE_SECONDS = 2.0  # between a server's writing postmaster.pid and its listening


def log_of(data: Path) -> Path:
    """Return the server's log file."""
    return data / "server.log"


def join(data: Path) -> Path | None:
    """Return the folder of the socket at which the server answers, or None if there is no server.

    Waits for a server that is starting or stopping. StorageError if one is there but not for us.
    """
    deadline = time.monotonic() + START_SECONDS
    while (folder := _listener(data)) is not None:
        try:
            psycopg2.connect(
                host=str(folder), port=PORT, user=SUPERUSER, dbname=DATABASE, connect_timeout=5
            ).close()
        except psycopg2.OperationalError as error:
            if time.monotonic() >= deadline:
                raise StorageError(
                    f"PostgreSQL at {folder} accepts no connection: {_last_line(str(error))}; its "
                    f"log is {log_of(data)}"
                ) from error
            time.sleep(0.1)
        else:
            return folder
    return None


def start(data: Path) -> Path:
    """Start the server, with a new data folder if there is none; return its socket's folder."""
    _refuse_other_host(data)
    owner = owner_of(data)
    if owner is not None:
        let_pass(owner, data)
    if not data.exists():
        _create(data, owner)
    _check_version(data)
    folder = _socket_folder(data, owner)
    _host_note(data).write_text(_this_host())
    log = log_of(data)
    options = f'-h "" -p {PORT} -k {shlex.quote(str(folder))} -c unix_socket_permissions=0700'
    deadline = time.monotonic() + START_SECONDS
    while True:
        written = log.stat().st_size if log.exists() else 0
        done = run(
            "pg_ctl", "start", "-w", "-t", f"{START_SECONDS:.0f}", "-D", str(data), "-l", str(log),
            "-o", options, owner=owner, seconds=START_SECONDS + 10,
        )  # fmt: skip
        if done.returncode == 0:
            return folder
        complaint = log.read_bytes()[written:].decode(errors="replace") if log.exists() else ""
        # Backends of a killed server take a moment to notice; until then they hold its memory.
        if "shared memory block" not in complaint or time.monotonic() >= deadline:
            reason = _last_line(complaint or done.stderr or done.stdout)
            raise StorageError(f"PostgreSQL did not start: {reason}; its log is {log}")
        time.sleep(0.2)


def stop(data: Path) -> None:
    """Stop the server if it runs, disconnecting whoever is left."""
    if (data / "postmaster.pid").exists():
        seconds = f"{STOP_SECONDS:.0f}"
        run(
            "pg_ctl", "stop", "-w", "-t", seconds, "-m", "fast", "-D", str(data),
            owner=owner_of(data), seconds=STOP_SECONDS + 10,
        )  # fmt: skip


def was_killed(data: Path) -> bool:
    """Tell whether the server's process ended without shutting down; False if it is not ours."""
    lock = data / "postmaster.pid"
    try:
        pid, _ = _read(lock)
        return lock.exists() and not (pid is not None and _exists(pid))
    except PermissionError:
        return False


def _listener(data: Path) -> Path | None:
    """Return the folder of the socket at which a server listens, None if there is no server.

    Removes the lock files of a server that is gone. PostgreSQL would refuse to start if their
    process id belonged to another process of ours by now, as it easily does in a container. A
    server that lives all the same is still protected: its shared memory is in use, and the new one
    refuses that.
    """
    lock = data / "postmaster.pid"
    deadline = time.monotonic() + PATIENCE_SECONDS
    while lock.exists():
        pid, folder = _read(lock)
        if folder is not None and _listening(folder):
            return folder
        if not _exists(pid) or time.monotonic() >= deadline:
            _refuse_other_host(data)
            lock.unlink(missing_ok=True)
            if folder is not None:
                Path(f"{_socket(folder)}.lock").unlink(missing_ok=True)
            return None
        time.sleep(0.05)
    return None


def _read(lock: Path) -> tuple[int | None, Path | None]:
    """Return process id and socket folder from `postmaster.pid`, None for what is not there."""
    try:
        lines = lock.read_text().splitlines()
        pid = int(lines[0])
    except (FileNotFoundError, ValueError, IndexError):  # gone just now, or cut off by a crash
        return None, None
    return pid, Path(lines[4]) if len(lines) > 4 and lines[4] else None


def _listening(folder: Path) -> bool:
    """Tell whether anyone accepts connections at the socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(_socket(folder)))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except (TimeoutError, BlockingIOError):
            return True  # but too busy to answer
    return True


def _socket(folder: Path) -> Path:
    return folder / f".s.PGSQL.{PORT}"


def _exists(pid: int | None) -> bool:
    """Tell whether there may be a process with this id, whoever it is."""
    if pid is None:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _host_note(data: Path) -> Path:
    return data.with_name(f"{data.name}.host")


def _this_host() -> str:
    """Return host name and, where there is one, the id of this boot: equal in all containers."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{platform.node()} {boot.read_text().strip() if boot.exists() else ''}"


def _refuse_other_host(data: Path) -> None:
    """Raise StorageError if the server may be running on another host that shares the folder.

    Its process and memory cannot be seen from here, and two servers would ruin the data.
    """
    pid = data / "postmaster.pid"
    if not (pid.exists() and _host_note(data).exists()):
        return
    host, _, boot = _host_note(data).read_text().partition(" ")
    here, _, this_boot = _this_host().partition(" ")
    if host != here and (not boot or boot != this_boot):
        raise StorageError(
            f"the database in {data} is in use on host {host}; name a server that both hosts reach "
            f"with --storage, or, if no densitune runs on {host}, remove {pid}"
        )


def _create(data: Path, owner: Account | None) -> None:
    """Make the data folder; one that was begun and never finished is begun again."""
    begun = data.with_name(f"{data.name}.new")
    shutil.rmtree(begun, ignore_errors=True)
    begun.mkdir(mode=0o700)
    if owner is not None:
        os.chown(begun, *owner)
    done = run(
        "initdb", "-D", str(begun), "-U", SUPERUSER, "--auth=trust", "--encoding=UTF8",
        "--no-locale", owner=owner, seconds=START_SECONDS,
    )  # fmt: skip
    if done.returncode != 0:
        reason = _last_line(done.stderr or done.stdout)
        raise StorageError(f"PostgreSQL could not make its data folder {begun}: {reason}")
    begun.rename(data)


def _check_version(data: Path) -> None:
    """Raise StorageError unless the data folder is of our PostgreSQL version."""
    try:
        version = (data / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        version = "none"
    if version != str(VERSION):
        raise StorageError(
            f"{data} is not a data folder of PostgreSQL {VERSION} (version found: {version}); move "
            "it away, or set DENSITUNE_HOME to another folder"
        )


def _socket_folder(data: Path, owner: Account | None) -> Path:
    """Return where to put the socket: the data folder, or a private one if its path is too long.

    Only the server's user may enter either: whoever reaches the socket is the superuser.
    """
    # The server takes a list of folders, separated by commas.
    if len(os.fsencode(_socket(data))) <= SOCKET_PATH_BYTES and "," not in str(data):
        return data
    name = f"densitune-{sha256(os.fsencode(data)).hexdigest()[:12]}"
    folder = Path(tempfile.gettempdir()) / name
    if not folder.exists():
        folder.mkdir(mode=0o700)
        if owner is not None:
            os.chown(folder, *owner)
    status = folder.lstat()
    if (
        status.st_uid != (owner[0] if owner else os.geteuid())
        or status.st_mode & 0o077
        or folder.is_symlink()
    ):
        raise StorageError(
            f"{folder}, where PostgreSQL's socket has to go, is open to other users; remove it, or "
            "set DENSITUNE_HOME to a shorter path"
        )
    return folder


def _last_line(text: str) -> str:
    """Return the last line of a log that says what was fatal, or else simply the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no reason was given"]
    return next((line for line in reversed(lines) if "FATAL" in line or "PANIC" in line), lines[-1])
