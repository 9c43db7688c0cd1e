"""Watches over the process of a training script; run by its path, it needs the standard library.

    python leash.py DESCRIPTOR COMMAND...

It starts the command in a session of its own. Once that has ended, or whoever holds the other end
of the pipe is gone, it kills all that the command has started and ends, with the command's exit
code or 128 and the signal.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

LOOK_SECONDS = 0.05
"""Between two looks at whether the command has ended."""
PR_SET_PDEATHSIG = 1
"""The command is killed where this process ends first."""
PR_SET_CHILD_SUBREAPER = 36
"""Orphans of the command become children of this process (prctl(2))."""


def main() -> None:
    """Run the command."""
    leash, command = int(sys.argv[1]), sys.argv[2:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the leash says when it is over
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    os.set_inheritable(leash, False)
    process = subprocess.Popen(
        command, close_fds=False, start_new_session=True, preexec_fn=_dies_with(os.getpid())
    )
    while process.poll() is None and not select.select([leash], [], [], LOOK_SECONDS)[0]:
        pass
    code = process.poll()
    _kill_all()
    sys.exit(1 if code is None else 128 - code if code < 0 else code)


def _dies_with(leash: int) -> Callable[[], None]:
    """Return what makes the command end with this process, from before it is the command on."""
    prctl = ctypes.CDLL(None).prctl

    def bind() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != leash:  # it has gone already
            os._exit(1)

    return bind


def kill_marked(mark: str) -> None:
    """Kill all that has NAME=value in its environment: what a leash that was killed has left."""
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # gone since, or another user's
            if mark.encode() in environment.read_bytes().split(b"\0"):
                os.kill(int(environment.parent.name), signal.SIGKILL)


def _kill_all() -> None:
    """Kill all descendants: children first, and then what has become a child by that."""
    while children := _children():
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        for child in children:
            with suppress(ChildProcessError):
                os.waitpid(child, 0)


def _children() -> list[int]:
    own = str(os.getpid())
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # gone since
            # After the name, which may have spaces: state, parent (proc_pid_stat(5)).
            if stat.read_bytes().rpartition(b")")[2].split()[1].decode() == own:
                found.append(int(stat.parent.name))
    return found


if __name__ == "__main__":
    main()
