"""One data folder's PostgreSQL server: join it when it runs, start it, stop it.

The server lives in its folder and knows no path: its working directory is the folder, and its
socket is there. Whoever reaches the socket in a folder has that folder's server, however many
names the folder has, and whatever it is moved to. Nobody outside signals the server: it is asked
to end itself, for its process id is valid in its own container only.

Callers hold a lock against other starters and stoppers (`storage.server`).
"""

import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg2

from storage.errors import StorageError
from storage.occupancy import MARK, PID_FILE, occupation, occupied, refuse_other_host
from storage.programs import VERSION, Account, let_pass, owner_of, run

SUPERUSER = DATABASE = "postgres"
PORT = 5432  # only a part of the socket's name: the server listens on no network
SOCKET = f".s.PGSQL.{PORT}"
SOCKET_PATH_BYTES = 103  # the shortest limit of the supported systems (macOS; Linux has 107)
HERE = Path("/proc/self/cwd")  # the folder in which a process works, even after it was moved
START_SECONDS = 60.0  # with the recovery after a crash
STOP_SECONDS = 30.0
SILENCE_SECONDS = 10.0  # without a socket: a server that starts, or whose last processes end

END_YOURSELF = f"COPY (SELECT) TO PROGRAM 'read pid < {PID_FILE} && kill -INT $pid'"
"""What the server is told; INT is a fast shutdown, which disconnects everybody."""


def log_of(data: Path) -> Path:
    """Return the server's log file."""
    return data / "server.log"


@contextmanager
def socket_folder(data: Path) -> Iterator[str]:
    """Yield a path of the data folder that is fit for a socket, valid in this process.

    The folder's own path may be too long, or hold a comma, which separates hosts.
    """
    path = str(data)
    if len(os.fsencode(data / SOCKET)) <= SOCKET_PATH_BYTES and "," not in path:
        yield path
        return
    if not HERE.exists():
        raise StorageError(
            f"{data} has a comma or is too long for PostgreSQL's socket, which takes "
            f"{SOCKET_PATH_BYTES} bytes; set DENSITUNE_HOME to another folder"
        )
    folder = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}"
    finally:
        os.close(folder)


def join(data: Path) -> bool:
    """Tell whether a server lives on the folder, as soon as it accepts connections.

    Waits for one that is starting or stopping. StorageError if it does not answer, or not for us.
    """
    began = time.monotonic()
    while occupied(data) or listening(data):
        try:
            with closing(_connect(data)) as connection:
                _check_statement(connection, data)
        except psycopg2.OperationalError as error:
            refuse_other_host(data)
            limit = START_SECONDS if listening(data) else SILENCE_SECONDS
            if time.monotonic() - began >= limit:
                raise StorageError(
                    f"the PostgreSQL server of {data} runs and cannot be reached: "
                    f"{_last_line(str(error))}; end the densitune commands that use it, in other "
                    f"containers too, and try again; its log is {log_of(data)}"
                ) from error
            time.sleep(0.1)
        else:
            return True
    return False


def start(data: Path) -> None:
    """Start the server, with a new data folder if there is none."""
    refuse_other_host(data)
    if data.exists():
        _check_version(data)
    owner = owner_of(data)
    if owner is not None:
        let_pass(owner)
    if not data.exists():
        _create(data, owner)
    log = log_of(data)
    with occupation(data) as lock:
        # Of a server that is gone, as nobody holds its lock. PostgreSQL would refuse to start if
        # its process id belonged to another process by now, as it easily does in a container.
        for remnant in (PID_FILE, f"{SOCKET}.lock"):
            (data / remnant).unlink(missing_ok=True)
        written = log.stat().st_size if log.exists() else 0
        done = run(
            "pg_ctl", "start", "-w", "-t", f"{START_SECONDS:.0f}", "-D", _seen_from(data),
            "-l", log.name, "-o", f'-h "" -p {PORT} -k . -c unix_socket_permissions=0700',
            owner=owner, seconds=START_SECONDS + 10, folder=data, keeps=(lock,),
        )  # fmt: skip
    if done.returncode != 0:
        complaint = log.read_bytes()[written:].decode(errors="replace") if log.exists() else ""
        reason = _last_line(complaint or done.stderr or done.stdout)
        raise StorageError(f"PostgreSQL did not start: {reason}; its log is {log}")


