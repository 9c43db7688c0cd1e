"""Files that are there whole or not at all, also after a power failure, and read with care.

Folders may be shared with others, who may have put a link, a pipe or a device where a file of ours
is expected. Nothing is written through those, and nobody waits for them.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write(path: Path, content: bytes) -> None:
    """Write a file by one rename after its bytes are on the disk; OSError if that fails.

    Its folder is made. Several processes, of several hosts, may write the same file: the last wins,
    and whoever reads it reads one of them whole. What is there already has to be a regular file:
    a link, or a device such as /dev/null, is neither followed nor replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(path) and not is_regular(path):
        raise OSError(errno.EINVAL, "no regular file is there", str(path))
    part = path.with_name(f"{secrets.token_hex(16)}.part")
    try:
        with create(part) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def create(path: Path) -> BinaryIO:
    """Make a file that is not there yet, not even as a link, and open it to write."""
    return os.fdopen(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb"
    )


def is_regular(path: Path) -> bool:
    """Tell whether there is a regular file, not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


@contextmanager
def opened(path: Path, *, writable: bool = False) -> Iterator[BinaryIO]:
    """Open a regular file; OSError if it is something else, which is not waited for."""
    # A pipe is not waited for, and a link not followed.
    how = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_RDWR if writable else os.O_RDONLY)
    descriptor = os.open(path, how)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    with os.fdopen(descriptor, "r+b" if writable else "rb") as file:
        yield file


def _sync(folder: Path) -> None:
    """Have the folder's own entries written to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
