"""Errors that end a command with one line instead of a traceback."""


class UsageError(Exception):
    """Something the user gave cannot be used; nothing has been written."""

    exit_code = 2


class StudyFailedError(Exception):
    """A study cannot go on, for reasons that lie in the study itself."""

    exit_code = 1


class EvidenceError(Exception):
    """Evidence was required and is not there; nothing has been written."""

    exit_code = 4
