"""The process of a training script, as the worker sees it.

It and all that it starts end with the worker, however that ends (workers.scripts.leash). It speaks
in lines of JSON on a socket, which are checked here; what it prints goes to a log that keeps its
end. Checkpoints go through two files without a name, in turn, so that one of them is always whole.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from workers.entries import INSTALLED, Entry
from workers.scripts import leash

TAIL_BYTES = 2**16
"""How much is kept of what a script prints: the end of it."""
SHOWN_LINES = 30
"""Lines of that in the worker's log when a script fails."""
MOST_LINE = 2**22
"""Bytes of a message: densities of a hundred thousand layers would fit."""
END_SECONDS = 10.0
"""How long everything that a script has started may take to be killed."""
_LEASH = Path(leash.__file__)
_MARK = "DENSITUNE_LEASH"
"""Of the environment of all that a script starts."""
_NUMBER = (int, float)
_MESSAGES: tuple[Mapping[str, Any], ...] = (
    {"applied": int, "left": str},
    {"epoch": int},
    {"report": int, "value": _NUMBER, "test": (*_NUMBER, type(None)), "den": (dict, type(None))},
    {"saved": int, "file": int, "size": int},
    {"unsaved": str},
    {"answer": (*_NUMBER, str)},
    {"failed": str, "error": str},
    {"memory": int, "behind": str},
)


class ScriptError(Exception):
    """A training script has failed, or its process is gone or silent."""


