"""The files of the spool: how many there may be, who takes one, and what is set aside."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal

from optimizer.config import documents
from storage import durable

MOST_FILES = 10_000
"""How many measurements a folder may hold: days of a busy host."""
MOST_BYTES = 64 * 2**20
"""How large they may be together; one takes less than a kilobyte, or up to 130 if it tells the
scores of very many images (storage.image_scores)."""

log = logging.getLogger("densitune.worker")


class SpoolError(Exception):
    """A measurement cannot be written to the spool; the message says why and what to do."""


@contextmanager
def taken(path: Path) -> Iterator[bytes | None]:
    """Yield a file's content while no other process may take it; None if one does or did.

    A process that dies lets go of it. Of a file that is too large the beginning is enough.
    """
    if not durable.is_regular(path):
        yield None
        return
    with ExitStack() as stack:
        try:
            # flock needs a writable file on NFS
            file = stack.enter_context(durable.opened(path, writable=True))
        except FileNotFoundError:
            yield None
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        delivered = os.fstat(file.fileno()).st_nlink == 0  # between our opening and our locking
        yield None if delivered else file.read(documents.MOST_BYTES + 1)


def set_aside(path: Path, how: Literal["damaged", "refused"], reason: object) -> None:
    """Give a file a name under which it is delivered no more, and say so in the log."""
    aside = path.with_suffix(f".json.{how}")
    with suppress(FileNotFoundError):  # another process was faster
        path.rename(aside)
        log.error("a spooled measurement is %s and is not delivered: %s (%s)", how, aside, reason)


def aside_of(path: Path) -> list[Path]:
    """Return the names that a file has once it is set aside."""
    return [path.with_suffix(f".json.{how}") for how in ("damaged", "refused")]


def left_aside(folder: Path, job: str = "") -> list[Path]:
    """Return the files that were set aside, of all jobs or of the one that names begin with."""
    return [*folder.glob(f"{job}*.damaged"), *folder.glob(f"{job}*.refused")]


def check_bounds(folder: Path) -> None:
    """Raise SpoolError if the folder is full; several processes may overshoot by one file each."""
    files, size = 0, 0
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):  # delivered just now
            size += entry.stat().st_size
            files += 1
    if files >= MOST_FILES or size >= MOST_BYTES:
        raise SpoolError(
            f"the spool {folder} is full: {files} files of at most {MOST_FILES}, "
            f"{size / 2**20:.1f} of at most {MOST_BYTES / 2**20:.0f} MiB; once the database is "
            "back: densitune doctor --fix"
        )
