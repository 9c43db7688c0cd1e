"""What a process is told by its environment: where to keep things, and where PostgreSQL is.

DENSITUNE_HOME                   database, datasets, caches and logs (default: the XDG data folder)
DENSITUNE_STORAGE                URL of a PostgreSQL server (default: the embedded one)
DENSITUNE_STORAGE_PASSWORD_FILE  file with the password that the URL leaves out
"""

import os
from pathlib import Path

from sqlalchemy import Engine, make_url
from sqlalchemy.exc import ArgumentError

from optimizer.errors import UsageError
from storage import database, server


def home() -> Path:
    """Return the folder where densitune keeps what it needs between runs."""
    given = os.environ.get("DENSITUNE_HOME")
    if given:
        return Path(given).expanduser().resolve()
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser().resolve() / "densitune"


def open_storage(url: str | None) -> Engine:
    """Connect to the server at a URL, or to the embedded one, and bring its schema up to date.

    The embedded server is started if nobody has, and stopped with its last user.
    """
    if url is None:
        engine = database.connect(server.embedded_url(home()))
    else:
        engine = database.connect(_with_password(url))
    database.prepare(engine)
    return engine


def _with_password(url: str) -> str:
    """Return the URL with the password from the file that the environment names, if any."""
    file = os.environ.get("DENSITUNE_STORAGE_PASSWORD_FILE")
    if not file:
        return url
    try:
        password = Path(file).expanduser().read_text(encoding="utf-8").rstrip("\r\n")
        parsed = make_url(url)
    except OSError as error:
        raise UsageError(
            f"DENSITUNE_STORAGE_PASSWORD_FILE {file} cannot be read: {error.strerror}"
        ) from error
    except ArgumentError:
        return url  # what is wrong with it is said where it is used
    return parsed.set(password=password).render_as_string(hide_password=False)