class Process:
    """A process that trains one job after another; `end` has to be called."""

    def __init__(self, entry: Entry, device: torch.device) -> None:
        self._socket, theirs = socket.socketpair()
        self._mark = uuid.uuid4().hex
        self._files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        held, self._leash = os.pipe()
        printed, printing = os.pipe()
        given = [held, theirs.fileno(), *(file.fileno() for file in self._files)]
        told = {
            "socket": theirs.fileno(),
            "files": given[2:],
            "folder": str(entry.folder),
            "module": entry.module,
            "function": entry.function,
            "device": str(device),
        }
        command = [sys.executable, "-P", "-m", "densitune.child", json.dumps(told)]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_LEASH), str(held), *command],
            pass_fds=given,
            stdin=subprocess.DEVNULL,
            stdout=printing,
            stderr=printing,
            cwd=None if entry.folder.name in INSTALLED else entry.folder,
            env=_environment(device) | {_MARK: self._mark},
        )
        os.close(held)
        os.close(printing)
        theirs.close()
        self._unread = b""
        self._tail = b""
        self._kept = 0, 0
        self._job = 0
        self._listener = threading.Thread(target=self._listen, args=(printed,), daemon=True)
        self._listener.start()
        self.memory: int | None = None
        """Bytes that it held when it was free for the first time."""

    def begin(self, job: Mapping[str, Any]) -> None:
        """Send a job, to which all belongs that is heard from now on; ScriptError as for `tell`."""
        self._job += 1
        self.tell({"job": self._job, **job})

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send a message; ScriptError if the process is gone."""
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise ScriptError(self.end()) from error

    def hear(self, seconds: float) -> dict[str, Any] | None:
        """Return the next message of the job; None if there is none in time, or it is of another.

        ScriptError if the process is gone.
        """
        until = time.monotonic() + seconds
        while b"\n" not in self._unread:
            left = max(0.0, until - time.monotonic())
            if not select.select([self._socket], [], [], left)[0]:
                if self._process.poll() is None:
                    return None
                raise ScriptError(self.end())  # a process that it has left holds its socket
            received = self._received()
            if not received:
                raise ScriptError(self.end())
            self._unread += received
            if len(self._unread) > MOST_LINE:
                raise ScriptError(f"a message has more than {MOST_LINE} bytes")
        line, _, self._unread = self._unread.partition(b"\n")
        job, message = _read(line)
        return message if job == self._job else None

    def put(self, content: bytes) -> None:
        """Write a checkpoint to go on from; a job has to be told its size."""
        file = self._files[0]
        file.seek(0)
        file.truncate()
        file.write(content)
        file.flush()
        self.keep(0, len(content))

    def keep(self, number: int, size: int) -> None:
        """Note in which file the last whole checkpoint is, of so many bytes; none of 0 bytes.

        ScriptError if there is no such file.
        """
        if number not in (0, 1):
            raise ScriptError(f"there is no file {number}")
        self._kept = number, size

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint of the job in training."""
        return self._kept[1] > 0

    def checkpoint(self) -> bytes:
        """Return it; ScriptError if it is not whole, whatever the script has done to the file."""
        number, size = self._kept
        file = self._files[number]
        file.seek(0)
        content = file.read(size)
        if len(content) != size:
            raise ScriptError(f"a checkpoint has {len(content)} bytes instead of {size}")
        return content

    def end(self) -> str:
        """Kill it with all that it has started, and say how it ended; its checkpoint stays."""
        ended_by_itself = self._process.poll() is not None or self._has_closed()
        if ended_by_itself:  # the leash is on its way out, with the code
            _waited(self._process)
        if self._leash >= 0:
            os.close(self._leash)
            self._leash = -1
        if not _waited(self._process):
            self._process.kill()
            self._process.wait()
        if self._process.returncode < 0:  # the leash was killed, and could not kill
            leash.kill_marked(f"{_MARK}={self._mark}")
        self._hear_the_rest()
        self._listener.join(END_SECONDS)
        return _said(self._process.returncode)

    def close(self) -> None:
        """End it, and let go of all that is held for it."""
        self.end()
        self._socket.close()
        for file in self._files:
            file.close()

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it, as the kernel does where memory is full."""
        return self._process.returncode == 128 + signal.SIGKILL

    @property
    def printed(self) -> list[str]:
        """The last lines of what it has printed."""
        return self._tail.decode(errors="replace").splitlines()[-SHOWN_LINES:]

    def _hear_the_rest(self) -> None:
        """Note which file it has written last: it may have begun to write the one before again."""
        while received := self._received(socket.MSG_DONTWAIT):
            self._unread += received
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            with suppress(ScriptError):
                job, message = _read(line)
                if job == self._job and "saved" in message:
                    self.keep(message["file"], message["size"])

    def _received(self, flags: int = 0) -> bytes:
        try:
            return self._socket.recv(2**16, flags)
        except OSError:  # closed, or nothing is there
            return b""

    def _has_closed(self) -> bool:
        try:
            return not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _listen(self, printed: int) -> None:
        with os.fdopen(printed, "rb", buffering=0) as stream:
            while content := stream.read(2**16):
                self._tail = (self._tail + content)[-TAIL_BYTES:]


def _waited(process: "subprocess.Popen[bytes]") -> bool:
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _environment(device: torch.device) -> dict[str, str]:
    """Return this process's environment without what is the service's own business."""
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DENSITUNE_", "PG"))
    }
    threads = {"OMP_NUM_THREADS": "1"} if device.type == "cpu" else {}
    return {**own, **threads, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}


def _read(line: bytes) -> tuple[int, dict[str, Any]]:
    """Return the job of a message and the rest of it; ScriptError if it is none."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ScriptError(f"its process said {line[:80]!r}") from error
    job = message.pop("job", None) if isinstance(message, dict) else None
    if isinstance(job, int):
        for known in _MESSAGES:
            if message.keys() == known.keys() and all(
                isinstance(message[name], kind) for name, kind in known.items()
            ):
                return job, message
    raise ScriptError(f"its process said {line[:80]!r}")


def _said(code: int) -> str:
    if code < 0:
        return "what watches over its process was killed"
    if code <= 128:
        return f"its process ended with exit code {code}"
    try:
        return f"its process ended by signal {code - 128} ({signal.Signals(code - 128).name})"
    except ValueError:
        return f"its process ended with exit code {code}"
