"""All errors of our own, of every package: what ends a command does so with one line, no traceback.

    BaseException
    └── Ended                          ends a run of a script, which lets it pass
    Exception
    ├── OptimizerError
    │   ├── StudyFailedError           exit code 1
    │   ├── UsageError                 exit code 2
    │   └── EvidenceError              exit code 4
    ├── StorageError                   exit code 3
    │   ├── StorageUnreachableError    exit code 3
    │   ├── UnreadableError            exit code 3
    │   └── StorageUrlError            exit code 2
    ├── StudyError                     what a command of `densitune.Study` ended with
    ├── DivergedError                  fails its job
    ├── StoppedError                   hands its jobs back
    ├── ScriptError                    fails its job
    ├── CaptureError                   hands its jobs back, and the worker leaves
    ├── UnknownError                   asks a search for a point that it has not measured yet
    ├── SpoolError                     is logged: a measurement could not be kept on this machine
    └── DamagedError                   sets a spooled measurement aside

The others live where they are raised: storage.errors, workers.training, workers.service,
workers.scripts, densitune.study. What the driver raises ends a command with 3, an interruption with
130 (optimizer.cli.main).
"""

from typing import ClassVar


class OptimizerError(Exception):
    """What ends a command; the message says why and what to do next."""

    exit_code: ClassVar[int]


class StudyFailedError(OptimizerError):
    """A study cannot go on, for reasons that lie in the study itself."""

    exit_code = 1


class UsageError(OptimizerError):
    """Something the user gave cannot be used; nothing has been written."""

    exit_code = 2


class EvidenceError(OptimizerError):
    """Evidence was required and is not there; nothing has been written."""

    exit_code = 4