def stop(data: Path) -> None:
    """Stop the server if it runs, disconnecting whoever is left; one that is out of reach stays."""
    try:
        connection = _connect(data)
    except psycopg2.OperationalError:
        return
    # An error, for the end comes before the answer.
    with suppress(psycopg2.Error), closing(connection), connection.cursor() as cursor:
        connection.autocommit = True
        _check_statement(connection, data)
        cursor.execute(END_YOURSELF)
    deadline = time.monotonic() + STOP_SECONDS
    while occupied(data) and time.monotonic() < deadline:
        time.sleep(0.05)


def listening(data: Path) -> bool:
    """Tell whether anyone accepts connections at the socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        try:
            with socket_folder(data) as folder:
                probe.connect(f"{folder}/{SOCKET}")
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except (TimeoutError, BlockingIOError):
            return True  # but too busy to answer
    return True


def was_killed(data: Path) -> bool:
    """Tell whether the server's process ended without shutting down; False if it is not ours."""
    try:
        return (data / PID_FILE).exists() and not occupied(data)
    except PermissionError:
        return False


def _connect(data: Path) -> Any:
    with socket_folder(data) as host:
        return psycopg2.connect(
            host=host, port=PORT, user=SUPERUSER, dbname=DATABASE, connect_timeout=5
        )


def _check_statement(connection: Any, data: Path) -> None:
    """Raise StorageError unless the server says that it serves this folder."""
    with connection.cursor() as cursor:
        cursor.execute("SHOW data_directory")
        told = Path(cursor.fetchone()[0])
    if told == HERE:
        return  # where it works, and so where its socket is
    if not (told.exists() and told.samefile(data)):
        raise StorageError(
            f"the PostgreSQL server that answers in {data} says that it serves {told}; if that was "
            f"moved, move it back, and stop the server: pg_ctl stop -D {told}"
        )


def _seen_from(folder: Path) -> str:
    """Return what a program that works in the folder shall call it."""
    return str(HERE if HERE.exists() else folder)


def _create(data: Path, owner: Account | None) -> None:
    """Make the data folder; one that was begun and never finished is begun again."""
    begun = data.with_name(f"{data.name}.new")
    shutil.rmtree(begun, ignore_errors=True)
    begun.mkdir(mode=0o700)
    if owner is not None:
        os.chown(begun, *owner)
    done = run(
        "initdb", "-D", _seen_from(begun), "-U", SUPERUSER, "--auth=trust", "--encoding=UTF8",
        "--no-locale", owner=owner, seconds=START_SECONDS, folder=begun,
    )  # fmt: skip
    if done.returncode != 0:
        reason = _last_line(done.stderr or done.stdout)
        raise StorageError(
            f"PostgreSQL could not make its data folder {begun}: {reason}; mend that, or name a "
            "server with --storage"
        )
    begun.rename(data)


def _check_version(data: Path) -> None:
    """Raise StorageError unless the data folder is of our PostgreSQL version."""
    try:
        version = (data / MARK).read_text().strip()
    except FileNotFoundError:
        version = "none"
    if version != str(VERSION):
        raise StorageError(
            f"{data} is not a data folder of PostgreSQL {VERSION} (version found: {version}); move "
            "it away, or set DENSITUNE_HOME to another folder"
        )


def _last_line(text: str) -> str:
    """Return the last line of a log that says what was fatal, or else simply the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no reason was given"]
    return next((line for line in reversed(lines) if "FATAL" in line or "PANIC" in line), lines[-1])
