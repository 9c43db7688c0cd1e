"""Source files: what identifies them, and the checksums that their publishers give."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from optimizer.errors import UsageError


def stamps(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Return what identifies source files without reading them: path, bytes, mtime in ns."""
    found = []
    for file in files:
        try:
            stat = file.stat()
        except OSError as error:
            raise _unreadable(file, error) from error
        found.append((str(file.resolve()), stat.st_size, stat.st_mtime_ns))
    return found


def md5_of(file: Path) -> str:
    """Return the MD5 of a file in hex: data sets publish it against damage, not against attack."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(
                stream, lambda: hashlib.md5(usedforsecurity=False)
            ).hexdigest()
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: OSError) -> UsageError:
    return UsageError(f"cannot read {file}: {error.strerror}; check the file and its permissions")
