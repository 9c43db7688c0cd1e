"""Files that are there whole or not at all, also after a power failure."""

import os
import socket
from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Write a file by one rename after its bytes are on the disk; OSError if that fails.

    Its folder is made. Several processes, of several hosts, may write the same file: the last wins.
    """
    part = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Have the folder's own entries written to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
