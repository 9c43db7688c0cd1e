"""What a process is told by its environment: where to keep things, and where PostgreSQL is.

DENSITUNE_HOME                   database, datasets, caches and logs (default: the XDG data folder)
DENSITUNE_CODE                   folder of the user's own code (default: the current one), or an
                                 installed package that it is in
DENSITUNE_STORAGE                URL of a PostgreSQL server (default: the embedded one)
DENSITUNE_STORAGE_PASSWORD_FILE  file with the password that the URL leaves out
"""

import os
from functools import partial
from pathlib import Path

from sqlalchemy import Engine

from optimizer.errors import UsageError
from storage import database, passwords, server


def home() -> Path:
    """Return the folder where densitune keeps what it needs between runs.

    UsageError if this user has no home to which it is relative.
    """
    folder = os.environ.get("DENSITUNE_HOME")
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    try:
        if folder:
            return Path(folder).expanduser().resolve()
        return Path(data).expanduser().resolve() / "densitune"
    except RuntimeError as error:  # nobody has such a home
        raise UsageError(
            f"the folder {folder or data} cannot be found: {error}; set DENSITUNE_HOME to a folder "
            "by its full path, or name a server with --storage"
        ) from error


def tell_code(place: str | None) -> None:
    """Have this process, and workers that it starts, look for the user's own code in a place."""
    if place:
        folder = Path(place).expanduser()
        os.environ["DENSITUNE_CODE"] = str(folder.resolve()) if folder.is_dir() else place


def open_storage(url: str | None) -> Engine:
    """Connect to the server at a URL, or to the embedded one, and bring its schema up to date."""
    engine = connect(url)
    database.prepare(engine)
    return engine


def connect(url: str | None) -> Engine:
    """Connect to the server at a URL, or to the embedded one; the schema stays as it is.

    The embedded server is started if nobody has, again if it is killed, and stopped with its last
    user.
    """
    if url is None:
        folder = home()
        return database.connect(server.embedded_url(folder), partial(server.revive, folder))
    return database.connect(url, password=passwords.given())
