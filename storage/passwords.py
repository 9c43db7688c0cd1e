"""Passwords in files, which no command line, log or environment shows."""

import os
from pathlib import Path

from storage.errors import StorageUrlError

VARIABLE = "DENSITUNE_STORAGE_PASSWORD_FILE"
"""Names the file with the password that the storage's URL leaves out."""

MOST_BYTES = 4096
UNFIT = {"\0": "the character NUL", "\n": "several lines", "\r": "several lines"}


def given() -> str | None:
    """Return the password from the file that the environment names, or None if it names none."""
    file = os.environ.get(VARIABLE)
    return read(file, f"{VARIABLE} {file}") if file else None


def read(file: str, called: str) -> str:
    """Return the password in a file, without the line break at its end.

    called: what a message calls the file. StorageUrlError, which shows nothing of the content, if
    there is no file, or what it holds can be no password.
    """
    try:
        with Path(file).expanduser().open("rb") as opened:
            content = opened.read(MOST_BYTES + 1)
    except (OSError, ValueError, RuntimeError) as error:  # no file, NUL in its name, nobody's home
        said = getattr(error, "strerror", None) or error
        raise StorageUrlError(f"{called} cannot be read: {said}") from None
    if len(content) > MOST_BYTES:
        raise StorageUrlError(f"{called} has more than {MOST_BYTES} bytes, which is no password")
    try:
        password = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        # Without the cause, which quotes the password.
        raise StorageUrlError(f"{called} is not in UTF-8; save it as UTF-8") from None
    if wrong := [name for mark, name in UNFIT.items() if mark in password]:
        raise StorageUrlError(f"{called} holds {wrong[0]}; a password is one line of text")
    return password
