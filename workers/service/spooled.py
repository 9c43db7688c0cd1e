"""The files of the spool: one process at a time takes one, and what is of no use is set aside."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal

from optimizer.config import documents
from storage import durable

log = logging.getLogger("densitune.worker")


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


def left_aside(folder: Path, job: str = "") -> list[Path]:
    """Return the files that were set aside, of all jobs or of the one that names begin with."""
    return [*folder.glob(f"{job}*.damaged"), *folder.glob(f"{job}*.refused")]
