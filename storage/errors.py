"""What can go wrong with the storage; each ends a command with one line (optimizer.errors)."""


class StorageError(Exception):
    """The storage cannot do what was asked; the message says why and what to do next."""

    exit_code = 3


class StorageUnreachableError(StorageError):
    """No PostgreSQL answers at the address, or it answers no longer."""


class UnreadableError(StorageError):
    """A stored value is beyond what Python can hold; newer schemas refuse it (migration 0007)."""


class StorageUrlError(StorageError):
    """The storage URL itself cannot be used."""

    exit_code = 2
